"""Micro-batches of a topic again, by offsets; refused before anything is written where the broker has deleted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest
from kafka_pipelines import kafka_pipeline, records_in
from pipeline_runs import Pipelines, select

from sandbox.kafka import KafkaBroker, Record
from spark_jobs.contracts.errors import ReprocessRefusedError


@pytest.fixture
def topic(kafka: KafkaBroker, new_topic: Any) -> str:
    """Two partitions with 60 records each, one in ten unreadable."""
    name = str(new_topic())
    kafka.produce(name, [_record(number, partition=number % 2) for number in range(120)])
    return name


def _record(number: int, partition: int) -> Record:
    return Record("no json" if number % 10 == 0 else json.dumps({"id": number, "amount": number}), partition=partition)


def _config(pipelines: Pipelines, kafka: KafkaBroker, topic: str, *, factor: int = 1, **options: str) -> dict[str, Any]:
    config = kafka_pipeline(
        "numbers",
        kafka.bootstrap_servers,
        topic,
        pipelines.checkpoints,
        schema="id BIGINT, amount BIGINT",
        transforms=[select(id="id", amount=f"amount * {factor}", part="_partition", place="_offset")],
        options={"maxOffsetsPerTrigger": "30", **options},
    )
    config["load"] |= {"batchColumn": "etl_batch", "maxDeadLetterFraction": 1}
    return config


def test_a_topics_batches_are_done_again(pipelines: Pipelines, kafka: KafkaBroker, topic: str, tmp_path: Path) -> None:
    pipelines.finish(_config(pipelines, kafka, topic))
    pipelines.finish(_config(pipelines, kafka, topic, factor=1000))
    assert pipelines.one("SELECT count(*) FROM etl.batch_tracker") == 4

    summary = pipelines.reprocessed("numbers", batches="1-3")

    assert summary.batches == 3
    assert (summary.rows_before, summary.letters_before) == (summary.rows_after, summary.letters_after)
    # Against what is in the topic by its own client, and the ledger's offsets of the first micro-batch.
    (ends,) = pipelines.rows(
        "SELECT end_offsets -> %s FROM etl.batch_tracker WHERE pipeline_id = 'numbers' AND batch_id = 0", topic
    )
    source = tmp_path / "topic.json"
    places = [(p.partition, p.offset, json.loads(p.value)) for p in records_in(kafka, topic) if p.value != b"no json"]
    source.write_text("\n".join(json.dumps({"part": p, "place": o, **row}) for p, o, row in places))
    target = tmp_path / "result.json"
    rows = pipelines.rows("SELECT part, place, id, amount FROM result")
    target.write_text(
        "\n".join(json.dumps(dict(zip(("part", "place", "id", "amount"), row, strict=True))) for row in rows)
    )
    first = f"CASE part WHEN 0 THEN {int(ends[0]['0'])} ELSE {int(ends[0]['1'])} END"
    wanted = f"SELECT part, place, id, amount * CASE WHEN place < {first} THEN 1 ELSE 1000 END FROM '{source}'"
    given = f"SELECT part, place, id, amount FROM '{target}'"
    assert duckdb.sql(f"({wanted} EXCEPT ALL {given}) UNION ALL ({given} EXCEPT ALL {wanted})").fetchall() == []
    assert len(rows) == 108
    assert pipelines.one("SELECT count(*) FROM etl.dead_letter WHERE status = 'pending'") == 12


def test_offsets_choose_the_batches_that_have_read_them(pipelines: Pipelines, kafka: KafkaBroker, topic: str) -> None:
    pipelines.finish(_config(pipelines, kafka, topic))
    ends = [
        int(offsets["1"])
        for (offsets,) in pipelines.rows("SELECT end_offsets -> %s FROM etl.batch_tracker ORDER BY batch_id", topic)
    ]
    for first, last, wanted in (
        (0, 0, [0]),
        (ends[0] - 1, ends[0] - 1, [0]),
        (ends[0], ends[0], [1]),
        (ends[0] - 1, ends[1], [0, 1, 2]),
        (ends[2], 10**9, [3]),
    ):
        chosen = pipelines.reprocessed("numbers", offsets=f"{topic}/1:{first}-{last}", dry_run=True)
        assert [one.batch_id for one in chosen.shown] == wanted
    for nowhere in (f"{topic}/7:0-9", f"{topic}/1:{ends[3]}-{ends[3]}", "other/1:0-9"):
        ended = pipelines.reprocess("numbers", offsets=nowhere)
        assert isinstance(ended.error, ReprocessRefusedError)
        assert "has read these offsets" in str(ended.error)


@pytest.mark.parametrize("loss", ["true", "false"])
def test_what_the_broker_has_deleted_is_refused_and_stays_in_the_target(
    pipelines: Pipelines, kafka: KafkaBroker, topic: str, loss: str
) -> None:
    pipelines.finish(_config(pipelines, kafka, topic, failOnDataLoss=loss))
    before = pipelines.rows("SELECT * FROM result ORDER BY id")
    ends = pipelines.rows("SELECT end_offsets -> %s FROM etl.batch_tracker ORDER BY batch_id", topic)
    kafka.delete_records(topic, {0: int(ends[1][0]["0"]) - 1})

    ended = pipelines.reprocess("numbers", batches="0-3")

    assert isinstance(ended.error, ReprocessRefusedError)
    assert "micro-batch 0: offsets 0 to" in str(ended.error)
    assert "micro-batch 1: offsets" in str(ended.error)
    assert "2 of them are there" in str(ended.error)
    assert pipelines.rows("SELECT * FROM result ORDER BY id") == before
    assert pipelines.reprocessed("numbers", batches="2-3").batches == 2
    assert pipelines.one("SELECT count(*) FROM result") == 108


def test_a_topic_that_was_made_anew_is_refused(pipelines: Pipelines, kafka: KafkaBroker, new_topic: Any) -> None:
    name = new_topic()
    kafka.produce(name, [_record(number, partition=0) for number in range(1, 9)])
    pipelines.finish(_config(pipelines, kafka, name))
    kafka.delete_topic(name)
    kafka.create_topic(name, partitions=2)
    kafka.produce(name, [_record(number, partition=0) for number in range(1, 3)])
    ended = pipelines.reprocess("numbers", batches="0")
    assert isinstance(ended.error, ReprocessRefusedError)
    assert "the broker has 0 to 1" in str(ended.error)
    assert pipelines.one("SELECT count(*) FROM result") == 8
