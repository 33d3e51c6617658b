"""A ledger with micro-batches, and looks at it through conditions."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from spark_jobs.contracts.watch import registry
from spark_jobs.contracts.watch.condition import Condition, LedgerView, Seen

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Watched:
    """The ledger of one test, with the pipeline ``orders`` registered."""

    def __init__(self, tracker: Any) -> None:
        self.tracker = tracker
        self.epoch = tracker.start("r1")

    def query(self, query_id: str = "q", origin: str = "fresh", seeded_from: str | None = None) -> None:
        self.sql(
            "INSERT INTO etl.pipeline_query (pipeline_id, query_id, checkpoint_location, origin, seeded_from, run_id, "
            "epoch) SELECT 'orders', %s, '/checkpoints', %s, %s, 'r1', "
            "1 + (SELECT count(*) FROM etl.pipeline_query WHERE pipeline_id = 'orders')",
            query_id,
            origin,
            seeded_from,
        )

    def batches(self, *ids: int, query_id: str = "q", offsets: Any = None, **changes: Any) -> None:
        """Commit micro-batches that read ten offsets each, one after the other."""
        for number in ids:
            start, end = offsets or ({"orders": {"0": number * 10}}, {"orders": {"0": number * 10 + 10}})
            self.tracker.commit(
                self.tracker.record(number, query_id=query_id, start_offsets=start, end_offsets=end, gaps=[], **changes)
            )

    def finish_runs(self) -> None:
        """Let all runs have finished now."""
        self.sql("UPDATE etl.pipeline_run SET state = 'finished', ended_at = clock_timestamp()")

    def sql(self, statement: str, *values: Any) -> Any:
        cursor = self.tracker.conn.execute(statement, values)
        return cursor.fetchall() if cursor.description else None

    def look(self, condition: Condition) -> Seen:
        """Look as a trigger does: with what it keeps of the condition."""
        return registry.from_json(registry.to_json(condition)).look(LedgerView(self.tracker.conn, "etl"))
