"""Kafka as a source: the record's own columns, limits, what is missing, what the broker deleted, what is no row."""

from __future__ import annotations

import json
from base64 import b64encode
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

from kafka_pipelines import kafka_pipeline
from ledger_books import balanced_totals
from pipeline_runs import Pipelines, select
from pyspark.sql.types import IntegerType, StructField, StructType

from sandbox.kafka import KafkaBroker, Record
from sandbox.ports import free_port
from spark_jobs.contracts.exit_codes import ExitCode
from spark_jobs.runtime.gaps import source_gaps
from spark_jobs.sources.base import OffsetRange
from spark_jobs.sources.kafka import KafkaSource


def _numbers(start: int, stop: int, partition: int = 0) -> list[Record]:
    return [Record(json.dumps({"id": number}), partition=partition) for number in range(start, stop)]


def _config(pipelines: Pipelines, kafka: KafkaBroker, topic: str, **options: str) -> dict[str, Any]:
    columns = select(id="id", part="_partition", place="_offset")
    return kafka_pipeline(
        "numbers",
        kafka.bootstrap_servers,
        topic,
        pipelines.checkpoints,
        schema="id BIGINT",
        transforms=[columns],
        options=options,
    )


def test_the_records_own_columns(pipelines: Pipelines, kafka: KafkaBroker, new_topic: Any) -> None:
    topic = new_topic()
    stamp = datetime(2026, 3, 2, 12, 30, 15, 250_000, tzinfo=UTC)
    headers = (("source", b"shop \xff"), ("source", b"again"))
    first = Record(
        '{"id": 1}', key=b"k\x00\xff", headers=headers, timestamp_ms=int(stamp.timestamp() * 1000), partition=1
    )
    kafka.produce(topic, [Record('{"id": 0}', partition=1), first])
    config = _config(pipelines, kafka, topic)
    config["transforms"] = [
        select(
            id="id",
            key="_key",
            topic="_topic",
            part="_partition",
            place="_offset",
            stamped="_timestamp",
            headers="size(_headers)",
            header="_headers[0].key",
            header_value="_headers[0].value",
        )
    ]
    pipelines.finish(config)
    rows = pipelines.rows("SELECT * FROM result WHERE id = 1")
    assert rows == [(1, b"k\x00\xff", topic, 1, 1, stamp, 2, "source", b"shop \xff")]
    assert pipelines.rows("SELECT key, headers FROM result WHERE id = 0") in ([(None, None)], [(None, -1)], [(None, 0)])


def test_a_micro_batch_is_as_large_as_the_option_says(pipelines: Pipelines, kafka: KafkaBroker, new_topic: Any) -> None:
    topic = new_topic()
    kafka.produce(topic, [*_numbers(0, 60), *_numbers(60, 100, partition=1)])
    pipelines.finish(_config(pipelines, kafka, topic, maxOffsetsPerTrigger="30"))
    batches = pipelines.rows("SELECT source_rows, start_offsets, end_offsets FROM etl.batch_tracker ORDER BY batch_id")
    assert all(batch[0] <= 30 for batch in batches)
    assert [batch[1] for batch in batches][1:] == [batch[2] for batch in batches][:-1]
    assert batches[-1][2] == {topic: {"0": 60, "1": 40}}
    assert pipelines.rows("SELECT count(*), count(DISTINCT id) FROM result") == [(100, 100)]
    assert balanced_totals(pipelines, "numbers")["written_rows"] == 100


def test_a_topic_that_does_not_exist_ends_the_run_quickly(pipelines: Pipelines, kafka: KafkaBroker) -> None:
    started = monotonic()
    ended = pipelines.run(_config(pipelines, kafka, "nowhere"))
    assert ended.exit_code is ExitCode.SOURCE_UNREACHABLE
    assert "nowhere" in str(ended.error)
    assert "Create the topic" in str(ended.error)
    assert monotonic() - started < 15
    assert _nothing_was_made(pipelines)


def test_a_broker_that_does_not_answer_ends_the_run_quickly(
    pipelines: Pipelines, kafka: KafkaBroker, new_topic: Any
) -> None:
    started = monotonic()
    nobody = f"127.0.0.1:{free_port()}"
    ended = pipelines.run(_config(pipelines, kafka, new_topic(), **{"kafka.bootstrap.servers": nobody}))
    assert ended.exit_code is ExitCode.SOURCE_UNREACHABLE
    assert nobody in str(ended.error)
    assert "bootstrap.servers" in str(ended.error)
    assert monotonic() - started < 5
    assert _nothing_was_made(pipelines)


def test_deleted_records_end_the_run(pipelines: Pipelines, kafka: KafkaBroker, new_topic: Any) -> None:
    topic = _topic_with_a_hole(pipelines, kafka, new_topic, {})
    ended = pipelines.run(_config(pipelines, kafka, topic))
    assert ended.exit_code is ExitCode.SOURCE_UNREACHABLE
    assert "failOnDataLoss" in str(ended.error)
    assert pipelines.one("SELECT count(*) FROM result") == 10
    assert pipelines.one("SELECT count(*) FROM etl.batch_tracker") == 1


