"""A task that lets go of its driver: what it refuses, what it submits, and how it goes on, or does not."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowTaskTimeout,
    TaskDeferralTimeout,
    TaskDeferred,
)
from ledger_rows import LedgerRows
from master_rest import MasterRest
from requests.auth import HTTPBasicAuth

from airflow_etl_provider.deferred_run import STATE_KEY
from airflow_etl_provider.hooks.ledger import LedgerHook
from airflow_etl_provider.operators.streaming_pipeline import StreamingPipelineOperator
from airflow_etl_provider.triggers.pipeline_run import PipelineRunTrigger
from spark_jobs.contracts.errors import TransientError
from spark_jobs.contracts.run_request import RunResult
from spark_jobs.contracts.tracker import runs
from spark_jobs.contracts.tracker.connect import connect

if TYPE_CHECKING:
    from tests.conftest import Database

STORE = {"spark.hadoop.hadoop.security.credential.provider.path": "jceks://hdfs/etl.jceks"}
WAITS = "spark.yarn.submit.waitAppCompletion"
YARN = "spark://yarn?deploy-mode=cluster"
GONE = {"error": "Trigger timeout"}


def operator(pipeline: Any, **given: Any) -> StreamingPipelineOperator:
    given = {"spark_conn_id": "cluster", "conf": STORE, "deferrable": True, **given}
    return StreamingPipelineOperator(task_id="run", pipeline=pipeline, **given)


@pytest.mark.parametrize(
    ("uri", "given", "words"),
    [
        ("spark://local", {}, "master local, deploy mode client"),
        ("spark://local?deploy-mode=cluster", {}, "master local, deploy mode cluster"),
        ("spark://spark%3A%2F%2Fmaster:7077", {}, "deploy mode client"),
        (YARN, {}, "deferrable=True without yarn_track_via_rm_api"),
        (YARN, {"yarn_track_via_rm_api": True, "yarn_rm_auth": HTTPBasicAuth("me", "x")}, "yarn_rm_auth"),
        (YARN, {"yarn_track_via_rm_api": True, "conf": {**STORE, WAITS: "true"}}, f"{WAITS}=true"),
    ],
    ids=["local", "local cluster", "client", "yarn", "yarn's login", "a submit that waits"],
)
def test_a_driver_that_cannot_be_let_go_is_refused(
    context: Any,
    pipeline: dict[str, Any],
    connections: Callable[..., None],
    database: Database,
    uri: str,
    given: dict[str, Any],
    words: str,
) -> None:
    connections(cluster=uri, warehouse=database.airflow_uri)
    with pytest.raises(AirflowFailException) as raised:
        operator(pipeline, **given).execute(context)
    assert words in str(raised.value)
    assert "2 (CONFIG_INVALID)" in str(raised.value)
    with database.connect() as conn:  # and nothing was registered
        assert conn.execute("SELECT to_regclass('etl.pipeline_run')").fetchone() == (None,)


@pytest.fixture
def master(connections: Callable[..., None], database: Database) -> Iterator[MasterRest]:
    with MasterRest() as rest:
        connections(cluster=rest.spark_uri, warehouse=database.airflow_uri)
        yield rest


@pytest.fixture
def rows(database: Database) -> LedgerRows:
    return LedgerRows(database.airflow_uri)


@pytest.fixture
def submit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A spark-submit that notes its words and environment, and says what a standalone cluster's says."""
    noted = tmp_path / "noted"
    noted.mkdir()
    script = tmp_path / "spark-submit"
    script.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" > {noted}/words\nenv > {noted}/environment\n'
        'echo "ClientEndpoint: Driver successfully submitted as driver-20260301060000-0007"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return noted


JOB = "driver-20260301060000-0007"


def deferred(op: StreamingPipelineOperator, context: Any) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as raised:
        op.execute(context)
    return raised.value


