"""Sensors of the ledger: poke and deferred, what they say, and when they give up."""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferralTimeout,
    TaskDeferred,
)
from ledger_rows import LedgerRows

from airflow_etl_provider.sensors.batch_gap import BatchGapSensor
from airflow_etl_provider.sensors.ledger import LedgerSensor
from airflow_etl_provider.sensors.ledger_balance import LedgerBalanceSensor
from airflow_etl_provider.sensors.pipeline_freshness import PipelineFreshnessSensor
from airflow_etl_provider.sensors.streaming_query_progress import StreamingQueryProgressSensor
from airflow_etl_provider.sensors.watermark import WatermarkSensor
from airflow_etl_provider.triggers.ledger import LedgerTrigger

SENSORS: list[tuple[type[LedgerSensor], dict[str, Any]]] = [
    (BatchGapSensor, {}),
    (LedgerBalanceSensor, {}),
    (PipelineFreshnessSensor, {"younger_than": "1 hour"}),
    (StreamingQueryProgressSensor, {"batch_id": 0}),
]


def made(kind: type[LedgerSensor], **changes: Any) -> LedgerSensor:
    return kind(**{"task_id": "wait", "pipeline": "orders", "poke_interval": 0.05, "timeout": 0.2, **changes})


@pytest.mark.parametrize(("kind", "goal"), SENSORS, ids=[kind.__name__ for kind, _ in SENSORS])
@pytest.mark.parametrize("deferrable", [False, True], ids=["poke", "deferrable"])
def test_what_holds_succeeds_at_once(
    rows: LedgerRows, context: Any, kind: type[LedgerSensor], goal: dict[str, Any], deferrable: bool
) -> None:
    rows.commit(0)
    assert isinstance(made(kind, deferrable=deferrable, **goal).execute(context), dict)


@pytest.mark.parametrize(("kind", "goal"), SENSORS[:1] + SENSORS[2:], ids=["gap", "freshness", "progress"])
def test_what_does_not_hold_is_waited_for(
    rows: LedgerRows, context: Any, kind: type[LedgerSensor], goal: dict[str, Any]
) -> None:
    with pytest.raises(AirflowSensorTimeout, match=r"Last seen: orders: .*(ever|no micro-batch)"):
        made(kind, **goal).execute(context)
    before = datetime.now(UTC)
    with pytest.raises(TaskDeferred) as deferred:
        made(kind, deferrable=True, timeout=60, poke_interval=7, **goal).execute(context)
    trigger = deferred.value.trigger
    assert isinstance(trigger, LedgerTrigger)
    assert trigger.poll_seconds == 7
    assert trigger.give_up_at is not None
    assert before <= datetime.fromisoformat(trigger.give_up_at) - timedelta(seconds=60) <= datetime.now(UTC)
    # Airflow's own limit comes later: ours says what was seen.
    assert deferred.value.timeout == timedelta(seconds=180)


@pytest.mark.parametrize("deferrable", [False, True], ids=["poke", "deferrable"])
@pytest.mark.parametrize(
    ("kind", "goal", "words"),
    [
        (BatchGapSensor, {"pipeline": "oders"}, "pipelines such as orders"),
        (BatchGapSensor, {"tracker_schema": "elsewhere"}, "elsewhere"),
        (BatchGapSensor, {"ledger_conn_id": "nowhere"}, "nowhere"),
        (WatermarkSensor, {"through": "2026-03-01 06:00"}, "through"),
        (StreamingQueryProgressSensor, {}, "Nothing is waited for"),
        (StreamingQueryProgressSensor, {"offsets": "{"}, "not JSON"),
        (PipelineFreshnessSensor, {"younger_than": "soon"}, "younger_than"),
    ],
)
def test_what_can_never_hold_fails_without_a_retry(
    rows: LedgerRows, context: Any, kind: type[LedgerSensor], goal: dict[str, Any], words: str, deferrable: bool
) -> None:
    with pytest.raises(AirflowFailException, match=words):
        made(kind, deferrable=deferrable, **goal).execute(context)


