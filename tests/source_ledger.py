"""A ledger whose pipeline reads a Kafka topic: runs, queries and micro-batches as drivers leave them."""

from __future__ import annotations

import json
from typing import Any

from spark_jobs.contracts.credentials import DatabaseConnection
from spark_jobs.contracts.run_request import RunRequest
from spark_jobs.contracts.tracker import runs
from spark_jobs.contracts.tracker import statements as st
from spark_jobs.contracts.tracker.connect import connect, raw
from spark_jobs.contracts.tracker.migrate import migrate
from spark_jobs.contracts.tracker.records import BatchIdentity, BatchRecord, Books

SCHEMA = "etl"
Offsets = dict[str, dict[str, int]]


class SourceLedger:
    """The ledger of one pipeline.

    :param config: the pipeline's JSON; what it is when a run starts is that run's.
    """

    def __init__(self, airflow_uri: str, config: dict[str, Any]) -> None:
        self.config = config
        self.conn = connect(DatabaseConnection.from_airflow("warehouse", airflow_uri), application_name="test")
        migrate(self.conn, SCHEMA)
        self.pipeline = str(config["pipelineId"])
        self.epoch = 0
        self._batches = 0

    def start(self, query_id: str = "q", *, start_offsets: Offsets | None = None) -> None:
        """Let a run begin, and its query where the ledger does not know it."""
        run_id = self._run(self.epoch + 1)
        request = RunRequest(run_id=run_id, pipeline_id=self.pipeline, config=self.config, started_by="me")
        runs.register_run(self.conn, SCHEMA, request)
        self.epoch = runs.claim_epoch(self.conn, SCHEMA, self.pipeline, run_id)
        self.conn.execute(
            f"INSERT INTO {SCHEMA}.pipeline_query (pipeline_id, query_id, checkpoint_location, origin, run_id, epoch, "
            "start_offsets) VALUES (%s, %s, '/checkpoints/orders', %s, %s, %s, %s) ON CONFLICT DO NOTHING",
            (
                self.pipeline,
                query_id,
                "resumed" if start_offsets else "fresh",
                run_id,
                self.epoch,
                json.dumps(start_offsets) if start_offsets else None,
            ),
        )

    def commit(self, end: Offsets, *, query_id: str = "q") -> None:
        """Commit the next micro-batch, and tell."""
        record = BatchRecord(
            identity=BatchIdentity(
                pipeline_id=self.pipeline,
                query_id=query_id,
                batch_id=self._batches,
                start_offsets=None,
                end_offsets=end,
            ),
            run_id=self._run(self.epoch),
            epoch=self.epoch,
            checkpoint_location="/checkpoints/orders",
            books=Books(source=1, passed=1, sink=1, written=1),
            duration_ms=1,
            strategy="single",
            strategy_reason="few rows",
        )
        ident = st.quote_identifier(SCHEMA)
        with self.conn.transaction():
            raw(self.conn, st.insert_batch(ident), record.row_json())
            raw(self.conn, st.notify(), json.dumps({"pipeline_id": self.pipeline, "batch_id": self._batches}))
        self._batches += 1

    def _run(self, number: int) -> str:
        return f"{self.pipeline}-{number}"
