"""The target table of a run: made, extended or widened as configured, checked before data moves and after a failure."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from pyspark.sql.types import StructType

from spark_jobs.contracts.config import OutputMode, TableName
from spark_jobs.contracts.tracker.connect import classified, set_local_role
from spark_jobs.logs.events import log_event
from spark_jobs.runtime.flow import Flow
from spark_jobs.sinks.batch_column import require_batch_column, with_batch_field
from spark_jobs.sinks.evolution import evolve
from spark_jobs.sinks.ledger import Ledger
from spark_jobs.sinks.merge_sql import merge_rule
from spark_jobs.sinks.target import Target, create_if_missing, inspect, resolved
from spark_jobs.sinks.unaltered import altered
from spark_jobs.sinks.upsert_checks import written_columns

log = logging.getLogger("etl.run")


@dataclass(slots=True)
class TargetTable:
    """Where a flow's rows go."""

    flow: Flow
    ledger: Ledger
    replaces: bool = False
    """Whether rows of a micro-batch that is done again are removed."""
    rows: StructType | None = None
    """The schema of the rows that come; the flow's stream is put together to know it when None."""
    _opened: Target | None = field(default=None, init=False)

    def open(self) -> Target:
        """Make or change the table as the pipeline says, and check it.

        :raises TargetMismatchError: naming every difference at once.
        """
        load = self.flow.config.load
        conn = self.ledger.connection()
        schema = self._schema()
        with classified(f"Checking the table {load.target}"), conn.transaction():
            # Who writes is who must own a new table, and whose privileges count.
            set_local_role(conn, load.role)
            table = resolved(conn, load.target)
            if load.auto_create_table and create_if_missing(conn, table, schema, self._keys):
                log_event(log, logging.INFO, "table_created", table=str(table))
            evolve(conn, table, schema, load.schema_evolution)
            opened = self._inspect(table)
            require_batch_column(opened, load.batch_column)
        self._opened = opened
        return opened

    def recheck(self) -> None:
        """Look whether the table still is what :meth:`open` found.

        :raises TargetMismatchError: it does not fit the query any more. :raises TargetAlteredError: it was altered, and
            fits. :raises EtlError: it could not be looked at.
        """
        if self._opened is None:
            return
        before = self._opened
        conn = self.ledger.connection()
        with classified(f"Checking the table {before.table}"), conn.transaction():
            set_local_role(conn, self.flow.config.load.role)
            now = self._inspect(before.table)
        if now != before:
            raise altered(str(before.table), "; ".join(_differences(before, now)))

    def _inspect(self, table: TableName) -> Target:
        return inspect(self.ledger.connection(), table, self._schema(), self._keys, deletes=self._deletes)

    def _schema(self) -> StructType:
        load = self.flow.config.load
        rows = self.flow.result_schema() if self.rows is None else self.rows
        return with_batch_field(written_columns(rows, merge_rule(load)), load.batch_column)

    @property
    def _keys(self) -> tuple[str, ...]:
        load = self.flow.config.load
        return load.keys if load.write_mode == "upsert" else ()

    @property
    def _deletes(self) -> bool:
        replaced = self.flow.streaming.output_mode is OutputMode.COMPLETE and not self._keys
        removed = self.replaces and not self._keys
        return replaced or removed or self.flow.config.load.delete_marker is not None


def _differences(before: Target, now: Target) -> list[str]:
    old = {column.name: column for column in before.columns}
    found = [
        f"column {column.name} was {old[column.name].declared}, is {column.declared}"
        for column in now.columns
        if column.declared != old[column.name].declared
    ]
    return found or ["other constraints, defaults or triggers"]
