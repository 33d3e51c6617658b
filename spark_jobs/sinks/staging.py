"""Staging tables: made for one attempt at one batch, dropped after its commit, swept when their driver died."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from psycopg import sql

from spark_jobs.contracts.errors import EtlError, TransientError
from spark_jobs.contracts.tracker.connect import classified, set_local_role, short_transaction
from spark_jobs.contracts.tracker.staging_names import staging_prefix
from spark_jobs.logs.events import log_event
from spark_jobs.sinks.ledger import Ledger
from spark_jobs.sinks.merge_sql import MergeRule
from spark_jobs.sinks.parts import PartReport
from spark_jobs.sinks.sorting import Tally
from spark_jobs.sinks.staging_table import create_staging
from spark_jobs.sinks.target import Target

log = logging.getLogger("etl.batch")


@dataclass(frozen=True, slots=True)
class Staging:
    """The staging tables of one attempt at one batch; ``rows`` or ``letters`` are the tables' names."""

    schema: str
    rows: str
    letters: str

    def names(self) -> list[str]:
        """Return the names of the tables that there are."""
        return [name for name in (self.rows, self.letters) if name]

    def identifier(self, name: str) -> sql.Identifier:
        """Return a table of this staging, quoted."""
        return sql.Identifier(self.schema, name)


@dataclass(frozen=True, slots=True)
class Staged:
    """What all winning parts of a staging hold."""

    staging: Staging
    reports: tuple[PartReport, ...]
    tally: Tally
    written: int
    refused: int

    @classmethod
    def of(cls, staging: Staging, reports: Sequence[PartReport]) -> Staged:
        """Return what the winning attempts' reports say."""
        total = PartReport.total(reports)
        return cls(staging, tuple(reports), total.tally, total.written, total.refused)

    @property
    def letters(self) -> int:
        """How many dead letters there are: rows that could not be read, and rows that the staging refused."""
        return self.tally.dead_lettered + self.refused


def create(
    ledger: Ledger, target: Target | None, rule: MergeRule, attempt: int, comment: str, role: str | None = None
) -> Staging:
    """Create the staging tables of one attempt.

    :param target: whose columns the rows' table gets; None when only dead letters are staged.
    :param attempt: number of the attempt within this driver's epoch; no two are the same.
    :param role: who owns them, and so may fill them: the role that writes.
    """
    conn = ledger.connection()
    prefix = f"{staging_prefix(ledger.pipeline_id, ledger.schema)}{ledger.epoch}_{attempt}"
    staging = Staging(ledger.schema, f"{prefix}_rows" if target else "", f"{prefix}_letters")
    with short_transaction(conn, "Creating the staging tables"):
        set_local_role(conn, role)
        if target:
            table = staging.identifier(staging.rows)
            conn.execute(create_staging(table, target, kind="UNLOGGED", rule=rule))
        conn.execute(
            sql.SQL("CREATE UNLOGGED TABLE {} (envelope text, _attempt bigint, _rows bigint)").format(
                staging.identifier(staging.letters)
            )
        )
        for name in staging.names():
            conn.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(staging.identifier(name), sql.Literal(comment)))
    return staging


def drop(ledger: Ledger, staging: Staging, role: str | None = None) -> None:
    """Remove staging tables; what cannot be removed now is swept by the next run."""
    for name in staging.names():
        try:
            conn = ledger.connection()
            with short_transaction(conn, "Dropping a staging table"):
                set_local_role(conn, role)
                conn.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(staging.identifier(name)))
        except EtlError as error:
            log_event(log, logging.WARNING, "staging_left_behind", table=name, reason=error.found)


def sweep(ledger: Ledger, role: str | None = None) -> list[str]:
    """Drop the staging tables that older drivers of this pipeline left behind; return their names."""
    conn = ledger.connection()
    prefix = staging_prefix(ledger.pipeline_id, ledger.schema)
    with classified("Looking for staging tables left behind"):
        rows = conn.execute(
            "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = %s AND c.relkind = 'r' AND starts_with(c.relname, %s) "
            "AND split_part(substr(c.relname, length(%s) + 1), '_', 1)::bigint < %s",
            (ledger.schema, prefix, prefix, ledger.epoch),
        ).fetchall()
    dropped = []
    for (name,) in rows:
        # A zombie's COPY may still hold it; the run after this one will find it again.
        with suppress(TransientError), short_transaction(conn, "Dropping a staging table"):
            set_local_role(conn, role)
            conn.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(ledger.schema, name)))
            dropped.append(str(name))
    return dropped