def resume(given: TaskDeferred, pipeline: Any, context: Any, event: dict[str, Any], **changes: Any) -> Any:
    """Go on in another process, which has nothing but what Airflow keeps."""
    op = operator(pipeline, **changes)
    assert given.method_name == "execute_complete"
    return op.resume_execution("execute_complete", {**(given.kwargs or {}), "event": event}, context)


def seen(driver: str = "ended") -> dict[str, Any]:
    return {"status": "satisfied", "message": f"what was seen: {driver}", "value": {"driver": driver}}


def end(rows: LedgerRows, state: Any = "finished", exit_code: int = 0, **given: Any) -> str:
    """Run as the driver would: one micro-batch, and the end."""
    run_id: str = rows.sql("SELECT newest_run_id FROM etl.pipeline")[0][0]
    with contextlib.closing(connect(rows.connection, application_name="test")) as conn:
        runs.claim_epoch(conn, "etl", "orders", run_id)
        conn.execute(
            "INSERT INTO etl.pipeline_query (pipeline_id, query_id, checkpoint_location, origin, run_id, epoch) "
            "VALUES ('orders', 'q', '/c', 'fresh', %s, 1)",
            (run_id,),
        )
        rows.commit(0, run_id=run_id)
        assert runs.finish_run(conn, "etl", run_id, state, exit_code, **given)
    return run_id


def states(rows: LedgerRows) -> list[Any]:
    return [state for (state,) in rows.sql("SELECT state FROM etl.pipeline_run ORDER BY registered_at")]


def test_it_registers_submits_and_lets_go(
    context: Any, pipeline: dict[str, Any], master: MasterRest, submit: Path, rows: LedgerRows
) -> None:
    let_go = deferred(operator(pipeline), context)
    [(run_id, state)] = rows.sql("SELECT run_id, state FROM etl.pipeline_run")
    assert state == "registered"
    assert isinstance(let_go.trigger, PipelineRunTrigger)
    path, arguments = let_go.trigger.serialize()
    assert path.endswith(".PipelineRunTrigger")
    assert (arguments["run"]["run_id"], arguments["run"]["job_id"]) == (run_id, JOB)
    assert let_go.timeout is None
    # A try that begins anew was asked for: it finds what to stop, and no driver to wait for.
    assert context["task_state_store"][STATE_KEY] == arguments["run"]
    assert "spark_job_id" not in context["task_state_store"]
    assert master.killed == []


