"""A migrated ledger in a database of the test's own, and drivers that commit to it as real ones do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from server_age import long_up as let_server_be_old

from spark_jobs.contracts.credentials import DatabaseConnection
from spark_jobs.contracts.run_request import RunRequest
from spark_jobs.contracts.tracker import runs
from spark_jobs.contracts.tracker import statements as st
from spark_jobs.contracts.tracker.connect import connect, raw
from spark_jobs.contracts.tracker.migrate import migrate
from spark_jobs.contracts.tracker.records import BatchIdentity, BatchRecord, Books, SourceFile, SourceGap

SCHEMA = "etl"
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Tracker:
    """The ledger of one test."""

    schema = SCHEMA
    ident = st.quote_identifier(SCHEMA)

    def __init__(self, connection: DatabaseConnection) -> None:
        self.connection = connection
        self.conn = self.connect()
        migrate(self.conn, SCHEMA)

    def connect(self, application_name: str = "test") -> psycopg.Connection[Any]:
        return connect(self.connection, application_name=application_name)

    def register(
        self, run_id: str, pipeline_id: str = "orders", load: dict[str, Any] | None = None, **options: Any
    ) -> None:
        config = {"pipelineId": pipeline_id, **({"load": load} if load else {})}
        request = RunRequest(run_id=run_id, pipeline_id=pipeline_id, config=config, started_by="me")
        runs.register_run(self.conn, SCHEMA, request, **options)

    def start(self, run_id: str, pipeline_id: str = "orders") -> int:
        self.register(run_id, pipeline_id)
        return runs.claim_epoch(self.conn, SCHEMA, pipeline_id, run_id)

    def record(self, batch_id: int = 0, *, run_id: str = "r1", epoch: int = 1, **changes: Any) -> BatchRecord:
        identity = BatchIdentity(
            pipeline_id=changes.pop("pipeline_id", "orders"),
            query_id=changes.pop("query_id", "q"),
            batch_id=batch_id,
            start_offsets=changes.pop("start_offsets", {"orders": {"0": batch_id * 10}}),
            end_offsets=changes.pop("end_offsets", {"orders": {"0": batch_id * 10 + 10}}),
            source_digest=changes.pop("source_digest", None),
        )
        record = BatchRecord(
            identity=identity,
            run_id=run_id,
            epoch=epoch,
            checkpoint_location="/checkpoints/orders",
            books=Books(source=10, passed=7, late=2, dead_lettered=1, sink=7, written=7),
            duration_ms=1234,
            strategy="single",
            strategy_reason="few rows",
            watermark=NOON,
            event_time_min=NOON,
            event_time_max=NOON,
            files=[SourceFile(f"/in/{batch_id}.csv", NOON, 123)],
            gaps=[SourceGap({"topic": "orders", "partition": 0}, 3, "past retention")],
        )
        return dataclasses.replace(record, **changes)

    def commit(self, record: BatchRecord) -> None:
        """Commit as a driver does; the fence is the caller's."""
        with self.conn.transaction():
            raw(self.conn, st.insert_batch(self.ident), record.row_json())
            raw(self.conn, st.insert_files(self.ident), record.files_json())
            raw(self.conn, st.insert_gaps(self.ident), record.gaps_json())

    def one(self, statement: str, *parameters: Any) -> Any:
        row = self.conn.execute(statement, parameters).fetchone()
        return row[0] if row and len(row) == 1 else row


@pytest.fixture
def tracker(database: Any) -> Iterator[Tracker]:
    """A migrated ledger with a session of its own."""
    made = Tracker(DatabaseConnection.from_airflow("warehouse", database.airflow_uri))
    with closing(made.conn):
        yield made


@pytest.fixture
def long_up(tracker: Tracker) -> Tracker:
    """A ledger whose server was started long ago, as far as its own words go."""
    let_server_be_old(tracker.conn)
    return tracker
