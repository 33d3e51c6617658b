"""100,000 dead letters replayed, beside a pipeline that loads as many rows of the same kind from its source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from peers import Bench, rounds
from pyspark.sql import DataFrame
from report import Figure
from rows import TABLE

from sandbox.kafka import KafkaBroker
from spark_jobs.contracts.credentials import DatabaseConnection
from spark_jobs.contracts.replay import LetterFilter, ReplayRequest
from spark_jobs.run_pipeline import run_replay
from spark_jobs.runtime.stopping import Stop

_LETTERS = 100_000
# Lines whose price is a text that is no number, until a patch takes the text away.
_BROKEN, _REPAIR = '"price":"free ', '"price":"'
Extract = dict[str, Any]
_SCHEMA = "id BIGINT, customer INT, sku STRING, note STRING, price DECIMAL(12,2), at TIMESTAMP"


def figures(bench: Bench, number: int) -> Iterator[Figure]:
    """Measure, and yield loading against replaying: lines of a file, and records of a topic."""
    bench.sql("DROP TABLE IF EXISTS peer", f"CREATE TABLE peer ({TABLE})")
    good, bad = _text(bench, _REPAIR), _text(bench, _BROKEN)
    lines = {name: bench.fresh_folder(name) for name in ("good", "bad")}
    good.write.text(str(lines["good"]))
    bad.write.text(str(lines["bad"]))
    yield from _figures(bench, number, "lines of a file", _file(lines["good"]), _file(lines["bad"]))
    with KafkaBroker() as broker:
        for topic, values in (("good", good), ("bad", bad)):
            broker.create_topic(topic, 2)
            writer = values.repartition(2).write.format("kafka")
            writer.option("kafka.bootstrap.servers", broker.bootstrap_servers).option("topic", topic).save()
        yield from _figures(bench, number, "records of a topic", _topic(broker, "good"), _topic(broker, "bad"))


def _figures(bench: Bench, number: int, what: str, good: Extract, bad: Extract) -> Iterator[Figure]:
    failing = bench.pipeline(extract=bad, schema=_SCHEMA, load={"maxDeadLetterFraction": 1})
    bench.run(failing)
    assert bench.sql(f"SELECT count(*) FROM etl.dead_letter WHERE pipeline_id = '{failing.stem}'") == (_LETTERS,)

    def fresh() -> None:
        bench.sql(
            "TRUNCATE peer",
            "UPDATE etl.dead_letter_bundle SET status = 'pending', replay_id = NULL WHERE status <> 'pending'",
            "DELETE FROM etl.dead_letter_replay",
            "VACUUM FULL etl.dead_letter_bundle",
            "VACUUM FULL etl.dead_letter_replay_bundle",
            "CHECKPOINT",
        )

    def check(name: str) -> None:
        assert bench.sql("SELECT count(*), count(DISTINCT id) FROM peer") == (_LETTERS, _LETTERS), name

    peers = {
        f"load {what}": lambda: bench.run(bench.pipeline(extract=good, schema=_SCHEMA, load={})),
        f"replay {what}": lambda: _replay(bench, failing.stem),
    }
    speed = {name: _LETTERS / took / 1000 for name, took in rounds(number, peers, fresh, check).items()}
    load, replay = speed.values()
    yield Figure(f"100,000 {what} loaded, whole run", load, "krows/s", "", 1.0)
    yield Figure(f"100,000 {what} replayed, whole run", replay, "krows/s", "loading them", replay / load, 1.0)


def _text(bench: Bench, price: str) -> DataFrame:
    rows = bench.spark.range(_LETTERS).selectExpr(
        "id",
        "CAST(id % 1000 AS INT) AS customer",
        "concat('sku-', id % 5000) AS sku",
        "concat('a note of some length about order number ', id) AS note",
        "CAST(CAST((id % 100000) / 100 AS DECIMAL(12,2)) AS STRING) AS price",
        "timestamp_micros(1700000000000000 + id * 1000) AS at",
    )
    text = rows.selectExpr("to_json(struct(*)) AS value").coalesce(1)
    return text.selectExpr(f"replace(value, '{_REPAIR}', '{price}') AS value")


def _file(path: Path) -> Extract:
    return {"sourceType": "file", "connectionParams": {"path": str(path), "format": "json"}}


def _topic(broker: KafkaBroker, topic: str) -> Extract:
    params = {
        "kafka.bootstrap.servers": broker.bootstrap_servers,
        "subscribe": topic,
        "startingOffsets": "earliest",
    }
    return {"sourceType": "kafka", "topic": topic, "connectionParams": params}


def _replay(bench: Bench, pipeline_id: str) -> None:
    patch = {"_value": f"replace(_value, '{_BROKEN}', '{_REPAIR}')"}
    request = ReplayRequest.of(replay_id=uuid4(), letters=LetterFilter.of(pipeline_id=pipeline_id), patch=patch)
    stop = Stop()
    database = DatabaseConnection.from_airflow("bench", bench.server.airflow_uri("bench"))
    ended = run_replay(request, database, tracker_schema="etl", stop=stop, session=lambda: bench.spark)
    stop.ended(0)
    assert ended.error is None, ended.error
