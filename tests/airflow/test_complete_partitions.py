"""Each complete hour or day is announced, and announced once, whichever task dies when."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import Asset
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import AssetEventsResult, TaskStatesResult
from airflow.sdk.execution_time.context import InletEventsAccessors, OutletEventAccessors
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from ledger_rows import LedgerRows

from airflow_etl_provider.assets import complete_asset, target_asset
from airflow_etl_provider.operators.complete_partitions import CompletePartitionsOperator
from spark_jobs.contracts.credentials import DatabaseConnection

if TYPE_CHECKING:
    from tests.conftest import Database

DAY = datetime(2026, 3, 1, tzinfo=UTC)
TARGET = target_asset(DatabaseConnection.from_airflow("w", "postgres://u:p@db/warehouse"), "shop", "orders")
ASSET = complete_asset(TARGET)


def hour(number: int) -> str:
    return (DAY + timedelta(hours=number)).strftime("%Y-%m-%dT%H:00:00+0000")


@dataclass
class Books:
    """A ledger whose batches have event times; a watermark is 10 minutes behind the newest."""

    rows: LedgerRows
    batches: int = 0

    def commit(self, first: datetime, last: datetime, query_id: str = "q") -> None:
        number, self.batches = self.batches, self.batches + 1
        self.rows.commit(number)
        self.rows.sql(
            "UPDATE etl.batch_tracker SET event_time_min = %s, event_time_max = %s, query_id = %s WHERE batch_id = %s",
            first,
            last,
            query_id,
            number,
        )
        self.rows.sql("UPDATE etl.pipeline_run SET state = 'finished', ended_at = clock_timestamp()")

    def until(self, hours: float, first: float = 0) -> None:
        self.commit(DAY + timedelta(hours=first), DAY + timedelta(hours=hours))

    def kept(self) -> dict[str, str]:
        return dict(self.rows.sql("SELECT partition_key, state FROM etl.complete_partition ORDER BY period_start"))


@dataclass
class Airflow:
    """Airflow as a task sees it: its events and states are kept here, and written with a task's success alone."""

    events: list[dict[str, Any]] = field(default_factory=list)
    states: dict[str, str] = field(default_factory=dict)

    def send(self, message: Any) -> Any:
        if message.type == "GetTaskStates":
            (run_id,) = message.run_ids
            states = {message.task_ids[0]: self.states[run_id]} if run_id in self.states else {}
            return TaskStatesResult(task_states={run_id: states} if states else {})
        assert message.type == "GetAssetEventByAsset"
        assert (message.name, message.uri) == (ASSET.name, ASSET.uri)
        return AssetEventsResult(asset_events=[event for event in self.events if event["timestamp"] >= message.after])

    def run(self, operator: CompletePartitionsOperator, run_id: str, *, ends: str = "success") -> list[str] | None:
        """Execute a try of a task; return what it wants to announce, None when it is skipped."""
        ti = SimpleNamespace(dag_id="d", run_id=run_id, task_id="t", map_index=-1, id=uuid.uuid4())
        ti.get_task_states = RuntimeTaskInstance.get_task_states
        outlets = OutletEventAccessors()
        context: Any = {"ti": ti, "inlet_events": InletEventsAccessors([ASSET]), "outlet_events": outlets}
        self.states[run_id] = "running"
        try:
            result = operator.execute(context)
        except AirflowSkipException:
            self.states[run_id] = "skipped"
            return None
        assert sorted(outlets[ASSET].partition_keys) == sorted(result["announced"])
        assert outlets[ASSET].extra["pipeline"] == "orders"
        self.states[run_id] = ends
        if ends == "success":
            self.events += [self._event(key, run_id) for key in result["announced"]]
        return list(result["announced"])

    @staticmethod
    def _event(key: str, run_id: str) -> dict[str, Any]:
        source = {"source_dag_id": "d", "source_task_id": "t", "source_run_id": run_id, "source_map_index": -1}
        asset = {"name": ASSET.name, "uri": ASSET.uri, "group": "asset"}
        moment = {"id": 1, "timestamp": datetime.now(UTC), "created_dagruns": []}
        return {**source, **moment, "asset": asset, "partition_key": key}

    def told(self) -> list[str]:
        return [event["partition_key"] for event in self.events]


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> Airflow:
    made = Airflow()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", made, raising=False)
    return made


