"""What a run did again, in the ledger: written when the database answers again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final

from psycopg.types.json import Jsonb

from spark_jobs.contracts.errors import Operation
from spark_jobs.contracts.tracker.connect import Connection, query, short_transaction

_INSERT: Final = """
INSERT INTO {schema}.run_retry (run_id, at, kind, attempt, wait_ms, error)
VALUES (%s, clock_timestamp() - make_interval(secs => %s), %s, %s, %s, %s)"""


@dataclass(frozen=True, slots=True)
class Retried:
    """An attempt that failed and is followed by another one.

    :param attempt: its number, from 1, since the last micro-batch that was committed. :param wait_seconds: what is
        waited before the next one. :param error: :meth:`EtlError.to_json`.
    """

    kind: Operation
    attempt: int
    wait_seconds: float
    error: dict[str, Any]
    failed_at: float = field(default_factory=monotonic)
    """By :func:`time.monotonic`, which no change of the clock moves."""


def record_retries(conn: Connection, schema: str, run_id: str, retried: Sequence[Retried]) -> None:
    """Write attempts of a run, all or none."""
    if not retried:
        return
    with short_transaction(conn, f"Recording the retries of run {run_id!r}"):
        for one in retried:
            age = monotonic() - one.failed_at
            wait_ms = round(one.wait_seconds * 1000)
            query(conn, schema, _INSERT, (run_id, age, one.kind, one.attempt, wait_ms, Jsonb(one.error)))
