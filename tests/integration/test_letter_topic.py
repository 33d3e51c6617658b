"""Dead letters in a Kafka topic: bytes as they came, what happened in headers, before the batch commits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition
from kafka_pipelines import kafka_pipeline
from pipeline_runs import BeforeBatch, Pipelines, file_pipeline, write_lines

from sandbox.kafka import KafkaBroker, Record
from spark_jobs.contracts.exit_codes import ExitCode
from spark_jobs.runtime.stopping import Stop

GOOD = b'{"id": 1, "amount": 1}'
NO_UTF8 = b'{"id": 1, "name": "\xff\xfe"}'
TOO_MUCH = b'{"id": 2, "amount": 200}'
# A broker that is down must not hold up a test for half a minute.
SOON = {"max.block.ms": 3000, "delivery.timeout.ms": 3000, "request.timeout.ms": 2000}


@dataclass(frozen=True)
class Letter:
    """A record of the dead letters' topic."""

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]

    def header(self, name: str) -> str | None:
        """The last one of a name, as Kafka Connect's readers take it."""
        values = [value for key, value in self.headers if key == name]
        return values[-1].decode() if values and values[-1] is not None else None

    @property
    def letter_id(self) -> str:
        return str(self.header("__etl.errors.letter.id"))


def _letters(kafka: KafkaBroker, topic: str) -> list[Letter]:
    ends = kafka.end_offsets(topic)
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": "look"})
    try:
        consumer.assign([TopicPartition(topic, partition, 0) for partition in ends])
        found: list[Letter] = []
        while (missing := sum(ends.values()) - len(found)) > 0:
            # No more than there are: it waits for as many as it is asked for.
            for message in consumer.consume(min(missing, 10_000), timeout=30):
                assert message.error() is None
                found.append(Letter(message.key(), message.value(), list(message.headers() or [])))
        return sorted(found, key=lambda letter: letter.letter_id)
    finally:
        consumer.close()


def _with_copy(config: dict[str, Any], brokers: str, topic: str, **options: Any) -> dict[str, Any]:
    queue = {"dlqType": "kafka", "bootstrapServers": brokers, "topic": topic, "config": {**SOON, **options}}
    load = {**config["load"], "maxDeadLetterFraction": 1}
    return {**config, "load": load, "errorHandlingConfig": {"dlqConfig": queue}}


def _guarded(config: dict[str, Any]) -> dict[str, Any]:
    care = {
        "retryConfig": {"strategy": "fixed", "maxAttempts": 2, "initialDelaySeconds": 0.1},
        "circuitBreakerConfig": {"enabled": True, "failureThreshold": 1, "resetTimeoutSeconds": 600},
    }
    return {**config, "errorHandlingConfig": {**config["errorHandlingConfig"], **care}}


def _ids(pipelines: Pipelines) -> list[str]:
    return [str(key) for (key,) in pipelines.rows("SELECT dead_letter_id FROM etl.dead_letter ORDER BY 1")]


@pytest.mark.parametrize("strategy", ["single", "staged", "two_phase"])
def test_a_record_comes_out_as_it_came_in(
    pipelines: Pipelines, kafka: KafkaBroker, new_topic: Callable[..., str], strategy: str
) -> None:
    source, copy = new_topic(), new_topic()
    headers = (("trace", b"\x00\xff"), ("trace", b"second"), ("kind", b"order"))
    bad = Record(NO_UTF8, key=b"\xffkey", headers=headers, partition=1)
    kafka.produce(source, [Record(GOOD, partition=0), bad, Record(None, key="tombstone", partition=0)])
    config = kafka_pipeline(
        "orders", kafka.bootstrap_servers, source, pipelines.checkpoints, schema="id INT, amount INT"
    )
    config["load"]["writeStrategy"] = strategy
    pipelines.finish(_with_copy(config, kafka.bootstrap_servers, copy))
    assert pipelines.rows("SELECT id, amount FROM result") == [(1, 1)]
    letters = {letter.key: letter for letter in _letters(kafka, copy)}
    assert letters.keys() == {b"\xffkey", b"tombstone"}
    assert letters[b"tombstone"].value is None
    letter = letters[b"\xffkey"]
    assert letter.value == NO_UTF8
    assert letter.headers[:3] == list(headers)
    [(key, query, failed_at)] = pipelines.rows(
        "SELECT dead_letter_id::text, query_id, to_char(first_failed_at AT TIME ZONE 'UTC', "
        '\'YYYY-MM-DD"T"HH24:MI:SS.US"Z"\') FROM etl.dead_letter WHERE raw_value IS NOT NULL'
    )
    own = {name: value.decode() for name, value in letter.headers[3:] if value is not None}
    place = own.pop("__etl.errors.source")
    assert own == {
        "__connect.errors.topic": source,
        "__connect.errors.partition": "1",
        "__connect.errors.offset": "0",
        "__connect.errors.connector.name": "orders",
        "__connect.errors.stage": "parse",
        "__connect.errors.exception.class.name": "INVALID_UTF8",
        "__connect.errors.exception.message": "INVALID_UTF8: the value is not valid UTF-8",
        "__etl.errors.letter.id": key,
        "__etl.errors.query.id": query,
        "__etl.errors.batch.id": "0",
        "__etl.errors.attempt": "1",
        "__etl.errors.first.failed.at": failed_at,
    }
    assert f'"topic":"{source}"' in place
    assert _ids(pipelines) == [letter.letter_id for letter in _letters(kafka, copy)]


