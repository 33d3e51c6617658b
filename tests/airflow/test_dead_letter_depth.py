"""The sensor for dead letters: few enough, or so many; poked and deferred."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSensorTimeout, TaskDeferred
from ledger_rows import LedgerRows

from airflow_etl_provider.sensors.dead_letter_depth import DeadLetterDepthSensor
from airflow_etl_provider.triggers.ledger import LedgerTrigger

TALLY = (
    "INSERT INTO etl.dead_letter_tally (pipeline_id, status, stage, error_class, letters) VALUES (%s, %s, %s, 'X', %s)"
)


def sensor(**changes: Any) -> DeadLetterDepthSensor:
    return DeadLetterDepthSensor(
        **{"task_id": "wait", "pipeline": "orders", "poke_interval": 0.05, "timeout": 0.2, **changes}
    )


@pytest.fixture
def letters(rows: LedgerRows) -> LedgerRows:
    """Seven letters: of orders four that wait, one that is parked and one at home; one of others."""
    rows.commit(0)
    for values in (
        ("orders", "pending", "parse", 4),
        ("orders", "parked", "write", 1),
        ("orders", "replayed", "parse", 1),
        ("others", "pending", "parse", 1),
    ):
        rows.sql(TALLY, *values)
    return rows


@pytest.mark.parametrize("deferrable", [False, True], ids=["poke", "deferrable"])
@pytest.mark.parametrize(
    ("choice", "number"),
    [
        ({}, 5),
        ({"pipeline": None}, 6),
        ({"stages": ["write"]}, 1),
        ({"statuses": ["replayed"]}, 1),
        ({"error_classes": ["Y"]}, 0),
    ],
)
def test_both_thresholds_count_the_same_letters(
    letters: LedgerRows, context: Any, choice: dict[str, Any], number: int, deferrable: bool
) -> None:
    for threshold in ({"at_most": number}, {"at_least": number}):
        seen = sensor(deferrable=deferrable, **choice, **threshold).execute(context)
        assert seen["letters"] == number
        assert sum(kind["letters"] for kind in seen["counts"]) == number
    with pytest.raises(AirflowSensorTimeout, match=f"Last seen: .*: {number} dead letters"):
        sensor(at_least=number + 1, **choice).execute(context)


@pytest.mark.parametrize("deferrable", [False, True], ids=["poke", "deferrable"])
@pytest.mark.parametrize(
    ("goal", "words"),
    [
        ({}, "one threshold"),
        ({"at_most": 1, "at_least": 1}, "one threshold"),
        ({"at_most": -1}, "at_most"),
        ({"at_most": 0, "statuses": ["lost"]}, "statuses"),
        ({"at_most": 0, "statuses": []}, "statuses"),
        ({"at_most": 0, "pipeline": "oders"}, "pipelines such as orders"),
        ({"at_most": 0, "tracker_schema": "elsewhere"}, "elsewhere"),
    ],
)
def test_what_can_never_hold_fails_at_once(
    letters: LedgerRows, context: Any, goal: dict[str, Any], words: str, deferrable: bool
) -> None:
    with pytest.raises(AirflowFailException, match=words):
        sensor(deferrable=deferrable, **goal).execute(context)


def test_a_replays_commit_wakes_who_waits_for_its_pipelines_letters(letters: LedgerRows, context: Any) -> None:
    with pytest.raises(TaskDeferred) as deferred:
        # Nobody looks a second time by the clock.
        sensor(at_most=1, deferrable=True, poke_interval=86_400, timeout=86_400).execute(context)
    trigger = deferred.value.trigger
    assert isinstance(trigger, LedgerTrigger)

    async def work() -> Any:
        async with contextlib.aclosing(trigger.run()) as events:  # type: ignore[type-var]
            waiting = asyncio.ensure_future(anext(events))
            question = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'UNLISTEN%%' AND state = 'idle'"
            while not (await asyncio.to_thread(letters.sql, question))[0][0]:
                await asyncio.sleep(0.02)
            await asyncio.to_thread(letters.sql, TALLY, "orders", "pending", "parse", -4)
            replay = "orders/replay/9d5ed678-fe57-4bc6-a1ef-6c3e7f8f7b0e"
            await asyncio.to_thread(letters.start, replay, "r2")
            await asyncio.to_thread(letters.commit, 0, replay, "r2")
            return await waiting

    event = asyncio.run(asyncio.wait_for(work(), 60))
    assert event.payload["value"]["letters"] == 1
