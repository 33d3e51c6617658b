"""Executor side: Arrow into PostgreSQL by binary COPY, over ADBC. Imports neither pydantic nor psycopg."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import adbc_driver_postgresql.dbapi as adbc
import pyarrow as pa

from spark_jobs.contracts.tracker import statements

Cursor = Any
"""An ADBC cursor; the library ships no types."""


@dataclass(frozen=True, slots=True)
class Session:
    """How to open a tagged, bounded transaction.

    :param uri: libpq URI with the password; never shown.
    :param role: a role to SET for the transaction, so that rotated users share their tables.
    """

    uri: str = field(repr=False)
    application_name: str
    lock_timeout: str
    idle_timeout: str
    role: str | None = None


@contextmanager
def transaction(session: Session) -> Iterator[Cursor]:
    """Open a transaction and roll it back when the block fails. The caller commits with ``COMMIT``."""
    # Autocommit, and BEGIN sent as SQL: with ADBC's own transactions a failed COPY leaves no savepoint to go back to.
    with adbc.connect(session.uri, autocommit=True) as conn, conn.cursor() as cursor:
        _begin(cursor)
        try:
            cursor.execute(
                statements.begin_settings(), (session.application_name, session.lock_timeout, session.idle_timeout)
            )
            if session.role:
                cursor.execute(f"SET LOCAL ROLE {statements.quote_identifier(session.role)}")
            yield cursor
        except BaseException:
            _roll_back(cursor)
            raise


def _begin(cursor: Cursor) -> None:
    # `execute` would prepare first and execute then: behind a pooler, outside a transaction, on two servers.
    cursor.adbc_statement.set_sql_query("BEGIN")
    cursor.adbc_statement.execute_update()


def _roll_back(cursor: Cursor) -> None:
    try:
        cursor.execute("ROLLBACK")
    except adbc.Error:
        # The connection is gone, and the server has rolled back by itself; the first error is the one to tell.
        return


def copy_rows(cursor: Cursor, schema: str, table: str, batches: Iterable[pa.RecordBatch]) -> int:
    """COPY all batches into ``schema.table``; return the number of rows. No batch: nothing is sent.

    The batches' column names are the table's; their types must be the table's exactly.
    """
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        return 0
    copied = 0

    def counted() -> Iterator[pa.RecordBatch]:
        nonlocal copied
        for batch in chain([first], iterator):
            copied += batch.num_rows
            yield batch

    reader = pa.RecordBatchReader.from_batches(first.schema, counted())
    cursor.adbc_ingest(table, reader, mode="append", db_schema_name=schema)
    return copied


def scalar(cursor: Cursor, statement: str, parameters: Sequence[str] = ()) -> Any:
    """Run a statement and return the first column of its first row, None without a row."""
    cursor.execute(statement, tuple(parameters)) if parameters else cursor.execute(statement)
    row = cursor.fetchone()
    return None if row is None else row[0]


def sqlstate(error: BaseException) -> str:
    """Return the SQLSTATE of an ADBC error; empty when the server did not give one."""
    return str(getattr(error, "sqlstate", None) or "")
