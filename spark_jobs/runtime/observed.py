"""What Spark itself counted while it evaluated a micro-batch, asked inside ``foreachBatch`` after the one action.

The public progress has these numbers only after the batch. They come from the query's last execution, through py4j.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from spark_jobs.runtime.flow import BOOKS


@dataclass(frozen=True, slots=True)
class Observed:
    """Counts of rows before the aggregation; event times in microseconds since 1970."""

    source: int = 0
    passed: int = 0
    dead_lettered: int = 0
    filtered: int = 0
    event_time_min: int | None = None
    event_time_max: int | None = None


def observed_rows(query: StreamingQuery) -> Observed:
    """Return the counts of the current micro-batch."""
    found = _execution(query).observedMetrics().get(BOOKS)
    if found.isEmpty():
        return Observed()
    return Observed(**{name: value for name, value in json.loads(found.get().json()).items() if value is not None})


def rows_dropped_as_late(query: StreamingQuery) -> int:
    """Return how many rows Spark's stateful operators dropped as late.

    Spark counts after its partial aggregation: any number but 0 says that there were late rows, not how many.
    """
    return sum(_metric(_execution(query).executedPlan(), "numRowsDroppedByWatermark"))


def state_rows(query: StreamingQuery) -> int:
    """Return how many rows Spark's state holds after the current micro-batch."""
    return sum(_metric(_execution(query).executedPlan(), "numTotalStateRows"))


def see_event_time(query: StreamingQuery, microseconds: int) -> None:
    """Let the watermark follow rows that were read again, beside the query: it has not seen them itself."""
    for node in _nodes(_execution(query).executedPlan()):
        if node.getClass().getSimpleName() == "EventTimeWatermarkExec":
            node.eventTimeStats().add(microseconds // 1000)


def _nodes(node: Any) -> list[Any]:
    children = node.children()
    return [node] + [found for index in range(children.size()) for found in _nodes(children.apply(index))]


def _metric(node: Any, name: str) -> list[int]:
    metric = node.metrics().get(name)
    own = [] if metric.isEmpty() else [int(metric.get().value())]
    children = node.children()
    return own + [count for index in range(children.size()) for count in _metric(children.apply(index), name)]


def evaluated_once(spark: SparkSession, query: StreamingQuery, jobs_before: frozenset[int]) -> bool:
    """Tell whether no stage of the batch's jobs ran again: a repeated shuffle stage counts its rows twice."""
    tracker = spark.sparkContext.statusTracker()
    for job in frozenset(tracker.getJobIdsForGroup(str(query.runId))) - jobs_before:
        info = tracker.getJobInfo(job)
        for stage in info.stageIds if info else []:
            found = tracker.getStageInfo(stage)
            if found is not None and (found.currentAttemptId or found.numFailedTasks):
                return False
    return True


def jobs_so_far(spark: SparkSession, query: StreamingQuery) -> frozenset[int]:
    """Return the jobs that ran for the query until now."""
    return frozenset(spark.sparkContext.statusTracker().getJobIdsForGroup(str(query.runId)))


def _execution(query: StreamingQuery) -> Any:
    # A StreamingQueryWrapper around the MicroBatchExecution that holds the batch under way.
    return query._jsq.streamingQuery().lastExecution()