@pytest.fixture
def books(database: Database, connections: Callable[..., None]) -> Books:
    rows = LedgerRows(database.airflow_uri)
    rows.start()
    config = {
        "pipelineId": "orders",
        "mode": "streaming",
        "schemas": {"line": "id BIGINT, at TIMESTAMP"},
        "extract": {
            "sourceType": "file",
            "schemaName": "line",
            "connectionParams": {"path": "/in", "format": "json"},
        },
        "load": {
            "sinkType": "postgresql",
            "table": "shop.orders",
            "writeMode": "append",
            "credentialId": "warehouse",
        },
        "streamingConfigJson": {
            "checkpointLocation": "/c",
            "queryName": "orders",
            "triggerMode": "availablenow",
            "watermark": {"eventTimeColumn": "at", "delayThreshold": "10 minutes"},
        },
    }
    rows.sql("UPDATE etl.pipeline_run SET request = jsonb_set(request, '{config}', %s::jsonb)", json.dumps(config))
    connections(warehouse=database.airflow_uri)
    return Books(rows)


def operator(**changes: Any) -> CompletePartitionsOperator:
    return CompletePartitionsOperator(**{"task_id": "t", "pipeline": "orders", "asset": ASSET, **changes})


def test_the_asset_is_named_after_the_table() -> None:
    assert ASSET.name == "postgres://db:5432/warehouse/shop/orders/complete"
    made = operator()
    assert made.outlets == made.inlets == [ASSET]


def test_what_has_ended_is_announced_and_what_follows_later(books: Books, airflow: Airflow) -> None:
    assert airflow.run(operator(), "r0") is None
    # The fourth hour waits for rows that come late.
    books.until(4.1, first=1.5)
    assert airflow.run(operator(), "r1") == [hour(1), hour(2)]
    assert airflow.run(operator(), "r2") is None
    assert set(books.kept().values()) == {"announced"}
    # Hours without an event are complete as well.
    books.until(7.2, first=7.1)
    assert airflow.run(operator(), "r3") == [hour(3), hour(4), hour(5), hour(6)]
    assert books.kept()[hour(6)] == "announcing"


def test_a_task_that_ended_without_success_has_announced_nothing(books: Books, airflow: Airflow) -> None:
    books.until(3.5)
    assert airflow.run(operator(), "r1", ends="failed") == [hour(0), hour(1), hour(2)]
    assert airflow.run(operator(), "r2") == [hour(0), hour(1), hour(2)]
    assert airflow.run(operator(), "r3") is None
    assert airflow.told() == [hour(0), hour(1), hour(2)]


def test_a_retry_announces_what_its_first_try_did_not(books: Books, airflow: Airflow) -> None:
    books.until(2.5)
    assert airflow.run(operator(), "r1", ends="up_for_retry") == [hour(0), hour(1)]
    # Another run leaves it to the retry.
    assert airflow.run(operator(), "r2") is None
    books.until(3.5)
    assert airflow.run(operator(), "r1") == [hour(0), hour(1), hour(2)]


def test_a_task_that_succeeded_and_is_cleared_announces_nothing_twice(books: Books, airflow: Airflow) -> None:
    books.until(2.5)
    assert airflow.run(operator(), "r1") == [hour(0), hour(1)]
    assert airflow.run(operator(), "r1") is None


def test_a_task_that_is_still_on_its_way_keeps_its_claim(books: Books, airflow: Airflow) -> None:
    books.until(2.5)
    assert airflow.run(operator(), "r1", ends="running") == [hour(0), hour(1)]
    books.until(3.5)
    assert airflow.run(operator(), "r2") == [hour(2)]
    # Its run was deleted.
    del airflow.states["r1"]
    assert airflow.run(operator(), "r3") == [hour(0), hour(1)]


def test_a_cleanup_makes_no_hour_forgotten(books: Books, airflow: Airflow) -> None:
    books.until(2.5)
    assert airflow.run(operator(), "r1") == [hour(0), hour(1)]
    books.until(5.5, first=2.5)
    assert airflow.run(operator(), "r2", ends="failed") == [hour(2), hour(3), hour(4)]
    books.until(10.5, first=9)
    books.rows.sql("DELETE FROM etl.batch_tracker WHERE batch_id < 2")
    assert airflow.run(operator(), "r3") == [hour(number) for number in range(2, 10)]
    assert airflow.run(operator(), "r4") is None
    books.until(14.5, first=13)
    books.rows.sql("DELETE FROM etl.batch_tracker WHERE batch_id < 3")
    assert airflow.run(operator(), "r5") == [hour(number) for number in range(10, 14)]


def test_why_nothing_is_complete_is_said(books: Books, airflow: Airflow) -> None:
    books.until(2.5)
    books.rows.sql("UPDATE etl.pipeline_run SET state = 'stopped'")
    with pytest.raises(AirflowSkipException, match="no run has finished since"):
        operator().execute({"ti": SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=-1, id=uuid.uuid4())})


def test_two_assets_do_not_know_of_each_other(books: Books, airflow: Airflow) -> None:
    books.until(26)
    assert len(airflow.run(operator(), "r1") or []) == 25
    books.rows.sql("UPDATE etl.complete_partition SET asset = 'hours'")
    days = operator(grain="day", timezone="Europe/Berlin")
    assert airflow.run(days, "r2") == ["2026-03-01"]


