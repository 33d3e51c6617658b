"""How long a real broker keeps what a real ledger says is unread; holes that its retention has made."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred
from source_ledger import SourceLedger

from airflow_etl_provider.hooks.ledger import LedgerHook
from airflow_etl_provider.sensors.retention_risk import RetentionRiskSensor
from sandbox.kafka import KafkaBroker, Record
from spark_jobs.contracts.watch.condition import AtLedger, AtSource, LedgerView, Seen
from spark_jobs.contracts.watch.retention_risk import RetentionRisk

Topics = Callable[..., str]


@pytest.fixture
def new_topic(kafka: KafkaBroker) -> Iterator[Topics]:
    """Makes topics of one partition by their settings."""
    made = []

    def create(**config: str) -> str:
        settings = {name.replace("_", "."): value for name, value in config.items()}
        made.append(kafka.create_topic(f"kept-{uuid.uuid4().hex[:8]}", config=settings))
        return made[-1]

    yield create
    for topic in made:
        kafka.delete_topic(topic)


@pytest.fixture
def ledger(
    database: Any, connections: Callable[..., None], pipeline: dict[str, Any], kafka: KafkaBroker
) -> Iterator[SourceLedger]:
    connections(warehouse=database.airflow_uri)
    options = {"kafka.bootstrap.servers": kafka.bootstrap_servers, "startingOffsets": "earliest"}
    extract = {"sourceType": "kafka", "schema": "id BIGINT", "connectionParams": options}
    made = SourceLedger(database.airflow_uri, {**pipeline, "extract": extract})
    yield made
    made.conn.close()


def reads(ledger: SourceLedger, *topics: str) -> None:
    ledger.config["extract"]["connectionParams"]["subscribe"] = ",".join(topics)
    ledger.start()


def risk(at_least: str) -> Seen:
    return LedgerHook("warehouse").look(RetentionRisk.of(pipeline="orders", at_least=at_least))


def records(count: int, hours_ago: float) -> list[Record]:
    moment = int((time.time() - hours_ago * 3600) * 1000)
    return [Record(f'{{"id": {n}}}', key="k", timestamp_ms=moment + n) for n in range(count)]


def test_the_hours_are_those_of_the_first_unread_record(
    kafka: KafkaBroker, new_topic: Topics, ledger: SourceLedger
) -> None:
    topic = new_topic(retention_ms=str(24 * 3_600_000))
    kafka.produce(topic, [*records(3, 20), *records(2, 4)])
    reads(ledger, topic)
    ledger.commit({topic: {"0": 1}})
    seen = risk("12 hours")
    assert not seen.done
    assert 3.9 < seen.value["hours_left"] <= 4
    assert "at the earliest" in seen.message
    assert f"{topic}[0] offset 1" in seen.message
    ledger.commit({topic: {"0": 3}})
    seen = risk("12 hours")
    assert seen.done
    assert 19.9 < seen.value["hours_left"] <= 20
    ledger.commit({topic: {"0": 5}})
    assert risk("1000 days").value == {"hours_left": None, "rows": 0, "size_limited": {}, "compacted": []}


def test_what_is_past_its_time_may_go_any_moment(kafka: KafkaBroker, new_topic: Topics, ledger: SourceLedger) -> None:
    topic = new_topic(retention_ms="3600000")
    kafka.produce(topic, records(1, 2))
    reads(ledger, topic)
    seen = risk("1 second")
    assert not seen.done
    assert "from now on" in seen.message
    assert seen.value["hours_left"] < 0


def test_what_is_kept_for_ever_is_at_no_risk_of_time(
    kafka: KafkaBroker, new_topic: Topics, ledger: SourceLedger
) -> None:
    for_ever = new_topic(retention_ms="-1")
    by_size = new_topic(retention_ms="-1", retention_bytes="1000000")
    compacted = new_topic(cleanup_policy="compact", retention_ms="1000")
    for topic in (for_ever, by_size, compacted):
        kafka.produce(topic, records(4, 100))
    reads(ledger, for_ever, by_size, compacted)
    ledger.commit({for_ever: {"0": 0}, by_size: {"0": 1}, compacted: {"0": 3}})
    seen = risk("1000 days")
    assert seen.done
    assert seen.value == {
        "hours_left": None,
        "rows": 8,
        "size_limited": {f"{by_size}[0]": 0.75},
        "compacted": [compacted],
    }
    assert f"retention.bytes=1000000 deletes by no clock: of what {by_size}[0] keeps, 75% are unread" in seen.message
    assert f"compacted: of {compacted}, older values" in seen.message


def test_a_hole_fails_at_once_and_names_what_is_lost(
    kafka: KafkaBroker, new_topic: Topics, ledger: SourceLedger, context: dict[str, Any]
) -> None:
    topic = new_topic(retention_ms="-1")
    kafka.produce(topic, records(9, 1))
    reads(ledger, topic)
    ledger.commit({topic: {"0": 2}})
    kafka.delete_records(topic, {0: 7})
    sensor = RetentionRiskSensor(task_id="kept", pipeline="orders", at_least=timedelta(hours=1))
    with pytest.raises(AirflowFailException, match=rf"{topic}\[0\] offsets 2 to 7, at most 5 rows"):
        sensor.execute(context)


def test_a_hole_ends_a_deferred_sensor(
    kafka: KafkaBroker, new_topic: Topics, ledger: SourceLedger, context: dict[str, Any]
) -> None:
    topic = new_topic(retention_ms="3600000")
    kafka.produce(topic, records(3, 2))
    reads(ledger, topic)
    sensor = RetentionRiskSensor(task_id="kept", pipeline="orders", at_least="2 hours", deferrable=True)
    with pytest.raises(TaskDeferred) as deferred:
        sensor.execute(context)
    _, values = deferred.value.trigger.serialize()
    kafka.delete_records(topic, {0: 3})
    made = type(deferred.value.trigger)(**json.loads(json.dumps(values)))

    async def event() -> Any:
        ledger.commit({topic: {"0": 1}})
        async with contextlib.aclosing(made.run()) as events:
            return (await anext(events)).payload

    with pytest.raises(AirflowFailException, match=rf"{topic}\[0\] offsets 1 to 3, at most 2 rows"):
        sensor.execute_complete(context, asyncio.run(event()))


def test_what_is_deleted_after_it_was_committed_is_not_lost(
    kafka: KafkaBroker, new_topic: Topics, ledger: SourceLedger
) -> None:
    topic = new_topic(retention_ms="-1")
    kafka.produce(topic, records(5, 1))
    reads(ledger, topic)
    ledger.commit({topic: {"0": 1}})
    view = LedgerView(ledger.conn, "etl")
    at_source = RetentionRisk.of(pipeline="orders", at_least="1 hour").begin(view)
    assert isinstance(at_source, AtSource)
    # Between the look at the ledger and that at the broker.
    ledger.commit({topic: {"0": 4}})
    kafka.delete_records(topic, {0: 4})
    at_ledger = at_source.ask()
    assert isinstance(at_ledger, AtLedger)
    seen = at_ledger.ask(view)
    assert not seen.done
    assert "looking again" in seen.message


def test_the_time_that_must_be_left_is_a_time(ledger: SourceLedger, context: dict[str, Any]) -> None:
    for at_least in ("0 seconds", "soon"):
        with pytest.raises(AirflowFailException, match="at_least"):
            RetentionRiskSensor(task_id="kept", pipeline="orders", at_least=at_least).execute(context)
