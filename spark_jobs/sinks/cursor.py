"""Statements over ADBC, on the driver manager's own handles.

Its DB-API layer brings ``pyarrow.dataset``, and that brings pandas; see :mod:`spark_jobs.sinks.plain_arrow`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from adbc_driver_manager import (
    INGEST_OPTION_MODE,
    INGEST_OPTION_MODE_APPEND,
    INGEST_OPTION_TARGET_TABLE,
    AdbcConnection,
    AdbcStatement,
    Error,
    StatementOptions,
)
from adbc_driver_postgresql import StatementOptions as PostgresOptions

from spark_jobs.sinks.plain_arrow import texts

__all__ = ["Cursor", "Error"]

# A query's result would come by COPY, and its error with the first row instead of now, without its SQLSTATE.
_AT_ONCE = {PostgresOptions.USE_COPY.value: "false"}
# Of 16 MiB otherwise: whoever reads them would wait for the first ones while the server works, and the other way round.
_SMALL_BATCHES = {PostgresOptions.BATCH_SIZE_HINT_BYTES.value: str(1 << 20)}


class Cursor:
    """Runs statements in one session, one after the other.

    What the server refuses is an :class:`Error` with its SQLSTATE; a lost connection, and an error in the rows that are
    sent, is one without.
    """

    def __init__(self, connection: AdbcConnection) -> None:
        self._connection = connection

    def run(self, statement: str) -> int:
        """Run a statement without parameters; return how many rows it wrote, -1 for one that writes none."""
        # Not prepared before: behind a pooler, outside a transaction, that would be on another server.
        with self._statement() as handle:
            handle.set_sql_query(statement)
            return int(handle.execute_update())

    def execute(self, statement: str, parameters: Sequence[str] = ()) -> list[tuple[Any, ...]]:
        """Run a statement with text parameters; return its rows, which must be few."""
        with self._statement() as handle:
            handle.set_options(**_AT_ONCE)
            handle.set_sql_query(statement)
            if parameters:
                handle.prepare()
                names = [str(number) for number in range(len(parameters))]
                handle.bind(pa.RecordBatch.from_arrays([texts([value]) for value in parameters], names))
            stream, _ = handle.execute_query()
            with pa.RecordBatchReader.from_stream(stream) as reader:
                columns = [column.to_pylist() for column in reader.read_all().columns]
        return list(zip(*columns, strict=True))

    def scalar(self, statement: str, parameters: Sequence[str] = ()) -> Any:
        """Run a statement with text parameters; return the first column of its first row, None without a row."""
        rows = self.execute(statement, parameters)
        return rows[0][0] if rows else None

    def stream(self, statement: str) -> Iterator[pa.RecordBatch]:
        """Run a question without parameters; yield its rows as they come, however many there are."""
        with self._statement() as handle:
            handle.set_options(**_SMALL_BATCHES)
            handle.set_sql_query(statement)
            stream, _ = handle.execute_query()
            with pa.RecordBatchReader.from_stream(stream) as reader:
                yield from reader

    def ingest(self, schema: str, table: str, rows: pa.RecordBatchReader) -> None:
        """COPY rows into a table, whose columns of the same names have their types exactly."""
        options = {
            INGEST_OPTION_TARGET_TABLE: table,
            INGEST_OPTION_MODE: INGEST_OPTION_MODE_APPEND,
            StatementOptions.INGEST_TARGET_DB_SCHEMA.value: schema,
        }
        with self._statement() as handle:
            handle.set_options(**options)
            handle.bind_stream(rows)
            handle.execute_update()

    def tried(self, savepoint: str, work: Callable[[], object]) -> Error | None:
        """Do work within the open transaction; return the server's error, which has undone it, or None.

        :raises Error: one without a SQLSTATE: there is no session any more in which to go on.
        """
        self.run(f"SAVEPOINT {savepoint}")
        failed = None
        try:
            work()
        except Error as error:
            if not error.sqlstate:
                raise
            failed = error
            try:
                self.run(f"ROLLBACK TO SAVEPOINT {savepoint}")
            except Error:
                # The session has ended, and the first error says why.
                raise error from None
        # Else each failure would leave a subtransaction open until the end.
        self.run(f"RELEASE SAVEPOINT {savepoint}")
        return failed

    @contextmanager
    def _statement(self) -> Iterator[AdbcStatement]:
        handle = AdbcStatement(self._connection)
        try:
            yield handle
        finally:
            handle.close()
