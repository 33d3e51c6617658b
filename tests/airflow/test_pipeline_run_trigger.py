"""Waiting in the triggerer for a run's end, and what becomes of the run when nobody waits any more."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import GetTaskStates, TaskStatesResult
from airflow.triggers.base import TriggerEvent
from ledger_rows import LedgerRows
from master_rest import MasterRest
from server_age import long_up

from airflow_etl_provider.deferred_run import DeferredRun
from airflow_etl_provider.triggers.pipeline_run import PipelineRunTrigger
from spark_jobs.contracts.run_request import RunRequest
from spark_jobs.contracts.tracker import runs
from spark_jobs.contracts.tracker.connect import connect

# Nothing here is looked at a second time because so much time has passed.
NEVER = 86_400.0
PATIENCE = 60.0
STATE = "SELECT state FROM etl.pipeline_run WHERE run_id = %s"


@pytest.fixture
def master(connections: Callable[..., None]) -> Iterator[MasterRest]:
    with MasterRest() as rest:
        connections(cluster=rest.spark_uri)
        yield rest


def trigger(run_id: str = "r1", **changes: Any) -> PipelineRunTrigger:
    run = DeferredRun(
        pipeline_id="orders",
        run_id=run_id,
        ledger_conn_id="warehouse",
        tracker_schema="etl",
        connection_params={},
        spark_conn_id="cluster",
        job_id="driver-1",
    )
    path, arguments = PipelineRunTrigger(**{"run": run.to_json(), "poll_seconds": NEVER, **changes}).serialize()
    assert path == "airflow_etl_provider.triggers.pipeline_run.PipelineRunTrigger"
    # As another triggerer makes it again.
    made = PipelineRunTrigger(**arguments)
    made.task_instance = SimpleNamespace(dag_id="shop", task_id="run", run_id="manual", map_index=-1)  # type: ignore[assignment]
    assert made.serialize() == (path, arguments)
    return made


async def event_of(waiting: PipelineRunTrigger) -> TriggerEvent:
    async with contextlib.aclosing(waiting.run()) as events:  # type: ignore[type-var]
        return await anext(events)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, PATIENCE))


async def listening(rows: LedgerRows) -> None:
    question = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'UNLISTEN%%' AND state = 'idle'"
    while not (await asyncio.to_thread(rows.sql, question))[0][0]:
        await asyncio.sleep(0.02)


def finish(rows: LedgerRows, run_id: str = "r1", state: Any = "finished") -> None:
    with contextlib.closing(connect(rows.connection, application_name="test")) as conn:
        assert runs.finish_run(conn, "etl", run_id, state, 0)


def register(rows: LedgerRows, run_id: str) -> None:
    with contextlib.closing(connect(rows.connection, application_name="test")) as conn:
        runs.register_run(conn, "etl", RunRequest(run_id=run_id, pipeline_id="orders", config={}, started_by="test"))


@pytest.mark.parametrize("state", ["finished", "failed", "stopped"])
def test_the_commit_of_its_end_wakes_it(rows: LedgerRows, state: str) -> None:
    async def work() -> TriggerEvent:
        waiting = asyncio.create_task(event_of(trigger()))
        await listening(rows)
        await asyncio.to_thread(rows.commit, 0)
        await asyncio.sleep(0)
        assert not waiting.done()
        await asyncio.to_thread(finish, rows, "r1", state)
        return await waiting

    payload = run(work()).payload
    assert payload["status"] == "satisfied"
    assert payload["value"] == {"run_id": "r1", "run_state": state, "driver": "ended"}


def test_a_run_that_a_newer_one_has_fenced_has_ended(rows: LedgerRows) -> None:
    register(rows, "r2")
    assert run(event_of(trigger())).payload["value"]["driver"] == "ended"


def test_a_driver_that_fell_silent_is_noticed(rows: LedgerRows) -> None:
    with contextlib.closing(connect(rows.connection, application_name="test")) as conn:
        long_up(conn)

    async def work() -> TriggerEvent:
        waiting = asyncio.create_task(event_of(trigger(poll_seconds=0.2)))
        await listening(rows)
        assert not waiting.done()
        silent = "UPDATE etl.pipeline_run SET heartbeat_at = now() - interval '10 minutes'"
        await asyncio.to_thread(rows.sql, silent)
        return await waiting

    event = run(work())
    assert event.payload["value"]["driver"] == "silent"
    assert "no sign of life for 10 min" in event.payload["message"]


def test_a_driver_that_never_came_up_is_noticed(rows: LedgerRows) -> None:
    register(rows, "r2")
    event = run(event_of(trigger("r2", startup_timeout_seconds=0.5, poll_seconds=0.2)))
    assert event.payload["value"]["driver"] == "not_started"
    assert "longer than" in event.payload["message"]


def test_a_driver_that_may_still_come_up_is_waited_for_until_time_is_over(rows: LedgerRows) -> None:
    register(rows, "r2")
    over = (datetime.now(UTC) + timedelta(seconds=0.3)).isoformat()
    event = run(event_of(trigger("r2", give_up_at=over)))
    assert event.payload["status"] == "timeout"
    assert "waits for its driver" in event.payload["message"]


class Airflow:
    """Answers a trigger's question for its task's state as the triggerer's supervisor does."""

    def __init__(self, state: str | None, *, index: int = -1) -> None:
        self.state = state
        self.name = "run" if index < 0 else f"run_{index}"

    def send(self, message: GetTaskStates) -> TaskStatesResult:
        assert (message.dag_id, message.task_ids, message.run_ids) == ("shop", ["run"], ["manual"])
        return TaskStatesResult(task_states={"manual": {self.name: self.state}})


