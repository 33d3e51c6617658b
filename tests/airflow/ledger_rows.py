"""A ledger in a real database whose micro-batches a test commits one by one, as a driver would: with NOTIFY."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from time import monotonic
from typing import Any

from spark_jobs.contracts.credentials import DatabaseConnection
from spark_jobs.contracts.events import BatchCommitted
from spark_jobs.contracts.run_request import RunRequest
from spark_jobs.contracts.tracker import runs
from spark_jobs.contracts.tracker import statements as st
from spark_jobs.contracts.tracker.connect import connect, raw
from spark_jobs.contracts.tracker.migrate import migrate
from spark_jobs.contracts.tracker.records import BatchIdentity, BatchRecord, Books

_IDENT = st.quote_identifier("etl")


@dataclass
class LedgerRows:
    """Each call has a connection of its own: servers restart under these tests."""

    airflow_uri: str

    @property
    def connection(self) -> DatabaseConnection:
        return DatabaseConnection.from_airflow("warehouse", self.airflow_uri)

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with contextlib.closing(connect(self.connection, application_name="test")) as conn:
            cursor = conn.execute(statement, values)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def start(self, pipeline: str = "orders", run_id: str = "r1") -> None:
        with contextlib.closing(connect(self.connection, application_name="test")) as conn:
            migrate(conn, "etl")
            request = RunRequest(run_id=run_id, pipeline_id=pipeline, config={}, started_by="me")
            runs.register_run(conn, "etl", request)
            runs.claim_epoch(conn, "etl", pipeline, run_id)
            conn.execute(
                "INSERT INTO etl.pipeline_query (pipeline_id, query_id, checkpoint_location, origin, run_id, epoch) "
                "VALUES (%s, 'q', '/c', 'fresh', %s, 1)",
                (pipeline, run_id),
            )

    def commit(self, batch_id: int, pipeline: str = "orders", run_id: str = "r1") -> float:
        """Commit a micro-batch; return the monotonic time just before the COMMIT."""
        record = BatchRecord(
            identity=BatchIdentity(
                pipeline_id=pipeline,
                query_id="q",
                batch_id=batch_id,
                start_offsets={"t": {"0": batch_id}},
                end_offsets={"t": {"0": batch_id + 1}},
            ),
            run_id=run_id,
            epoch=1,
            checkpoint_location="/c",
            books=Books(source=10, passed=10, sink=10, written=10),
            duration_ms=5,
            strategy="single",
            strategy_reason="few rows",
        )
        event = BatchCommitted(pipeline_id=pipeline, query_id="q", batch_id=batch_id, run_id=run_id, epoch=1, rows=10)
        with contextlib.closing(connect(self.connection, application_name="test")) as conn, conn.transaction():
            raw(conn, st.insert_batch(_IDENT), record.row_json())
            raw(conn, st.notify(), event.payload())
            return monotonic()
