"""Transactions over dead letters that others settle at the same moment.

A letter that changes its status moves to another partition. Whoever waited for its row, or looks at an old snapshot of
it, is told so by an error instead of being shown the row as it is now.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from psycopg import errors

from spark_jobs.contracts.errors import TransientError
from spark_jobs.contracts.tracker.connect import Connection, short_transaction

T = TypeVar("T")

_MOST: Final = 20


def among_moving_letters(conn: Connection, what: str, work: Callable[[], T]) -> T:
    """Run ``work`` in a transaction of its own, and again if another has moved one of its letters meanwhile.

    Each time begins with what the others have committed, so somebody has got on; at most :data:`_MOST` times.

    :param what: what is being done; an error begins with it.
    :raises EtlError: as :func:`~spark_jobs.contracts.tracker.connect.short_transaction`.
    """
    for _ in range(_MOST - 1):
        try:
            with short_transaction(conn, what):
                return work()
        except TransientError as error:
            if not isinstance(error.__cause__, (errors.SerializationFailure, errors.DeadlockDetected)):
                raise
    with short_transaction(conn, what):
        return work()
