"""A ledger with old micro-batches, and what cleans it."""

from __future__ import annotations

from typing import Any

from spark_jobs.contracts.cleanup import MINIMUM_BATCHES, CleanupReport, CleanupRequest
from spark_jobs.contracts.tracker import cleanup
from spark_jobs.contracts.tracker import statements as st
from spark_jobs.contracts.tracker.connect import raw

OLD = MINIMUM_BATCHES + 30


def fill(tracker: Any, batches: int, *, first: int = 0, days_ago: float = 100, **changes: Any) -> None:
    """Commit batches, as a driver does, that were committed so long ago."""
    with tracker.conn.transaction():
        for batch_id in range(first, first + batches):
            record = tracker.record(batch_id, **{"gaps": [], **changes})
            raw(tracker.conn, st.insert_batch(tracker.ident), record.row_json())
            raw(tracker.conn, st.insert_files(tracker.ident), record.files_json())
    age(tracker, days_ago, "batch_id >= %s AND batch_id < %s", first, first + batches)


def age(tracker: Any, days: float, where: str = "true", *values: Any) -> None:
    """Let batches have been committed so many days ago."""
    tracker.conn.execute(
        f"UPDATE etl.batch_tracker SET processed_at = clock_timestamp() - make_interval(secs => %s) WHERE {where}",
        (days * 86_400, *values),
    )


def clean(tracker: Any, **request: Any) -> CleanupReport:
    values = {"days": 30, "keep_batches": MINIMUM_BATCHES, "pause_seconds": 0, **request}
    return cleanup.clean(tracker.conn, tracker.schema, CleanupRequest.of(**values))


def ids(tracker: Any, query_id: str = "q") -> list[int]:
    rows = tracker.conn.execute("SELECT batch_id FROM etl.batch_tracker WHERE query_id = %s ORDER BY 1", (query_id,))
    return [row[0] for row in rows]


def add_query(tracker: Any, query_id: str = "q", *, epoch: int = 1, origin: str = "fresh") -> None:
    tracker.conn.execute(
        "INSERT INTO etl.pipeline_query (pipeline_id, query_id, checkpoint_location, origin, run_id, epoch) "
        "VALUES ('orders', %s, '/c', %s, 'r1', %s)",
        (query_id, origin, epoch),
    )
