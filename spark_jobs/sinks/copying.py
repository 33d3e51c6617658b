"""Executor side: Arrow into PostgreSQL by binary COPY, over ADBC. Imports neither pydantic nor psycopg."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain

import adbc_driver_postgresql as driver
import pyarrow as pa
from adbc_driver_manager import AdbcConnection, AdbcDatabase

from spark_jobs.contracts.tracker import statements
from spark_jobs.faults import reach
from spark_jobs.sinks.cursor import Cursor, Error

CHUNK_BYTES = 32 << 20
"""About as much as one COPY sends, and a part may hold in memory."""

# The first COPY is small, and each may be twice as large as the one before.
_FIRST_CHUNK = 1 << 20


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
    # BEGIN sent as SQL: with ADBC's own transactions a failed COPY leaves no savepoint to go back to.
    with AdbcConnection(_database(session.uri)) as connection:
        cursor = Cursor(connection)
        cursor.run("BEGIN ISOLATION LEVEL READ COMMITTED")
        try:
            cursor.execute(
                statements.begin_settings(), (session.application_name, session.lock_timeout, session.idle_timeout)
            )
            if session.role:
                cursor.run(f"SET LOCAL ROLE {statements.quote_identifier(session.role)}")
            # A deferred constraint would fail at the end, where no row could be blamed any more.
            cursor.run("SET CONSTRAINTS ALL IMMEDIATE")
            yield cursor
        except BaseException:
            _roll_back(cursor)
            raise


@lru_cache(maxsize=1)
def _database(uri: str) -> AdbcDatabase:
    # The handle asks the server for all its types, over a connection of its own: several times what a session costs.
    # Spark's workers live on, and so may the handle; the session is new each time.
    database: AdbcDatabase = driver.connect(uri)
    return database


def _roll_back(cursor: Cursor) -> None:
    try:
        cursor.run("ROLLBACK")
    except Error:
        # The connection is gone, and the server has rolled back by itself; the first error is the one to tell.
        return


def copy_rows(
    cursor: Cursor,
    schema: str,
    table: str,
    batches: Iterable[pa.RecordBatch],
    point: str = "",
    after_first: Callable[[], None] | None = None,
) -> int:
    """COPY all batches into ``schema.table``; return the number of rows. No batch: nothing is sent.

    The batches' column names are the table's; their types must be the table's exactly.

    :param point: fault point that is reached after each bounded COPY.
    :param after_first: is called after the first bounded COPY, if there is another one.
    """
    copied = 0
    for number, chunk in enumerate(chunks(batches)):
        if number == 1 and after_first is not None:
            after_first()
        copied += copy_once(cursor, schema, table, chunk)
        if point:
            reach(point)
    return copied


def copy_once(cursor: Cursor, schema: str, table: str, batches: Iterator[pa.RecordBatch]) -> int:
    """COPY all batches, one at least, by one statement: the line that the server names counts from their first."""
    first = next(batches)
    copied = 0
    failed: list[Exception] = []

    def counted() -> Iterator[pa.RecordBatch]:
        nonlocal copied
        try:
            for batch in chain([first], batches):
                copied += batch.num_rows
                yield batch
        except Exception as error:
            failed.append(error)
            raise

    reader = pa.RecordBatchReader.from_batches(first.schema, counted())
    try:
        cursor.ingest(schema, table, reader)
    except Exception:
        if failed:
            # On its way through ADBC an error of the rows' source becomes a text, and looks like a lost connection.
            raise failed[0] from None
        raise
    return copied


def chunks(batches: Iterable[pa.RecordBatch], largest: int = CHUNK_BYTES) -> Iterator[Iterator[pa.RecordBatch]]:
    """Cut a stream of batches into streams of at most about so many bytes, none of them empty.

    libpq does not look for the server's answer before a COPY's end: a bounded COPY fails soon, and small ones at the
    start find early what is bad in all places. Each stream must be used up before the next one is asked for.
    """
    iterator, most = iter(batches), _FIRST_CHUNK
    while (first := next(iterator, None)) is not None:
        yield _chunk(first, iterator, most)
        most = min(most * 2, largest)


def _chunk(first: pa.RecordBatch, rest: Iterator[pa.RecordBatch], most: int) -> Iterator[pa.RecordBatch]:
    size = first.get_total_buffer_size()
    yield first
    while size < most and (batch := next(rest, None)) is not None:
        size += batch.get_total_buffer_size()
        yield batch


def sqlstate(error: BaseException) -> str:
    """Return the SQLSTATE of an ADBC error; empty when the server did not give one."""
    return str(getattr(error, "sqlstate", None) or "")
