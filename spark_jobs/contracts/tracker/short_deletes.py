"""Deleting in small transactions that nobody waits for: bounded in rows and time, with a pause between."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple

from psycopg import errors

from spark_jobs.contracts.errors import EtlError, TransientError
from spark_jobs.contracts.redaction import masked
from spark_jobs.contracts.tracker.connect import Connection, classified, query, short_transaction
from spark_jobs.logs.events import log_event

log = logging.getLogger("etl.cleanup")

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
_REST: Final = 2.0


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

    :param removed: rows, in all. :param stopped: None, or why they ended early: what is left is the next cleanup's. An
        :class:`EtlError` is the caller's to tell, see :meth:`Problems.removed`.
    """

    removed: int
    stopped: BusyError | EtlError | None


def repeat(step: Callable[[], tuple[int, bool]], pause_seconds: float) -> Repeated:
    """Call ``step`` until nothing is left, until others are in the way, or until it fails.

    :param step: returns how many rows it removed, and whether more may be left.
    :param pause_seconds: after each step that removed some, at least: a server that is slow has others to serve, and
        gets twice the time that the step took. 0: none.
    """
    total = 0
    try:
        more = True
        while more:
            began = time.monotonic()
            removed, more = step()
            total += removed
            if removed and pause_seconds:
                time.sleep(max(pause_seconds, _REST * (time.monotonic() - began)))
    except (BusyError, EtlError) as stopped:
        return Repeated(total, stopped)
    return Repeated(total, None)


@dataclass(frozen=True, slots=True)
class Problems:
    """What could not be cleaned, by pipeline: it keeps nobody else's rows from going.

    :param conn: the cleanup's; what is met when it is lost is no pipeline's problem, and raised.
    """

    conn: Connection
    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, pipeline_id: str, error: EtlError) -> None:
        """Remember that something of a pipeline could not be cleaned.

        :raises EtlError: ``error``, where the session was lost.
        """
        if self.conn.closed:
            raise error
        self.found.setdefault(pipeline_id, masked(error.to_json()))
        log_event(log, logging.ERROR, "cleanup_failed", pipeline=pipeline_id, error=str(error))

    @contextmanager
    def aside(self, pipeline_id: str) -> Iterator[None]:
        """Let an error of the block be a problem of the pipeline, and go on behind the block."""
        try:
            yield
        except EtlError as error:
            self.add(pipeline_id, error)

    def removed(self, pipeline_id: str, done: Repeated) -> int:
        """Return how many rows went, whatever ended it; an error is a problem of the pipeline."""
        if isinstance(done.stopped, EtlError):
            self.add(pipeline_id, done.stopped)
        return done.removed


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