def test_some_at_once_and_never_too_many(books: Books, airflow: Airflow) -> None:
    books.until(6.5)
    assert airflow.run(operator(max_per_run=2), "r1") == [hour(0), hour(1)]
    assert airflow.run(operator(max_per_run="3"), "r2") == [hour(2), hour(3), hour(4)]
    # One event of 1975.
    books.commit(datetime(1975, 1, 1, tzinfo=UTC), DAY + timedelta(hours=8))
    with pytest.raises(AirflowFailException, match="since="):
        airflow.run(operator(), "r3")
    assert airflow.run(operator(since="2026-03-01T05:30:00Z"), "r4") == [hour(5), hour(6)]


def test_events_of_the_future_announce_nothing(books: Books, airflow: Airflow) -> None:
    now = datetime.now(UTC)
    books.commit(now - timedelta(hours=3), now + timedelta(days=365))
    with pytest.raises(AirflowFailException, match="ahead of the server's clock"):
        airflow.run(operator(), "r1")
    # Within what clocks may differ by: an hour that has not ended by the server's is not complete.
    books.rows.sql("DELETE FROM etl.batch_tracker")
    books.commit(now - timedelta(hours=3), now + timedelta(minutes=65))
    keys = airflow.run(operator(), "r2") or []
    assert len(keys) == 3
    assert datetime.fromisoformat(keys[-1]) + timedelta(hours=1) <= now + timedelta(minutes=1)


def test_a_target_that_was_started_over_announces_again_only_where_it_shall(books: Books, airflow: Airflow) -> None:
    books.until(2.5)
    assert airflow.run(operator(), "r1") == [hour(0), hour(1)]
    books.rows.sql(
        "INSERT INTO etl.pipeline_query (pipeline_id, query_id, checkpoint_location, origin, seeded_from, run_id, "
        "epoch) VALUES ('orders', 'q2', '/c2', 'accepted', 'q', 'r1', 2)"
    )
    books.commit(DAY, DAY + timedelta(hours=3.5), "q2")
    assert airflow.run(operator(), "r2") == [hour(2)]
    assert airflow.run(operator(announce_again="true"), "r3") == [hour(0), hour(1)]
    assert airflow.run(operator(announce_again="true"), "r4") is None


def test_bad_parameters_are_said(books: Books, airflow: Airflow) -> None:
    books.until(2.5)
    for wrong in ({"grain": "week"}, {"timezone": "Moon"}, {"since": "yesterday"}, {"max_per_run": 0}):
        with pytest.raises(AirflowFailException):
            airflow.run(operator(**wrong), "r1")
    with pytest.raises(AirflowFailException, match="pipelines such as orders"):
        airflow.run(operator(pipeline="oders"), "r1")
    assert books.kept() == {}


def test_it_can_be_templated() -> None:
    made = operator(since="{{ params.since }}")
    assert set(made.template_fields) >= {"pipeline", "grain", "since", "announce_again"}
    assert operator(since="None").request().since is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(steps=some.lists(some.tuples(some.integers(0, 3), some.sampled_from(
    ["success", "success", "failed", "running", "up_for_retry", "retry", "finish"])), max_size=12))  # fmt: skip
def test_each_hour_is_stored_once_however_tasks_end(
    books: Books, airflow: Airflow, steps: list[tuple[int, str]]
) -> None:
    books.rows.sql("TRUNCATE etl.complete_partition, etl.batch_tracker CASCADE")
    airflow.events.clear()
    airflow.states.clear()
    end, pending = 0.5, {}
    books.until(end)
    for number, (hours, what) in enumerate(steps):
        if hours:
            books.until(end + hours, first=end)
            end += hours
        open_runs = [run_id for run_id, state in airflow.states.items() if state in ("running", "up_for_retry")]
        if what == "finish" and open_runs and airflow.states[open_runs[0]] == "running":
            # What it wanted to announce is stored at last.
            airflow.events += [airflow._event(key, open_runs[0]) for key in pending[open_runs[0]]]
            airflow.states[open_runs[0]] = "success"
        elif what == "retry" and open_runs:
            airflow.run(operator(), open_runs[0])
        elif what not in ("finish", "retry"):
            pending[f"r{number}"] = airflow.run(operator(), f"r{number}", ends=what) or []
    for run_id, state in airflow.states.items():
        if state in ("running", "up_for_retry"):
            airflow.states[run_id] = "failed"
    airflow.run(operator(), "last")
    assert sorted(airflow.told()) == [hour(number) for number in range(int(end - 0.2))]


def test_a_plain_asset_will_do(books: Books, airflow: Airflow) -> None:
    made = CompletePartitionsOperator(task_id="t", pipeline="orders", asset=Asset("orders/hours"))
    assert made.outlets == [Asset("orders/hours")]