def test_a_ledger_that_is_away_for_a_moment_leaves_no_driver_to_itself(
    context: Any,
    pipeline: dict[str, Any],
    master: MasterRest,
    submit: Path,
    rows: LedgerRows,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("airflow_etl_provider.operators.deferrable_submit._AGAIN_SECONDS", 0.05)
    ask, away = LedgerHook.request, [TransientError("The server is starting up")] * 2

    def request(ledger: LedgerHook, run_id: str) -> Any:
        if away:
            raise away.pop()
        return ask(ledger, run_id)

    monkeypatch.setattr(LedgerHook, "request", request)
    let_go = deferred(operator(pipeline), context)
    assert not away
    assert isinstance(let_go.trigger, PipelineRunTrigger)
    assert context["task_state_store"][STATE_KEY]["job_id"] == JOB


def test_a_standalone_cluster_gets_a_driver_that_it_takes_and_no_secret(
    context: Any, pipeline: dict[str, Any], master: MasterRest, submit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", "hush-7")
    deferred(operator(pipeline, log_level="DEBUG"), context)
    words = (submit / "words").read_text().splitlines()
    runner = words.index("org.apache.spark.deploy.PythonRunner")
    assert words[runner - 1] == "--class"
    jar, application, py_files, first = words[runner + 1 : runner + 5]
    assert Path(jar).name.startswith("spark-core_")
    assert (Path(application).name, py_files, first) == ("run_pipeline.py", "", "--run-id")
    assert words[-2:] == ["--log-level", "DEBUG"]
    environment = (submit / "environment").read_text()
    # The client of a standalone cluster hands all of it to the master.
    assert "PATH=" in environment
    assert "AIRFLOW" not in environment
    assert "hush-7" not in environment


def test_it_goes_on_as_if_it_had_waited(
    context: Any, pipeline: dict[str, Any], master: MasterRest, submit: Path, rows: LedgerRows
) -> None:
    let_go = deferred(operator(pipeline), context)
    run_id = end(rows)
    result = resume(let_go, pipeline, context, seen())
    told = RunResult.model_validate(result)
    assert (told.run_id, told.state, told.batches, told.rows["written"]) == (run_id, "finished", 1, 10)
    [emitted] = context["outlet_events"]._dict.values()
    [event] = emitted.asset_alias_events
    assert event.extra["run_id"] == run_id
    assert STATE_KEY not in context["task_state_store"]
    assert master.killed == []


@pytest.mark.parametrize(("retryable", "kind"), [(True, AirflowException), (False, AirflowFailException)])
def test_a_run_that_failed_fails_the_task_with_its_own_words(
    context: Any,
    pipeline: dict[str, Any],
    master: MasterRest,
    submit: Path,
    rows: LedgerRows,
    retryable: bool,
    kind: type[Exception],
) -> None:
    let_go = deferred(operator(pipeline), context)
    end(rows, "failed", 7, error={"what": "The table has gone", "retryable": retryable})
    with pytest.raises(AirflowException, match="The table has gone") as raised:
        resume(let_go, pipeline, context, seen())
    assert type(raised.value) is kind
    assert STATE_KEY not in context["task_state_store"]


@pytest.mark.parametrize("driver", ["silent", "not_started"])
def test_a_driver_that_is_gone_is_fenced_and_killed_and_may_be_tried_again(
    context: Any, pipeline: dict[str, Any], master: MasterRest, submit: Path, rows: LedgerRows, driver: str
) -> None:
    let_go = deferred(operator(pipeline), context)
    with pytest.raises(AirflowException, match=f"what was seen: {driver}") as raised:
        resume(let_go, pipeline, context, seen(driver))
    assert not isinstance(raised.value, AirflowFailException)
    assert states(rows) == ["fenced"]
    assert rows.sql("SELECT newest_run_id FROM etl.pipeline") == [(None,)]
    assert master.killed == [JOB]
    assert STATE_KEY not in context["task_state_store"]


def test_a_driver_that_was_quicker_than_its_end_has_ended_well(
    context: Any, pipeline: dict[str, Any], master: MasterRest, submit: Path, rows: LedgerRows
) -> None:
    let_go = deferred(operator(pipeline), context)
    run_id = end(rows)
    assert resume(let_go, pipeline, context, seen("silent"))["run_id"] == run_id
    assert master.killed == []


def test_execution_timeout_counts_from_the_start_of_the_try(
    context: Any, pipeline: dict[str, Any], master: MasterRest, submit: Path, rows: LedgerRows
) -> None:
    started = datetime.now(UTC) - timedelta(minutes=20)
    context["ti"].start_date = started
    let_go = deferred(operator(pipeline, execution_timeout=timedelta(hours=1)), context)
    assert isinstance(let_go.trigger, PipelineRunTrigger)
    assert datetime.fromisoformat(let_go.trigger.give_up_at or "") == started + timedelta(hours=1)
    assert let_go.timeout is not None
    # Airflow's own is for a triggerer that is gone.
    assert timedelta(minutes=41) < let_go.timeout <= timedelta(minutes=42)
    with pytest.raises(AirflowTaskTimeout, match="still running"):
        resume(let_go, pipeline, context, {"status": "timeout", "message": "still running"})
    assert states(rows) == ["fenced"]
    assert master.killed == [JOB]


def test_airflows_own_timeout_stops_the_driver(
    context: Any, pipeline: dict[str, Any], master: MasterRest, submit: Path, rows: LedgerRows
) -> None:
    deferred(operator(pipeline), context)
    with pytest.raises(TaskDeferralTimeout):
        operator(pipeline).resume_execution("__fail__", GONE, context)
    assert states(rows) == ["fenced"]
    assert master.killed == [JOB]


def test_airflows_own_timeout_does_not_fail_a_run_that_has_finished(
    context: Any, pipeline: dict[str, Any], master: MasterRest, submit: Path, rows: LedgerRows
) -> None:
    deferred(operator(pipeline), context)
    run_id = end(rows)
    assert operator(pipeline).resume_execution("__fail__", GONE, context)["run_id"] == run_id
    assert master.killed == []


def test_a_trigger_that_cannot_look_stops_the_driver(
    context: Any, pipeline: dict[str, Any], master: MasterRest, submit: Path, rows: LedgerRows
) -> None:
    let_go = deferred(operator(pipeline), context)
    with pytest.raises(AirflowException, match="another version"):
        resume(let_go, pipeline, context, {"status": "error", "message": "a ledger of another version"})
    assert master.killed == [JOB]


def test_a_cleared_task_stops_what_nobody_has_stopped_and_runs_anew(
    context: Any, pipeline: dict[str, Any], master: MasterRest, submit: Path, rows: LedgerRows
) -> None:
    """No triggerer lived when it was cleared: its driver still runs."""
    deferred(operator(pipeline), context)
    deferred(operator(pipeline), context)
    assert states(rows) == ["fenced", "registered"]
    assert master.killed == [JOB]


def test_a_driver_that_a_lost_worker_left_is_waited_for_without_a_second_submit(
    context: Any, pipeline: dict[str, Any], master: MasterRest, submit: Path, rows: LedgerRows
) -> None:
    first = deferred(operator(pipeline), context)
    run_id = first.trigger.serialize()[1]["run"]["run_id"]
    # As it was between the submit and the deferral.
    context["task_state_store"].pop(STATE_KEY)
    context["task_state_store"].update(spark_job_id=JOB, etl_run_id=run_id)
    (submit / "words").unlink()
    again = deferred(operator(pipeline), context)
    assert again.trigger.serialize()[1]["run"] == first.trigger.serialize()[1]["run"]
    assert not (submit / "words").exists()
    assert states(rows) == ["registered"]
    assert master.killed == []


def test_a_run_that_a_newer_one_has_fenced_leaves_no_driver(
    context: Any, pipeline: dict[str, Any], master: MasterRest, submit: Path, rows: LedgerRows
) -> None:
    let_go = deferred(operator(pipeline), context)
    request = LedgerHook("warehouse").request(let_go.trigger.serialize()[1]["run"]["run_id"])
    LedgerHook("warehouse").register(request.model_copy(update={"run_id": "newer"}))
    with pytest.raises(AirflowException, match="a newer run of the pipeline was started"):
        resume(let_go, pipeline, context, seen())
    assert master.killed == [JOB]
    assert states(rows) == ["fenced", "registered"]
    assert rows.sql("SELECT newest_run_id FROM etl.pipeline") == [("newer",)]


def test_a_task_that_is_killed_while_it_goes_on_has_its_driver_killed(
    context: Any, pipeline: dict[str, Any], master: MasterRest, submit: Path, rows: LedgerRows
) -> None:
    let_go = deferred(operator(pipeline), context)
    end(rows)
    resumed = operator(pipeline)
    resumed.resume_execution("execute_complete", {**(let_go.kwargs or {}), "event": seen()}, context)
    assert master.killed == []
    resumed.on_kill()
    assert master.killed == [JOB]


def test_a_cluster_that_does_not_answer_is_asked_again_by_the_next_try(
    context: Any, pipeline: dict[str, Any], master: MasterRest, submit: Path, rows: LedgerRows
) -> None:
    let_go = deferred(operator(pipeline), context)
    master.refuses = "Not the leader"
    with pytest.raises(AirflowException, match="silent"):
        resume(let_go, pipeline, context, seen("silent"))
    assert states(rows) == ["fenced"]
    master.refuses = ""
    deferred(operator(pipeline), context)
    assert master.killed == [JOB, JOB]
    assert states(rows) == ["fenced", "registered"]