class Silent:
    def send(self, message: GetTaskStates) -> TaskStatesResult:
        raise RuntimeError("the API server is away")


@pytest.fixture
def airflow_says(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    return lambda answers: monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", answers, raising=False)


@pytest.mark.parametrize("index", [-1, 3])
@pytest.mark.parametrize("state", [None, "failed", "success", "scheduled", "running"])
def test_a_task_that_was_killed_takes_its_driver_along(
    rows: LedgerRows, master: MasterRest, airflow_says: Callable[[Any], None], state: str | None, index: int
) -> None:
    airflow_says(Airflow(state, index=index))
    run(trigger().on_kill())
    assert rows.sql(STATE, "r1") == [("fenced",)]
    assert rows.sql("SELECT newest_run_id FROM etl.pipeline") == [(None,)]
    assert master.killed == ["driver-1"]


@pytest.mark.parametrize("answers", [Airflow("deferred"), Airflow("deferred", index=3), Silent()])
def test_another_triggerer_that_takes_over_harms_nobody(
    rows: LedgerRows, master: MasterRest, airflow_says: Callable[[Any], None], answers: Any
) -> None:
    airflow_says(answers)
    run(trigger().on_kill())
    assert rows.sql(STATE, "r1") == [("running",)]
    assert rows.sql("SELECT newest_run_id FROM etl.pipeline") == [("r1",)]
    assert master.killed == []


def test_a_cleared_task_that_waits_again_does_not_spare_the_driver_of_the_try_before(
    rows: LedgerRows, master: MasterRest, airflow_says: Callable[[Any], None]
) -> None:
    register(rows, "r2")
    airflow_says(Airflow("deferred"))
    run(trigger().on_kill())
    assert master.killed == ["driver-1"]
    # The newer run's right is its own.
    assert rows.sql("SELECT newest_run_id FROM etl.pipeline") == [("r2",)]


class Slow(Airflow):
    """Answers when it is let."""

    def __init__(self) -> None:
        super().__init__("failed")
        self.asked, self.may_answer = threading.Event(), threading.Event()

    def send(self, message: GetTaskStates) -> TaskStatesResult:
        self.asked.set()
        assert self.may_answer.wait(PATIENCE)
        return super().send(message)


def test_airflow_that_cancels_again_and_again_keeps_no_driver_alive(
    rows: LedgerRows, master: MasterRest, airflow_says: Callable[[Any], None]
) -> None:
    """Until ``on_kill`` returns, Airflow 3.3 cancels it with each turn of the triggerer's loop."""
    airflow = Slow()
    airflow_says(airflow)

    async def work() -> None:
        killing = asyncio.create_task(asyncio.wait_for(trigger().on_kill(), 30))
        await asyncio.to_thread(airflow.asked.wait, PATIENCE)
        for _ in range(3):
            killing.cancel()
            await asyncio.sleep(0.05)
        airflow.may_answer.set()
        await asyncio.wait([killing])
        while not master.killed:
            await asyncio.sleep(0.02)

    run(work())
    assert master.killed == ["driver-1"]
    assert rows.sql(STATE, "r1") == [("fenced",)]


def test_a_ledger_that_is_away_does_not_keep_the_driver_alive(
    rows: LedgerRows, master: MasterRest, airflow_says: Callable[[Any], None], connections: Callable[..., None]
) -> None:
    airflow_says(Airflow("failed"))
    connections(warehouse="postgres://loader:x@127.0.0.1:1/shop")
    run(trigger().on_kill())
    assert master.killed == ["driver-1"]


@pytest.mark.parametrize(
    ("why", "may_run"),
    [("Not the leader", True), ("Driver driver-1 has already finished or does not exist", False)],
    ids=["refused", "ended before"],
)
def test_a_cluster_that_refuses_is_told_of(
    rows: LedgerRows,
    master: MasterRest,
    airflow_says: Callable[[Any], None],
    caplog: pytest.LogCaptureFixture,
    why: str,
    may_run: bool,
) -> None:
    airflow_says(Airflow("failed"))
    master.refuses = why
    run(trigger().on_kill())
    assert rows.sql(STATE, "r1") == [("fenced",)]
    assert ("driver-1 of run r1 may still run" in caplog.text) == may_run