def test_a_row_that_the_target_refused(
    pipelines: Pipelines, kafka: KafkaBroker, new_topic: Callable[..., str], tmp_path: Path
) -> None:
    copy, inbox = new_topic(), tmp_path / "inbox"
    pipelines.execute("CREATE TABLE result (id int, amount int CONSTRAINT small CHECK (amount < 100))")
    config = file_pipeline("orders", inbox, pipelines.checkpoints, schema="id INT, amount INT")
    write_lines(inbox / "1.json", GOOD.decode(), TOO_MUCH.decode())
    pipelines.finish(_with_copy(config, kafka.bootstrap_servers, copy))
    [letter] = _letters(kafka, copy)
    assert letter.value == b'{"id": 2, "amount": 200}'
    names = ("__connect.errors.stage", "__etl.errors.sqlstate", "__etl.errors.constraint", "__connect.errors.topic")
    assert [letter.header(name) for name in names] == ["write", "23514", "small", None]
    assert letter.letter_id == str(pipelines.one("SELECT dead_letter_id FROM etl.dead_letter"))


@pytest.fixture
def flaky() -> Iterator[KafkaBroker]:
    """A broker that a test may stop."""
    with KafkaBroker() as broker:
        yield broker


class WhenABatchBegins(Stop):
    """Does something when the first micro-batch of a run begins."""

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__()
        self._act: Callable[[], None] | None = act

    def enter_batch(self) -> None:
        super().enter_batch()
        if self._act is not None:
            self._act()
            self._act = None


@pytest.mark.parametrize("strategy", ["single", "staged"])
def test_while_the_broker_is_down_the_batch_does_not_commit(
    pipelines: Pipelines, flaky: KafkaBroker, tmp_path: Path, strategy: str
) -> None:
    flaky.create_topic("letters")
    inbox = tmp_path / "inbox"
    write_lines(inbox / "1.json", GOOD.decode(), "not json", "not json")
    config = file_pipeline(
        "orders", inbox, pipelines.checkpoints, schema="id INT, amount INT", load={"writeStrategy": strategy}
    )
    config = _with_copy(config, flaky.bootstrap_servers, "letters")
    ended = pipelines.run(config, stop=WhenABatchBegins(flaky.stop))
    assert ended.exit_code is ExitCode.LETTERS_NOT_PUBLISHED
    assert ended.error is not None
    assert ended.error.retryable
    assert "the Kafka topic letters" in str(ended.error)
    assert pipelines.one("SELECT count(*) FROM etl.batch_tracker") == 0
    assert pipelines.one("SELECT count(*) FROM etl.dead_letter") == 0
    assert pipelines.one("SELECT count(*) FROM result") == 0
    assert pipelines.run(config).exit_code is ExitCode.LETTERS_NOT_PUBLISHED
    flaky.start()
    pipelines.finish(config)
    assert pipelines.rows("SELECT batch_id, dead_lettered_rows FROM etl.batch_tracker") == [(0, 2)]
    assert _ids(pipelines) == [letter.letter_id for letter in _letters(flaky, "letters")]
    assert len(set(_ids(pipelines))) == 2


