"""Redrive: raw records of dead letters back to their topic, once, whatever happens between Kafka and PostgreSQL."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, sleep
from typing import Any
from uuid import uuid4

import pytest
from kafka_pipelines import kafka_pipeline, records_in
from pipeline_runs import Pipelines, aggregation, file_pipeline, write_lines

from sandbox.kafka import KafkaBroker, Record
from spark_jobs import faults
from spark_jobs.contracts.breaker import kafka_system
from spark_jobs.contracts.errors import BreakerOpenError, ConfigError, RecordsUnwelcomeError
from spark_jobs.contracts.replay import ReplayMode

REPAIR = {"_value": "replace(_value, 'minus ', '-')"}


@pytest.fixture
def topic(new_topic: Any, kafka: KafkaBroker) -> str:
    """A topic with two good records and two bad ones, which a patch repairs."""
    return _filled(kafka, new_topic())


def _filled(kafka: KafkaBroker, name: str) -> str:
    headers = (("source", b"till \xff"),)
    kafka.produce(
        name,
        [
            Record('{"id": 1, "amount": 5}', key=b"a", partition=0),
            Record('{"id": 2, "amount": minus 7}', key=b"b\xff", headers=headers, partition=1),
            Record('{"id": 3, "amount": 9}', key=b"c", partition=1),
            Record('{"id": 4, "amount": minus 11}', partition=0),
        ],
    )
    return name


def _config(pipelines: Pipelines, kafka: KafkaBroker, topic: str) -> dict[str, Any]:
    return kafka_pipeline(
        "tills", kafka.bootstrap_servers, topic, pipelines.checkpoints, schema="id BIGINT, amount BIGINT"
    )


def _home(pipelines: Pipelines) -> list[tuple[Any, ...]]:
    return pipelines.rows("SELECT id, amount FROM result ORDER BY id")


WHOLE = [(1, 5), (2, -7), (3, 9), (4, -11)]


def test_a_record_is_sent_as_it_came_and_says_where_from(pipelines: Pipelines, kafka: KafkaBroker, topic: str) -> None:
    config = _config(pipelines, kafka, topic)
    pipelines.finish(config)
    places = "SELECT source->>'offset' || '@' || (source->>'partition'), dead_letter_id::text FROM etl.dead_letter"
    letters = dict(pipelines.rows(places))
    summary = pipelines.replayed("tills", mode=ReplayMode.REDRIVE, patch=REPAIR)
    assert (summary.taken, summary.replayed) == (2, 2)

    sent = {record.value: record for record in records_in(kafka, topic)[-6:] if record.offset >= 2}
    again = sent[b'{"id": 2, "amount": -7}']
    assert (again.partition, again.key) == (1, b"b\xff")
    headers = dict(again.headers)
    assert headers["source"] == b"till \xff"
    assert headers["etl.dead-letter.id"].decode() == letters["0@1"]
    assert headers["etl.dead-letter.topic"].decode() == topic
    origin = ("partition", "offset", "attempt", "stage", "error-class")
    assert [headers[f"etl.dead-letter.{name}"] for name in origin] == [b"1", b"0", b"1", b"parse", b"MALFORMED_JSON"]

    pipelines.finish(config)
    assert _home(pipelines) == WHOLE
    assert pipelines.replayed("tills", mode=ReplayMode.REDRIVE).taken == 0


def test_a_record_that_fails_again_remembers_how_often(pipelines: Pipelines, kafka: KafkaBroker, topic: str) -> None:
    config = _config(pipelines, kafka, topic)
    for attempt in (1, 2, 3):
        pipelines.finish(config)
        assert pipelines.rows("SELECT DISTINCT attempt FROM etl.dead_letter WHERE status = 'pending'") == [(attempt,)]
        again = pipelines.replayed("tills", mode=ReplayMode.REDRIVE, max_attempts=3)
        assert again.taken == (2 if attempt < 3 else 0)
    assert pipelines.rows("SELECT status, count(*) FROM etl.dead_letter GROUP BY 1 ORDER BY 1") == [
        ("parked", 2),
        ("replayed", 4),
    ]


def _fail_redrive(pipelines: Pipelines, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    file = pipelines.folder / "faults"
    file.write_text(f"{point} fail\n")
    with monkeypatch.context() as patched:
        patched.setenv(faults.VARIABLE, str(file))
        # Other tests of this process may have been here.
        patched.setattr(faults, "_reached", Counter())
        assert pipelines.replay("tills", mode=ReplayMode.REDRIVE, patch=REPAIR).error is not None


@pytest.mark.parametrize("point", ["redrive.after_mark", "redrive.after_send"])
def test_a_failure_between_kafka_and_postgresql_sends_nothing_twice(
    pipelines: Pipelines, kafka: KafkaBroker, topic: str, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    config = _config(pipelines, kafka, topic)
    pipelines.finish(config)
    _fail_redrive(pipelines, monkeypatch, point)
    assert pipelines.one("SELECT count(*) FROM etl.dead_letter WHERE status = 'pending'") == 2
    sent = 2 if point == "redrive.after_send" else 0
    assert len(records_in(kafka, topic)) == 4 + sent

    # Reprocessed now, the rows of those that were sent would be there twice.
    assert pipelines.replayed("tills", patch=REPAIR).taken == 0
    assert pipelines.replayed("tills", mode=ReplayMode.REDRIVE, patch=REPAIR).replayed == 2
    assert len(records_in(kafka, topic)) == 6
    assert pipelines.one("SELECT count(*) FROM etl.dead_letter_redrive") == 0
    pipelines.finish(config)
    assert _home(pipelines) == WHOLE


@pytest.mark.parametrize("by", list(ReplayMode))
def test_what_no_topic_tells_any_more_is_a_persons_to_say(
    pipelines: Pipelines, kafka: KafkaBroker, topic: str, monkeypatch: pytest.MonkeyPatch, by: ReplayMode
) -> None:
    config = _config(pipelines, kafka, topic)
    pipelines.finish(config)
    _fail_redrive(pipelines, monkeypatch, "redrive.after_mark")
    # What came behind the mark is gone, by retention.
    kafka.produce(topic, [Record('{"id": 5, "amount": 1}', partition=0)])
    pipelines.finish(config)
    kafka.delete_records(topic, kafka.end_offsets(topic))
    for dry_run in (True, False):
        ended = pipelines.replay("tills", mode=ReplayMode.REDRIVE, patch=REPAIR, dry_run=dry_run)
        assert isinstance(ended.error, ConfigError), ended.error
        assert f"{topic}/0 from offset 2" in str(ended.error)
        assert "--not-sent" in str(ended.error)
    left = pipelines.replayed("tills", patch=REPAIR)
    assert (left.taken, left.perhaps_sent) == (0, 2)
    assert pipelines.replayed("tills", mode=by, patch=REPAIR, not_sent=True).replayed == 2
    pipelines.finish(config)
    assert _home(pipelines) == [*WHOLE, (5, 1)]
    assert pipelines.rows("SELECT DISTINCT status FROM etl.dead_letter") == [("replayed",)]


def test_a_redrive_that_its_brokers_do_not_take_leaves_them_alone(
    pipelines: Pipelines, kafka: KafkaBroker, new_topic: Any
) -> None:
    topic = kafka.create_topic(f"small-{uuid4().hex[:8]}", partitions=2, config={"max.message.bytes": "600"})
    config = _config(pipelines, kafka, _filled(kafka, topic))
    config["errorHandlingConfig"] = {"circuitBreakerConfig": {"failureThreshold": 1}}
    pipelines.finish(config)
    # Too large for the topic: nobody's outage.
    ended = pipelines.replay("tills", mode=ReplayMode.REDRIVE, patch={"_value": "repeat(_value, 900)"})
    assert isinstance(ended.error, RecordsUnwelcomeError), ended.error
    assert not ended.error.retryable
    assert pipelines.one("SELECT count(*) FROM etl.circuit_breaker WHERE state <> 'closed' OR failures > 0") == 0
    # Brokers that are left alone by others are left alone by a redrive too.
    opened = (
        "INSERT INTO etl.circuit_breaker (system, state, failures, opened_at, reopen_at) VALUES (%s, 'open', 9, "
        "clock_timestamp(), clock_timestamp() + interval '1 hour')"
    )
    system = kafka_system(kafka.bootstrap_servers)
    pipelines.execute("DELETE FROM etl.circuit_breaker")
    with pipelines.database.connect(autocommit=True) as conn:
        conn.execute(opened.encode(), (system,))
    ended = pipelines.replay("tills", mode=ReplayMode.REDRIVE, patch=REPAIR)
    assert isinstance(ended.error, BreakerOpenError), ended.error
    assert pipelines.rows("SELECT DISTINCT status FROM etl.dead_letter") == [("pending",)]
    assert pipelines.replayed("tills", mode=ReplayMode.REDRIVE, patch=REPAIR, dry_run=True).replayed == 2


def test_a_run_that_tries_again_by_itself_sends_nothing_twice(
    pipelines: Pipelines, kafka: KafkaBroker, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = _config(pipelines, kafka, topic)
    retry = {"strategy": "fixed", "maxAttempts": 3, "initialDelaySeconds": 0.1}
    config["errorHandlingConfig"] = {"retryConfig": retry}
    pipelines.finish(config)
    with ThreadPoolExecutor(1) as executor, pipelines.database.connect() as conn:
        # The letters' end waits for it, and loses its connection meanwhile.
        conn.execute("LOCK TABLE etl.batch_tracker IN EXCLUSIVE MODE")
        broken = executor.submit(_break_who_waits, pipelines.database, conn)
        summary = pipelines.replayed("tills", mode=ReplayMode.REDRIVE, patch=REPAIR)
        broken.result()
    assert "event=retry" in caplog.text
    assert (summary.taken, summary.replayed) == (2, 2)
    assert len(records_in(kafka, topic)) == 6
    assert pipelines.one("SELECT count(*) FROM etl.dead_letter_redrive") == 0
    pipelines.finish(config)
    assert _home(pipelines) == WHOLE


def _break_who_waits(database: Any, blocking: Any) -> None:
    waiting = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with database.connect(autocommit=True) as conn:
        until = monotonic() + 60
        while not conn.execute(waiting).fetchall():
            assert monotonic() < until, "nobody waits for the ledger"
            sleep(0.05)
    blocking.rollback()


UNABLE = {
    "fails": (
        "CAST(CAST(substring(_value, 8, 1) AS INT) / (CASE WHEN _value LIKE '%11%' THEN 0 ELSE 1 END) AS STRING)"
    ),
    "gives nothing": "CASE WHEN _value LIKE '%7%' THEN _value END",
}


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("how", UNABLE)
def test_a_repair_that_gives_one_letter_no_record_sends_none(
    pipelines: Pipelines, kafka: KafkaBroker, topic: str, how: str, dry_run: bool
) -> None:
    pipelines.finish(_config(pipelines, kafka, topic))
    ended = pipelines.replay("tills", mode=ReplayMode.REDRIVE, patch={"_value": UNABLE[how]}, dry_run=dry_run)
    assert isinstance(ended.error, ConfigError), ended.error
    assert "no record for 1 of the letters" in ended.error.what
    unable = pipelines.one("SELECT dead_letter_id::text FROM etl.dead_letter WHERE (source->>'partition')::int = 0")
    assert unable in str(ended.error.found)
    assert ("DIVIDE_BY_ZERO" if how == "fails" else "NULL") in str(ended.error.found)
    assert len(records_in(kafka, topic)) == 4
    assert pipelines.rows("SELECT status, attempt FROM etl.dead_letter") == [("pending", 1)] * 2


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_topic_that_is_gone_takes_no_letters(pipelines: Pipelines, kafka: KafkaBroker, dry_run: bool) -> None:
    topic = _filled(kafka, kafka.create_topic(f"gone-{uuid4().hex[:8]}", partitions=2))
    pipelines.finish(_config(pipelines, kafka, topic))
    kafka.delete_topic(topic)
    ended = pipelines.replay("tills", mode=ReplayMode.REDRIVE, dry_run=dry_run)
    assert isinstance(ended.error, ConfigError), ended.error
    assert ended.error.found == f"{topic}/0, {topic}/1"
    assert not ended.error.retryable
    assert pipelines.rows("SELECT status FROM etl.dead_letter") == [("pending",)] * 2


def test_a_pipeline_with_state_takes_its_letters_by_redrive_only(
    pipelines: Pipelines, kafka: KafkaBroker, topic: str
) -> None:
    config = _config(pipelines, kafka, topic)
    config["transforms"] = [aggregation(groupByColumns="id", aggregations="amount:sum:total")]
    config["streamingConfigJson"]["outputMode"] = "update"
    config["load"] |= {"writeMode": "upsert", "keys": "id"}
    pipelines.execute("CREATE TABLE result (id bigint PRIMARY KEY, total bigint)")
    pipelines.finish(config)
    refused = pipelines.replay("tills", patch=REPAIR)
    assert isinstance(refused.error, ConfigError)
    assert "redrive" in str(refused.error)
    assert pipelines.one("SELECT count(*) FROM etl.dead_letter WHERE status = 'pending'") == 2
    assert pipelines.replayed("tills", mode=ReplayMode.REDRIVE, patch=REPAIR).replayed == 2
    pipelines.finish(config)
    assert pipelines.rows("SELECT id, total FROM result ORDER BY id") == WHOLE


def test_letters_without_a_record_are_left_and_told(pipelines: Pipelines, kafka: KafkaBroker, topic: str) -> None:
    kafka.produce(topic, [Record(None, key=b"gone", partition=0), Record(None, partition=1)])
    pipelines.finish(_config(pipelines, kafka, topic))
    waiting = "SELECT dead_letter_id, raw_value IS NULL FROM etl.dead_letter WHERE status = 'pending' ORDER BY 2, 1"
    assert [empty for _, empty in pipelines.rows(waiting)] == [False, False, True, True]
    for dry_run in (True, False):
        summary = pipelines.replayed("tills", mode=ReplayMode.REDRIVE, patch=REPAIR, dry_run=dry_run)
        assert (summary.taken, summary.replayed, summary.unsendable) == (2, 2, 2)
    assert [record.value for record in records_in(kafka, topic)].count(None) == 2
    left = pipelines.rows(waiting)
    assert [empty for _, empty in left] == [True, True]
    # Nothing else to send, or named by its id: then it is an error.
    for chosen in ({}, {"ids": (left[0][0],)}):
        ended = pipelines.replay("tills", mode=ReplayMode.REDRIVE, letters=chosen)
        assert isinstance(ended.error, ConfigError)
        assert "hold no raw record" in str(ended.error)
    assert pipelines.rows(waiting) == left


def test_a_dry_run_sends_nothing(pipelines: Pipelines, kafka: KafkaBroker, topic: str) -> None:
    pipelines.finish(_config(pipelines, kafka, topic))
    summary = pipelines.replayed("tills", mode=ReplayMode.REDRIVE, dry_run=True)
    assert (summary.taken, summary.replayed) == (2, 2)
    assert len(records_in(kafka, topic)) == 4
    assert pipelines.one("SELECT count(*) FROM etl.dead_letter WHERE status = 'pending'") == 2


def test_reprocessing_gives_a_record_its_own_columns_again(
    pipelines: Pipelines, kafka: KafkaBroker, topic: str
) -> None:
    config = _config(pipelines, kafka, topic)
    own = {"key": "_key", "topic": "_topic", "part": "_partition", "place": "_offset", "stamped": "_timestamp"}
    columns = {"id": "id", "amount": "amount", **own, "header": "_headers[0].value"}
    config["transforms"] = [{"transformType": "select", "parameters": {"columns": columns}}]
    pipelines.finish(config)
    assert pipelines.replayed("tills", patch=REPAIR).replayed == 2
    (row,) = pipelines.rows("SELECT amount, key, topic, part, place, header, stamped FROM result WHERE id = 2")
    assert row[:6] == (-7, b"b\xff", topic, 1, 0, b"till \xff")
    stamped = pipelines.one("SELECT stamped FROM result WHERE id = 3")
    assert abs((row[6] - stamped).total_seconds()) < 60


def test_letters_of_files_cannot_be_redriven(pipelines: Pipelines, inbox: Any) -> None:
    write_lines(inbox / "1.json", {"id": 1}, "no json")
    pipelines.finish(file_pipeline("files", inbox, pipelines.checkpoints, schema="id BIGINT"))
    ended = pipelines.replay("files", mode=ReplayMode.REDRIVE)
    assert isinstance(ended.error, ConfigError)
    assert ended.error.found == "source file"