def test_what_was_deleted_is_a_recorded_gap_where_that_is_wanted(
    pipelines: Pipelines, kafka: KafkaBroker, new_topic: Any
) -> None:
    tolerant = {"failOnDataLoss": "false"}
    topic = _topic_with_a_hole(pipelines, kafka, new_topic, tolerant)
    pipelines.finish(_config(pipelines, kafka, topic, **tolerant))
    assert pipelines.rows("SELECT part, array_agg(place ORDER BY place) FROM result GROUP BY part ORDER BY part") == [
        (0, [*range(10), *range(25, 40)]),
        (1, list(range(5))),
    ]
    assert pipelines.rows("SELECT batch_id, source, missing_rows FROM etl.source_gap") == [
        (1, {"topic": topic, "partition": 0, "from_offset": 10, "to_offset": 25}, 15)
    ]
    assert balanced_totals(pipelines, "numbers")["written_rows"] == 30


def test_a_gap_that_has_grown_since_the_batch_has_no_number(spark: Any, kafka: KafkaBroker, new_topic: Any) -> None:
    topic = new_topic(partitions=1)
    kafka.produce(topic, [json.dumps({"id": number}) for number in range(10)])
    kafka.delete_records(topic, {0: 6})
    options = {"kafka.bootstrap.servers": kafka.bootstrap_servers, "subscribe": topic, "failOnDataLoss": "false"}
    source = KafkaSource(spark, StructType([StructField("id", IntegerType())]), options, {})
    offsets = OffsetRange(start={topic: {"0": 0}}, end={topic: {"0": 10}})
    assert [gap.missing_rows for gap in source_gaps(spark, source, offsets, rows_read=4)] == [6]
    [grown] = source_gaps(spark, source, offsets, rows_read=8)
    assert grown.missing_rows is None
    assert "2 rows of the whole batch" in grown.reason


def test_tombstones_and_bad_bytes_are_dead_letters(pipelines: Pipelines, kafka: KafkaBroker, new_topic: Any) -> None:
    topic = new_topic(partitions=1)
    bad = [None, b"", b'{"id": 1, "name": "\xff\xfe"}', b"\x00\x01\x02", b'{"id": "x"}', b'{"id": 1}{"id": 2}']
    headers = (("trace", b"\x01\xff"),)
    kafka.produce(topic, [Record(value, key=b"\xffkey", headers=headers) for value in bad])
    kafka.produce(topic, ['{"id": 7}'])
    pipelines.finish(_config(pipelines, kafka, topic))
    letters = pipelines.rows(
        "SELECT (source->>'offset')::int, raw_value, raw_key, error_class, source->>'topic', "
        "(source->>'partition')::int, stage, status FROM etl.dead_letter ORDER BY 1"
    )
    assert [(place, value) for place, value, *_ in letters] == list(enumerate(bad))
    assert [letter[3] for letter in letters[:3]] == ["NULL_VALUE", "EMPTY_VALUE", "INVALID_UTF8"]
    assert {letter[2:3] + letter[4:] for letter in letters} == {(b"\xffkey", topic, 0, "parse", "pending")}
    assert pipelines.one("SELECT count(*) FROM etl.dead_letter WHERE raw_headers IS NOT NULL") == len(bad)
    assert pipelines.rows("SELECT id FROM result") == [(7,)]
    totals = balanced_totals(pipelines, "numbers")
    assert (totals["dead_lettered_rows"], totals["written_rows"]) == (len(bad), 1)


def test_letters_of_all_stages_have_the_record_as_it_came(
    pipelines: Pipelines, kafka: KafkaBroker, new_topic: Any
) -> None:
    topic = new_topic(partitions=1)
    headers = (("trace", b"\x01\xff"),)
    values = [b"no json", b'{"id": 0 ,"x":1}', b'{"id": 99, "x": "\\u0000"}', b'{"id": 7}']
    kafka.produce(topic, [Record(value, key=b"\xffkey", headers=headers, timestamp_ms=1000) for value in values])
    config = _config(pipelines, kafka, topic)
    config["transforms"] = [select(id="id", share="100 DIV id")]
    config["load"]["autoCreateTable"] = False
    pipelines.execute("CREATE TABLE result (id bigint CHECK (id < 50), share bigint)")
    pipelines.finish(config)
    assert pipelines.rows("SELECT id, share FROM result") == [(7, 14)]
    letters = pipelines.rows(
        "SELECT stage, (source->>'offset')::int, raw_value, raw_key, raw_headers->0->>'key', raw_headers->0->>'value', "
        "source->>'timestamp', parsed_row FROM etl.dead_letter ORDER BY 2"
    )
    assert [letter[:3] for letter in letters] == [
        (stage, place, values[place]) for place, stage in enumerate(("parse", "transform", "write"))
    ]
    assert {letter[3:6] for letter in letters} == {(b"\xffkey", "trace", b64encode(b"\x01\xff").decode())}
    assert len({letter[6] for letter in letters}) == 1
    assert [letter[7] for letter in letters] == [None, {"id": 0}, {"id": 99, "share": 1}]


def _topic_with_a_hole(pipelines: Pipelines, kafka: KafkaBroker, new_topic: Any, options: dict[str, str]) -> str:
    """Return a topic that was read up to offset 10, and lost the records before 25 since."""
    topic: str = new_topic()
    kafka.produce(topic, _numbers(0, 10))
    pipelines.finish(_config(pipelines, kafka, topic, **options))
    kafka.produce(topic, [*_numbers(10, 40), *_numbers(100, 105, partition=1)])
    kafka.delete_records(topic, {0: 25})
    return topic


def _nothing_was_made(pipelines: Pipelines) -> bool:
    checkpoint: Path = pipelines.checkpoints / "numbers"
    return bool(pipelines.one("SELECT to_regclass('public.result') IS NULL")) and not checkpoint.exists()
