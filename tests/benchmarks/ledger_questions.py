"""What people and sensors ask a big ledger: gaps, freshness, the last batch; and the health DAG's whole sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from random import Random
from statistics import median
from time import monotonic
from typing import Final

from filled_ledger import PIPELINES
from report import Figure

from spark_jobs.contracts.tracker.connect import Connection
from spark_jobs.contracts.tracker.queries import pipeline_status
from spark_jobs.contracts.watch.batch_gaps import BatchGaps
from spark_jobs.contracts.watch.condition import Condition, LedgerView
from spark_jobs.contracts.watch.freshness import Freshness
from spark_jobs.contracts.watch.health import Thresholds, examine, pipelines
from spark_jobs.contracts.watch.query_progress import QueryProgress

_TIMES: Final = 50
_GOAL_MS: Final = 50.0
_GOAL_SWEEP_SECONDS: Final = 5.0
# What dags/etl_pipeline_health.py asks for unless told otherwise.
_HEALTH: Final = {"max_age": "26 hours", "gap_window": "7 days", "max_new_letters": 1000}


def figures(conn: Connection, rows: int) -> Iterator[Figure]:
    """Ask, each time about another pipeline, and yield medians; at last about all."""
    view = LedgerView(conn, "etl")
    about = f"{rows:,} ledger rows"
    for name, make in _QUESTIONS.items():
        ms = _median_ms(lambda pipeline, make=make: make(pipeline).look(view))  # type: ignore[misc]
        yield Figure(f"{about}: {name}", ms, "ms", f"{_GOAL_MS:g} ms", ms / _GOAL_MS, 1.0, less=True)
    ms = _median_ms(lambda pipeline: pipeline_status(conn, "etl", pipeline))
    yield Figure(f"{about}: status of one pipeline", ms, "ms", "", 1.0)
    began = monotonic()
    thresholds = Thresholds.of(**_HEALTH)
    names = pipelines(view)
    found = examine(view, names, thresholds)
    seconds = monotonic() - began
    assert len(names) == PIPELINES
    assert not found, found[:3]
    ratio = seconds / _GOAL_SWEEP_SECONDS
    yield Figure(f"{about}: health of all pipelines", seconds, "s", f"{_GOAL_SWEEP_SECONDS:g} s", ratio, 1.0, less=True)


_QUESTIONS: Final[dict[str, Callable[[str], Condition]]] = {
    "gaps of all that the ledger has": lambda pipeline: BatchGaps.of(pipeline=pipeline),
    "gaps of seven days": lambda pipeline: BatchGaps.of(pipeline=pipeline, last=timedelta(days=7)),
    "freshness": lambda pipeline: Freshness.of(pipeline=pipeline, younger_than=timedelta(hours=26)),
    "the last batch": lambda pipeline: QueryProgress.of(pipeline=pipeline, batch_id=1),
}


def _median_ms(ask: Callable[[str], object]) -> float:
    chosen = Random(7)
    times = []
    for _ in range(_TIMES):
        pipeline = f"pipeline-{chosen.randrange(PIPELINES)}"
        began = monotonic()
        ask(pipeline)
        times.append((monotonic() - began) * 1000)
    return median(times)