def test_a_batch_that_is_done_again_publishes_the_same_ids(
    pipelines: Pipelines, kafka: KafkaBroker, new_topic: Callable[..., str]
) -> None:
    source, copy = new_topic(), new_topic()
    kafka.produce(source, [GOOD, b"not json", b"not json", TOO_MUCH])
    pipelines.execute("CREATE TABLE result (id int, amount int CHECK (amount < 100))")
    config = kafka_pipeline(
        "orders", kafka.bootstrap_servers, source, pipelines.checkpoints, schema="id INT, amount INT"
    )
    config = _with_copy(config, kafka.bootstrap_servers, copy)
    failing = BeforeBatch(
        1,
        pipelines,
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE SQLSTATE '57014'; END $$",
        "CREATE TRIGGER no BEFORE INSERT ON etl.batch_tracker FOR EACH ROW EXECUTE FUNCTION no()",
    )
    assert pipelines.run(config, stop=failing).error is not None
    first = [letter.letter_id for letter in _letters(kafka, copy)]
    assert len(set(first)) == 3
    pipelines.execute("DROP TRIGGER no ON etl.batch_tracker")
    pipelines.finish(config)
    assert _ids(pipelines) == first
    # At least once: whoever reads the topic knows a letter by its id.
    assert sorted(first * 2) == [letter.letter_id for letter in _letters(kafka, copy)]


def test_a_topic_that_does_not_exist_stops_the_run_before_data_moves(
    pipelines: Pipelines, kafka: KafkaBroker, tmp_path: Path
) -> None:
    inbox = tmp_path / "inbox"
    write_lines(inbox / "1.json", GOOD.decode())
    config = file_pipeline("orders", inbox, pipelines.checkpoints, schema="id INT, amount INT")
    ended = pipelines.run(_guarded(_with_copy(config, kafka.bootstrap_servers, "nobody-made-it")))
    assert ended.exit_code is ExitCode.LETTERS_NOT_PUBLISHED
    assert "nobody-made-it" in str(ended.error)
    assert pipelines.one("SELECT count(*) FROM etl.batch_tracker") == 0
    _is_nobodys_outage(pipelines, ended)


def test_a_record_that_the_broker_does_not_take(pipelines: Pipelines, kafka: KafkaBroker, tmp_path: Path) -> None:
    topic = kafka.create_topic("small-letters", config={"max.message.bytes": "500"})
    inbox = tmp_path / "inbox"
    write_lines(inbox / "1.json", GOOD.decode(), "x" * 2000)
    config = file_pipeline("orders", inbox, pipelines.checkpoints, schema="id INT, amount INT")
    ended = pipelines.run(_guarded(_with_copy(config, kafka.bootstrap_servers, topic)))
    assert ended.exit_code is ExitCode.LETTERS_NOT_PUBLISHED
    assert "RecordTooLargeException" in str(ended.error)
    assert pipelines.one("SELECT count(*) FROM etl.batch_tracker") == 0
    _is_nobodys_outage(pipelines, ended)


def _is_nobodys_outage(pipelines: Pipelines, ended: Any) -> None:
    """It is neither tried again, which would not help, nor a reason to leave the brokers alone."""
    assert not ended.error.retryable
    assert pipelines.one("SELECT count(*) FROM etl.run_retry") == 0
    assert pipelines.one("SELECT count(*) FROM etl.circuit_breaker WHERE state <> 'closed' OR failures > 0") == 0


def test_brokers_of_a_connection_have_a_breaker(
    pipelines: Pipelines, flaky: KafkaBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flaky.stop()
    inbox = tmp_path / "inbox"
    monkeypatch.setenv("AIRFLOW_CONN_LETTERS", f"kafka://{flaky.bootstrap_servers}")
    write_lines(inbox / "1.json", GOOD.decode(), "not json")
    config = file_pipeline("orders", inbox, pipelines.checkpoints, schema="id INT, amount INT")
    queue = {"dlqType": "kafka", "topic": "letters", "credentialId": "letters", "config": SOON}
    config = _guarded({**config, "errorHandlingConfig": {"dlqConfig": queue}})
    for _ in range(2):
        assert pipelines.run(config).exit_code is ExitCode.BREAKER_OPEN
    assert pipelines.rows("SELECT system FROM etl.circuit_breaker WHERE state = 'open'") == [
        (f"kafka://{flaky.bootstrap_servers}",)
    ]


def test_brokers_and_secrets_may_come_from_a_connection(
    pipelines: Pipelines, kafka: KafkaBroker, new_topic: Callable[..., str], tmp_path: Path, monkeypatch: Any
) -> None:
    copy, inbox = new_topic(), tmp_path / "inbox"
    monkeypatch.setenv("AIRFLOW_CONN_LETTERS", f"kafka://{kafka.bootstrap_servers}")
    write_lines(inbox / "1.json", GOOD.decode(), "not json")
    config = file_pipeline("orders", inbox, pipelines.checkpoints, schema="id INT, amount INT")
    config["load"]["maxDeadLetterFraction"] = 1
    queue = {"type": "kafka", "topic": copy, "credentialId": "letters"}
    pipelines.finish({**config, "errorHandling": {"deadLetterQueue": queue}})
    assert [letter.value for letter in _letters(kafka, copy)] == [b"not json"]
