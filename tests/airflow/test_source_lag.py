"""Rows and seconds behind a real broker, with a real ledger, by poke and in the triggerer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSensorTimeout, TaskDeferred
from source_ledger import SourceLedger

from airflow_etl_provider import credentials
from airflow_etl_provider.credentials import RememberedConnections
from airflow_etl_provider.hooks.ledger import LedgerHook
from airflow_etl_provider.sensors.source_lag import SourceLagSensor
from airflow_etl_provider.triggers.ledger import LedgerTrigger
from airflow_etl_provider.triggers.source_threads import SLOW_SECONDS, SourceThreads
from sandbox.kafka import PASSWORD, USER, KafkaBroker, Record
from spark_jobs.contracts.errors import (
    ClocksDisagreeError,
    ConfigError,
    ConnectionMissingError,
    SourceRefusedError,
    SourceUnreachableError,
)
from spark_jobs.contracts.watch import registry
from spark_jobs.contracts.watch.condition import AtSource, Condition, Seen
from spark_jobs.contracts.watch.freshness import Freshness
from spark_jobs.contracts.watch.source_lag import SourceLag


@pytest.fixture
def topic(kafka: KafkaBroker) -> Iterator[str]:
    name = kafka.create_topic(f"lag-{uuid.uuid4().hex[:8]}", partitions=2)
    yield name
    kafka.delete_topic(name)


@pytest.fixture
def ledger(
    database: Any, connections: Callable[..., None], pipeline: dict[str, Any], kafka: KafkaBroker, topic: str
) -> Iterator[SourceLedger]:
    """A pipeline that reads the topic from its beginning and has never run."""
    connections(warehouse=database.airflow_uri)
    options = {"kafka.bootstrap.servers": kafka.bootstrap_servers, "startingOffsets": "earliest"}
    extract = {"sourceType": "kafka", "topic": topic, "schema": "id BIGINT", "connectionParams": options}
    made = SourceLedger(database.airflow_uri, {**pipeline, "extract": extract})
    yield made
    made.conn.close()


def lag(**limits: Any) -> Seen:
    return LedgerHook("warehouse").look(SourceLag.of(pipeline="orders", **(limits or {"at_most_rows": 0})))


def records(count: int, *, partition: int = 0, seconds_ago: float = 0) -> list[Record]:
    moment = int((time.time() - seconds_ago) * 1000)
    return [Record(f"{n}", partition=partition, timestamp_ms=moment + n) for n in range(count)]


def sensor(**values: Any) -> SourceLagSensor:
    return SourceLagSensor(task_id="caught_up", pipeline="orders", **values)


def test_rows_and_seconds_are_counted_from_what_is_committed(
    kafka: KafkaBroker, topic: str, ledger: SourceLedger
) -> None:
    kafka.produce(topic, [*records(5, seconds_ago=7200), *records(3, partition=1, seconds_ago=3600)])
    ledger.start()
    ledger.commit({topic: {"0": 5, "1": 1}})
    seen = lag()
    assert not seen.done
    assert seen.value["rows"] == 2
    assert 3590 < seen.value["seconds"] < 3700
    assert seen.value["partitions"] == {f"{topic}[1]": 2}
    assert "at most 2 rows behind in 1 of 2 partitions" in seen.message
    assert f"{topic}[1] offset 1" in seen.message
    assert lag(at_most_rows=2).done
    assert lag(at_most_seconds=3700).done
    assert not lag(at_most_rows=5, at_most_seconds=60).done
    ledger.commit({topic: {"0": 5, "1": 3}})
    assert lag(at_most_seconds=0).value == {"rows": 0, "seconds": 0.0, "batch_id": 1, "partitions": {}}


def test_no_consumer_group_is_made(kafka: KafkaBroker, topic: str, ledger: SourceLedger) -> None:
    kafka.produce(topic, records(2))
    ledger.start()
    before = {group.group_id for group in kafka.admin().list_consumer_groups().result().valid}
    assert not lag().done
    assert {group.group_id for group in kafka.admin().list_consumer_groups().result().valid} == before


def test_a_partition_that_the_ledger_does_not_know_counts_from_its_first_offset(
    kafka: KafkaBroker, topic: str, ledger: SourceLedger
) -> None:
    kafka.produce(topic, [*records(4), *records(6, partition=1)])
    kafka.delete_records(topic, {1: 2})
    ledger.start()
    ledger.commit({topic: {"0": 4}})
    assert lag().value["partitions"] == {f"{topic}[1]": 4}


def test_what_was_deleted_unread_is_named_and_not_counted(kafka: KafkaBroker, topic: str, ledger: SourceLedger) -> None:
    kafka.produce(topic, records(4))
    ledger.start()
    ledger.commit({topic: {"0": 1, "1": 0}})
    kafka.delete_records(topic, {0: 3})
    seen = lag(at_most_rows=1)
    assert seen.done
    assert f"{topic}[0] offsets 1 to 3" in seen.message


def test_the_newest_query_counts(kafka: KafkaBroker, topic: str, ledger: SourceLedger) -> None:
    kafka.produce(topic, records(9))
    ledger.start("old")
    ledger.commit({topic: {"0": 2, "1": 0}}, query_id="old")
    ledger.start("new", start_offsets={topic: {"0": 5, "1": 0}})
    seen = lag()
    assert (seen.value["rows"], seen.value["batch_id"]) == (4, None)
    assert "resumed" in seen.message
    # The old checkpoint was brought back.
    ledger.start("old")
    ledger.commit({topic: {"0": 8, "1": 0}}, query_id="old")
    assert lag().value["rows"] == 1


def test_a_pipeline_that_never_committed_is_behind_from_where_it_begins(
    kafka: KafkaBroker, topic: str, ledger: SourceLedger
) -> None:
    moment = int(time.time() * 1000) - 10_000_000
    kafka.produce(topic, [Record("x", partition=0, timestamp_ms=moment + n) for n in range(4)])
    options = ledger.config["extract"]["connectionParams"]
    by_time = {"startingOffsetsByTimestamp": json.dumps({topic: {"0": moment + 3, "1": moment + 3}})}
    at_offsets = {"startingOffsets": json.dumps({topic: {"0": 3, "1": -2}})}
    at_time = {"startingTimestamp": str(moment + 2)}
    for begin, rows in (({}, 4), (at_offsets, 1), (at_time, 2), (by_time, 1)):
        ledger.config["extract"]["connectionParams"] = {**options, **begin}
        ledger.start()
        seen = lag()
        assert (seen.done, seen.value["rows"]) == (False, rows), begin
        assert "nothing was ever committed" in seen.message
    ledger.config["extract"]["connectionParams"] = {**options, "startingOffsets": "latest"}
    ledger.start()
    seen = lag(at_most_rows=100)
    assert not seen.done
    assert "from its first commit on" in seen.message


def test_a_partition_that_is_not_read_any_more_is_named(kafka: KafkaBroker, topic: str, ledger: SourceLedger) -> None:
    ledger.start()
    ledger.commit({topic: {"0": 0, "1": 0, "2": 7}, "other": {"0": 3}})
    seen = lag()
    assert seen.done
    assert f"not read any more, and not looked at: {topic}[2], other[0]" in seen.message


def test_a_transactions_marker_is_not_a_row(kafka: KafkaBroker, topic: str, ledger: SourceLedger) -> None:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": topic, "log_level": 2})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(topic, b"1", partition=0)
    producer.commit_transaction(30)
    ledger.start()
    ledger.commit({topic: {"0": 1, "1": 0}})
    # The marker is written when the producer has its answer.
    deadline = time.monotonic() + 60
    while kafka.end_offsets(topic) != {0: 2, 1: 0}:
        assert time.monotonic() < deadline
    assert lag().done


@pytest.mark.parametrize("choice", ["subscribePattern", "assign"])
def test_all_ways_to_choose_topics_are_followed(
    choice: str, kafka: KafkaBroker, topic: str, ledger: SourceLedger
) -> None:
    kafka.produce(topic, [*records(1), *records(2, partition=1)])
    value, rows = (f"{topic[:-1]}[^_]", 3) if choice == "subscribePattern" else (json.dumps({topic: [1]}), 2)
    extract = ledger.config["extract"]
    del extract["topic"]
    extract["connectionParams"][choice] = value
    ledger.start()
    assert lag().value["rows"] == rows


def test_a_topic_that_was_made_anew_fails_at_once(
    kafka: KafkaBroker, topic: str, ledger: SourceLedger, context: dict[str, Any]
) -> None:
    kafka.produce(topic, records(2))
    ledger.start()
    ledger.commit({topic: {"0": 100, "1": 0}})
    with pytest.raises(AirflowFailException, match=rf"{topic}\[0\] ends at 2, read up to 100"):
        sensor(at_most_rows=0).execute(context)


def test_a_record_of_the_future_is_said(kafka: KafkaBroker, topic: str, ledger: SourceLedger) -> None:
    kafka.produce(topic, records(1, seconds_ago=-1800))
    ledger.start()
    with pytest.raises(ClocksDisagreeError, match=r"(29|30) min( \d+ s)? ahead of the clock of the ledger's server"):
        lag(at_most_seconds=60)
    assert lag(at_most_rows=1).done


def test_another_source_and_a_missing_topic_are_said(
    ledger: SourceLedger, topic: str, context: dict[str, Any], pipeline: dict[str, Any]
) -> None:
    extract, ledger.config = ledger.config["extract"], pipeline
    ledger.start()
    with pytest.raises(AirflowFailException, match=r"Found: extract.sourceType 'rate'"):
        sensor(at_most_rows=0).execute(context)
    ledger.config = {**pipeline, "extract": {**extract, "topic": f"{topic}-not"}}
    ledger.start()
    with pytest.raises(SourceUnreachableError, match=f"topic {topic}-not"):
        lag()


@pytest.mark.parametrize(
    ("limits", "found"),
    [
        ({}, "neither at_most_rows nor at_most_seconds"),
        ({"at_most_rows": 0, "at_most_seconds": 60}, "contradict"),
        ({"at_most_rows": -1}, "at_most_rows"),
        ({"at_most_seconds": "soon"}, "at_most_seconds"),
    ],
)
def test_limits_that_say_nothing_are_refused(
    limits: dict[str, Any], found: str, ledger: SourceLedger, context: dict[str, Any]
) -> None:
    with pytest.raises(AirflowFailException, match=found):
        sensor(**limits).execute(context)


def log_in(ledger: SourceLedger, kafka: KafkaBroker, connections: Callable[..., None], **changes: Any) -> None:
    extra = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", **changes.pop("extra", {})}
    value = {"conn_type": "kafka", "login": USER, "password": PASSWORD, "extra": extra, **changes}
    connections(broker=json.dumps(value))
    ledger.config["extract"]["credentialId"] = "broker"
    ledger.config["extract"]["connectionParams"]["kafka.bootstrap.servers"] = kafka.login_servers
    ledger.start()


def test_logs_in_as_spark_does(
    kafka: KafkaBroker, topic: str, ledger: SourceLedger, connections: Callable[..., None]
) -> None:
    kafka.produce(topic, records(3))
    log_in(ledger, kafka, connections)
    assert lag(at_most_rows=3).done
    line = f'org.apache.kafka.common.security.plain.PlainLoginModule required username={USER} password="{PASSWORD}";'
    log_in(ledger, kafka, connections, login=None, password=None, extra={"kafka.sasl.jaas.config": line})
    assert lag(at_most_rows=3).done


def test_a_refused_login_fails_at_once_and_shows_no_secret(
    kafka: KafkaBroker, ledger: SourceLedger, connections: Callable[..., None], context: dict[str, Any]
) -> None:
    wrong = f"{PASSWORD}-wrong"
    log_in(ledger, kafka, connections, password=wrong)
    with pytest.raises(SourceRefusedError) as caught:
        lag()
    assert wrong not in str(caught.value)
    with pytest.raises(AirflowFailException, match="was refused by Kafka"):
        sensor(at_most_rows=0).execute(context)


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_a_refused_connection_is_known_at_once_and_may_be_tried_again(
    ledger: SourceLedger, context: dict[str, Any]
) -> None:
    ledger.config["extract"]["connectionParams"]["kafka.bootstrap.servers"] = "127.0.0.1:1,127.0.0.1:2"
    ledger.start()
    with pytest.raises(SourceUnreachableError, match="Connection refused"):
        lag()
    with pytest.raises(AirflowSensorTimeout, match=r"Last seen: .*Connection refused"):
        sensor(at_most_rows=0, timeout=0.2, poke_interval=0.05).execute(context)


def test_without_the_client_the_cure_is_named(ledger: SourceLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.start()
    # How Python marks a module that is not there.
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(ConfigError, match=r"airflow-etl-provider\[kafka\]"):
        lag()


def test_importing_the_sensors_brings_no_client() -> None:
    code = (
        "import sys; import airflow.sdk; before = set(sys.modules)\n"
        "import airflow_etl_provider.sensors.source_lag, airflow_etl_provider.sensors.retention_risk\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "assert not new & {'confluent_kafka', 'pyspark', 'pandas'}, new"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def trigger(condition: Condition, **values: Any) -> LedgerTrigger:
    return LedgerTrigger(condition=registry.to_json(condition), ledger_conn_id="warehouse", **values)


async def first_event(made: LedgerTrigger) -> Any:
    async with contextlib.aclosing(made.run()) as events:
        return (await anext(events)).payload


def test_waits_in_the_triggerer_until_a_commit_has_caught_up(
    kafka: KafkaBroker, topic: str, ledger: SourceLedger, context: dict[str, Any]
) -> None:
    kafka.produce(topic, records(3))
    ledger.start()
    made = sensor(at_most_rows="0", deferrable=True, poke_interval=3600)
    with pytest.raises(TaskDeferred) as deferred:
        made.execute(context)
    path, values = deferred.value.trigger.serialize()
    assert path == "airflow_etl_provider.triggers.ledger.LedgerTrigger"
    again = LedgerTrigger(**json.loads(json.dumps(values)))

    async def waited() -> Any:
        waiting = asyncio.create_task(first_event(again))
        await asyncio.to_thread(ledger.commit, {topic: {"0": 3, "1": 0}})
        return await asyncio.wait_for(waiting, 60)

    event = asyncio.run(waited())
    assert event["status"] == "satisfied"
    assert made.execute_complete(context, event)["rows"] == 0


def test_a_broker_that_does_not_answer_keeps_no_other_sensor_waiting(
    ledger: SourceLedger, silent: socket.socket, context: dict[str, Any]
) -> None:
    address = f"127.0.0.1:{silent.getsockname()[1]}"
    ledger.config["extract"]["connectionParams"]["kafka.bootstrap.servers"] = address
    ledger.start()
    ledger.commit({"t": {"0": 1}})
    behind = SourceLag.of(pipeline="orders", at_most_rows=0)
    fresh = Freshness.of(pipeline="orders", younger_than="1 hour")
    give_up = "2020-01-01T00:00:00+00:00"

    async def together() -> tuple[Any, list[Any]]:
        stuck = [asyncio.create_task(first_event(trigger(behind, give_up_at=give_up))) for _ in range(3)]
        # The broker is being asked.
        asked, _ = await asyncio.to_thread(silent.accept)
        answer = await first_event(trigger(fresh))
        assert not any(task.done() for task in stuck)
        asked.close()
        silent.close()
        return answer, await asyncio.gather(*stuck)

    answer, given_up = asyncio.run(together())
    assert answer["status"] == "satisfied"
    assert [event["status"] for event in given_up] == ["timeout"] * 3
    assert all(address in event["message"] for event in given_up)
    with pytest.raises(AirflowSensorTimeout, match=address):
        sensor(at_most_rows=0).execute_complete(context, given_up[0])


def test_a_deferred_sensor_outlives_a_broker_that_is_away(
    kafka: KafkaBroker, topic: str, ledger: SourceLedger, silent: socket.socket
) -> None:
    kafka.produce(topic, records(2))
    options = ledger.config["extract"]["connectionParams"]
    address = f"127.0.0.1:{silent.getsockname()[1]}"
    ledger.config["extract"]["connectionParams"] = {**options, "kafka.bootstrap.servers": address}
    ledger.start()
    made = trigger(SourceLag.of(pipeline="orders", at_most_rows=2), poll_seconds=0.1)

    async def waited() -> Any:
        waiting = asyncio.create_task(first_event(made))
        asked, _ = await asyncio.to_thread(silent.accept)
        ledger.config["extract"]["connectionParams"] = options
        await asyncio.to_thread(ledger.start)
        asked.close()
        silent.close()
        return await waiting

    event = asyncio.run(waited())
    assert (event["status"], event["value"]["rows"]) == ("satisfied", 2)


def test_a_connection_that_was_found_once_is_remembered(
    connections: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = RememberedConnections()
    with pytest.raises(ConnectionMissingError):
        find("broker")
    connections(broker="kafka://me:one@b:9092")
    assert find("broker").login == "me"
    monkeypatch.delenv("AIRFLOW_CONN_BROKER")
    monkeypatch.setattr(credentials, "_REMEMBERED_SECONDS", 0.0)
    assert find("broker").login == "me"
    connections(broker="kafka://you:two@b:9092")
    assert find("broker").login == "you"


@pytest.mark.parametrize(
    ("seconds", "told"), [(SLOW_SECONDS, ["1", "1", "1", "2"]), (0.0, ["1", "2", "3", "4"])], ids=["slow", "quick"]
)
def test_who_waits_for_a_broker_that_did_not_answer_another_hears_the_same(seconds: float, told: list[str]) -> None:
    asked, begun, go_on = [], threading.Event(), threading.Event()

    def question() -> Seen:
        asked.append(1)
        begun.set()
        go_on.wait(60)
        raise SourceUnreachableError(str(len(asked)))

    async def ask() -> list[BaseException | Any]:
        sources = SourceThreads()
        asking = [asyncio.create_task(sources.ask(AtSource("broker", question))) for _ in range(3)]
        await asyncio.to_thread(begun.wait, 60)
        # The time that an answer takes is what tells a cluster that is away from a topic that is.
        await asyncio.sleep(seconds)
        go_on.set()
        together = await asyncio.gather(*asking, return_exceptions=True)
        later = await asyncio.gather(sources.ask(AtSource("broker", question)), return_exceptions=True)
        sources.close()
        return [*together, *later]

    assert [str(error).rstrip(".") for error in asyncio.run(ask())] == told