def test_a_database_that_does_not_answer_is_asked_again(
    rows: LedgerRows, context: Any, connections: Callable[..., None]
) -> None:
    rows.commit(0)
    with socket.create_server(("127.0.0.1", 0)) as closed_soon:
        dead = f"postgres://me@127.0.0.1:{closed_soon.getsockname()[1]}/orders"
    connections(warehouse=dead)
    sensor = made(BatchGapSensor)
    with pytest.raises(AirflowSensorTimeout, match=r"Last seen: Connecting to .* failed"):
        sensor.execute(context)
    with pytest.raises(TaskDeferred) as deferred:
        made(BatchGapSensor, deferrable=True, poke_interval=0).execute(context)
    assert deferred.value.trigger.poll_seconds == 1
    assert not sensor.poke(context).is_done
    connections(warehouse=rows.airflow_uri)
    assert sensor.poke(context).is_done


def test_a_gap_fails_and_soft_fail_skips(rows: LedgerRows, context: Any) -> None:
    rows.commit(0)
    rows.commit(2)
    with pytest.raises(AirflowFailException, match="micro-batch 1 of query q is not in the ledger"):
        made(BatchGapSensor).execute(context)
    for way in ({}, {"deferrable": True}):
        with pytest.raises(AirflowSkipException, match="do not join up"):
            made(BatchGapSensor, soft_fail=True, **way).execute(context)


def test_what_the_trigger_saw_is_the_result(context: Any) -> None:
    sensor = made(BatchGapSensor)
    seen = {"status": "satisfied", "message": "3 join up", "value": {"batches": 3}}
    assert sensor.execute_complete(context, seen) == {"batches": 3}
    with pytest.raises(AirflowFailException, match="a hole"):
        sensor.execute_complete(context, {"status": "error", "message": "a hole"})
    with pytest.raises(AirflowSensorTimeout, match="Last seen: 2 of 3"):
        sensor.execute_complete(context, {"status": "timeout", "message": "2 of 3"})


@pytest.mark.parametrize("way", ["soft_fail", "never_fail"])
@pytest.mark.parametrize(
    ("event", "why"),
    [
        ({"status": "timeout", "message": "2 of 3"}, "Last seen: 2 of 3"),
        ({"status": "error", "message": "a hole"}, "a hole"),
    ],
    ids=["timeout", "error"],
)
def test_a_deferred_sensor_that_fails_softly_says_why(context: Any, event: dict[str, Any], why: str, way: str) -> None:
    sensor = made(BatchGapSensor, **{way: True})
    with pytest.raises(AirflowSkipException, match=why):
        sensor.resume_execution("execute_complete", {"event": event}, context)


def test_a_sensor_that_pokes_and_fails_softly_says_what_was_seen(rows: LedgerRows, context: Any) -> None:
    rows.commit(0)
    with pytest.raises(AirflowSkipException, match=r"timed out.* Last seen: orders: .*micro-batch 0 of 5"):
        made(StreamingQueryProgressSensor, batch_id=5, soft_fail=True).execute(context)


def test_a_triggerer_that_is_gone_times_out(context: Any) -> None:
    kwargs = {"error": "Trigger timeout", "traceback": None}
    with pytest.raises((AirflowSensorTimeout, TaskDeferralTimeout)):
        made(BatchGapSensor).resume_execution("__fail__", kwargs, context)


def test_a_pipeline_that_has_never_run_can_be_waited_for(rows: LedgerRows, context: Any) -> None:
    with pytest.raises(AirflowSensorTimeout, match="returns has never run"):
        made(BatchGapSensor, pipeline="returns", wait_for_first_run=True).execute(context)
    with pytest.raises(AirflowSensorTimeout, match="there is no ledger yet"):
        made(BatchGapSensor, tracker_schema="elsewhere", wait_for_first_run=True).execute(context)


def test_parameters_are_templates(rows: LedgerRows, context: Any) -> None:
    rows.commit(0)
    with DAG("watching", schedule=None):
        sensor = StreamingQueryProgressSensor(
            task_id="wait",
            pipeline="{{ params.pipeline }}",
            batch_id="{{ params.batch }}",
            since="{{ params.since }}",
            offsets='{"t": {"0": {{ params.batch + 1 }} }}',
        )
    sensor.render_template_fields(
        {"params": {"pipeline": "orders", "batch": 0, "since": datetime(2026, 1, 1, tzinfo=UTC)}}
    )
    assert sensor.execute(context)["batch_id"] == 0


def test_the_guides_example_is_a_dag() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "guides" / "watching.md"
    example = page.read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(example, names)
    assert [type(task).__name__ for task in (names["complete"], names["no_gap"], names["balanced"])] == [
        "WatermarkSensor",
        "BatchGapSensor",
        "LedgerBalanceSensor",
    ]
    assert names["no_gap"].deferrable
    assert names["no_gap"].condition().last == timedelta(days=2)
