"""Redrive: raw records of dead letters back to their topic, once, whatever happens between Kafka and PostgreSQL."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from kafka_pipelines import kafka_pipeline, records_in
from pipeline_runs import Pipelines, aggregation, file_pipeline, write_lines

from sandbox.kafka import KafkaBroker, Record
from spark_jobs import faults
from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.replay import ReplayMode

REPAIR = {"_value": "replace(_value, 'minus ', '-')"}


@pytest.fixture
def topic(new_topic: Any, kafka: KafkaBroker) -> str:
    """A topic with two good records and two bad ones, which a patch repairs."""
    name = new_topic()
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
    return str(name)


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


@pytest.mark.parametrize("point", ["redrive.after_mark", "redrive.after_send"])
def test_a_failure_between_kafka_and_postgresql_sends_nothing_twice(
    pipelines: Pipelines, kafka: KafkaBroker, topic: str, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    config = _config(pipelines, kafka, topic)
    pipelines.finish(config)
    file = pipelines.folder / "faults"
    file.write_text(f"{point} fail\n")
    monkeypatch.setenv(faults.VARIABLE, str(file))
    # Other tests of this process may have been here.
    monkeypatch.setattr(faults, "_reached", Counter())
    ended = pipelines.replay("tills", mode=ReplayMode.REDRIVE, patch=REPAIR)
    monkeypatch.delenv(faults.VARIABLE)
    assert ended.error is not None
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
