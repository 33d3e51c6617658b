"""Deleting in small transactions that nobody waits for: bounded in rows and time, with a pause between."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final, NamedTuple

from psycopg import errors

from spark_jobs.contracts.errors import TransientError
from spark_jobs.contracts.tracker.connect import Connection, classified, query, short_transaction

_LOCK_TIMEOUT_MS: Final = 1_000
_STATEMENT_TIMEOUT: Final = "60s"
# The last one: a statement that took too long. What it was for must not keep all else from being cleaned.
_IN_THE_WAY: Final = (
    errors.LockNotAvailable,
    errors.DeadlockDetected,
    errors.SerializationFailure,
    errors.QueryCanceled,
)
_BEFORE: Final = "SELECT clock_timestamp() - make_interval(secs => %s)"
_SECONDS_A_DAY: Final = 86_400


class BusyError(Exception):
    """Rows that were to go stay for the next cleanup: another session is at them, or they are too many at once."""


@contextmanager
def short_delete(conn: Connection, what: str) -> Iterator[None]:
    """Run the block in a transaction of its own, which waits for no lock for long, and for no statement either.

    :raises BusyError: another session holds what it needs, or it took too long.
    """
    try:
        with short_transaction(conn, what, lock_timeout_ms=_LOCK_TIMEOUT_MS):
            conn.execute(f"SET LOCAL statement_timeout = '{_STATEMENT_TIMEOUT}'".encode())
            yield
    except TransientError as error:
        if isinstance(error.__cause__, _IN_THE_WAY):
            raise BusyError from error
        raise


class Repeated(NamedTuple):
    """What repeated steps did.

    :param removed: rows, in all. :param stopped: None, or why they ended early: what is left is the next cleanup's.
    """

    removed: int
    stopped: BusyError | None


def repeat(step: Callable[[], tuple[int, bool]], pause_seconds: float) -> Repeated:
    """Call ``step`` until nothing is left, or until others are in the way.

    :param step: returns how many rows it removed, and whether more may be left.
    :param pause_seconds: after each step that removed some.
    """
    total = 0
    try:
        more = True
        while more:
            removed, more = step()
            total += removed
            if removed and pause_seconds:
                time.sleep(pause_seconds)
    except BusyError as busy:
        return Repeated(total, busy)
    return Repeated(total, None)


def server_time_before(conn: Connection, days: float) -> datetime:
    """Return the server's time less so many days: a client's clock may be wrong."""
    with classified("Asking for the server's time"):
        row = conn.execute(_BEFORE, (days * _SECONDS_A_DAY,)).fetchone()
    moment: datetime = row[0] if row else datetime.min
    return moment


def number(conn: Connection, schema: str, statement: str, values: dict[str, Any]) -> int:
    """Run a statement whose only value is a number, and return it; 0 without a row."""
    row = query(conn, schema, statement, values).fetchone()
    return int(row[0]) if row and row[0] is not None else 0
