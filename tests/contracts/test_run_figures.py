"""What the ledger tells of a run for its metrics."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any
from uuid import uuid4

import pytest

from spark_jobs.contracts.breaker import Breaker
from spark_jobs.contracts.config.circuit_breaker import CircuitBreaker
from spark_jobs.contracts.errors import BreakerOpenError, DatabaseUnreachableError
from spark_jobs.contracts.run_figures import RunFigures, Waited
from spark_jobs.contracts.tracker.breakers import PostgresStorage
from spark_jobs.contracts.tracker.figures import run_figures
from spark_jobs.contracts.tracker.retries import Retried, record_retries

SYSTEM = "postgresql://db:5432/shop"


def letter(tracker: Any, batch_id: int, stage: str) -> None:
    tracker.conn.execute(
        "INSERT INTO etl.dead_letter_single (dead_letter_id, pipeline_id, query_id, batch_id, stage, error_class, "
        "message, source) VALUES (%s, 'orders', 'q', %s, %s, 'A', 'm', '{}')",
        (uuid4(), batch_id, stage),
    )


def test_only_the_runs_own_figures(tracker: Any) -> None:
    tracker.start("r1")
    tracker.commit(tracker.record(0))
    letter(tracker, 0, "parse")
    tracker.start("r2")
    for number in (1, 2):
        tracker.commit(dataclasses.replace(tracker.record(number, run_id="r2"), epoch=2))
        letter(tracker, number, "parse")
    letter(tracker, 2, "write")
    retried = [Retried("write", 1, 0.5, {}), Retried("write", 2, 1.25, {}), Retried("read", 1, 0.1, {})]
    record_retries(tracker.conn, "etl", "r2", retried)
    session = partial(tracker.connect, "breaker")
    storage = PostgresStorage(session, "etl", SYSTEM, run_id="r2", pipeline_id="orders", reset_seconds=60)
    with pytest.raises(BreakerOpenError):
        Breaker(CircuitBreaker(failure_threshold=1), storage).failed(DatabaseUnreachableError("Away"))

    assert run_figures(tracker.conn, "etl", "r2") == RunFigures(
        "running",
        None,
        retries={"write": Waited(2, 1.75), "read": Waited(1, 0.1)},
        dead_letters={"parse": 2, "write": 1},
        breaker_changes={(SYSTEM, "open"): 1},
        breakers={SYSTEM: "open"},
    )
    assert run_figures(tracker.conn, "etl", "r1") == RunFigures(
        "fenced", None, dead_letters={"parse": 1}, breakers={SYSTEM: "open"}
    )
    assert run_figures(tracker.conn, "etl", "nobody") == RunFigures(breakers={SYSTEM: "open"})
