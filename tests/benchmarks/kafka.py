"""Kafka (JSON, ten fields) into PostgreSQL beside the same read into Spark's no-op sink, and JDBC."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psutil
from peers import Bench, rounds
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from report import Figure

from sandbox.kafka import KafkaBroker

_FIELDS = {
    "id": "id",
    "customer": "CAST(id % 100000 AS INT)",
    "sku": "concat('sku-', lpad(CAST(id % 5000 AS STRING), 8, '0'))",
    "note": "concat('a note of some length about order number ', CAST(id AS STRING))",
    "price": "CAST((id % 100000) / 100 AS DECIMAL(12,2))",
    "quantity": "CAST(id % 7 AS INT)",
    "country": "element_at(array('DE', 'FR', 'IT', 'PL', 'SE'), CAST(id % 5 + 1 AS INT))",
    "channel": "IF(id % 3 = 0, 'web', 'shop')",
    "paid": "id % 2 = 0",
    "at": "timestamp_micros(1700000000000000 + id * 1000)",
}
_SCHEMA = (
    "id BIGINT, customer INT, sku STRING, note STRING, price DECIMAL(12,2), quantity INT, country STRING, "
    "channel STRING, paid BOOLEAN, at TIMESTAMP"
)
_TABLE = (
    "id bigint, customer integer, sku text, note text, price numeric(12,2), quantity integer, country text, "
    "channel text, paid boolean, at timestamp with time zone"
)
_TOPIC = "bench"


def figures(bench: Bench, number: int) -> Iterator[Figure]:
    """Measure, and yield rows per second, per core, and the sink's share of the whole time."""
    with KafkaBroker(heap="1g") as broker:
        broker.create_topic(_TOPIC, 2)
        _fill(bench, broker)
        yield from _figures(bench, broker, number)


def _fill(bench: Bench, broker: KafkaBroker) -> None:
    fields = [f"{expression} AS {name}" for name, expression in _FIELDS.items()]
    values = bench.spark.range(0, bench.rows, 1, 2).selectExpr(*fields).select(F.to_json(F.struct("*")).alias("value"))
    writer = values.write.format("kafka").option("kafka.bootstrap.servers", broker.bootstrap_servers)
    writer.option("topic", _TOPIC).save()


def _figures(bench: Bench, broker: KafkaBroker, number: int) -> Iterator[Figure]:
    params = {
        "kafka.bootstrap.servers": broker.bootstrap_servers,
        "subscribe": _TOPIC,
        "startingOffsets": "earliest",
    }
    extract = {"sourceType": "kafka", "topic": _TOPIC, "connectionParams": params}
    parsed = _parsed(bench, params)
    peers: dict[str, Callable[[], Any]] = {
        "into Spark's no-op sink": lambda: bench.stream(
            parsed, lambda df, _: df.write.format("noop").mode("append").save()
        ),
        "exactly once, auto": lambda: bench.run(bench.pipeline(extract=extract, schema=_SCHEMA, load={})),
        "Spark JDBC, reWriteBatchedInserts": lambda: bench.stream(
            parsed, lambda df, _: bench.jdbc(df.filter("_bad IS NULL").drop("_bad"), "peer", rewrite=True)
        ),
    }

    def fresh() -> None:
        bench.sql("DROP TABLE IF EXISTS peer", f"CREATE TABLE peer ({_TABLE})", "CHECKPOINT")

    def check(name: str) -> None:
        wanted = 0 if "no-op" in name else bench.rows
        assert bench.sql("SELECT count(DISTINCT id) FROM peer") == (wanted,), name

    seconds = rounds(number, peers, fresh, check)
    noop = seconds["into Spark's no-op sink"]
    for name, goal in (("exactly once, auto", 0.4), ("Spark JDBC, reWriteBatchedInserts", None)):
        share = (seconds[name] - noop) / seconds[name]
        yield Figure(f"Kafka: the sink's share of the time: {name}", share * 100, "%", "whole time", share, goal, True)
    cores = psutil.cpu_count() or 1
    for name, took in seconds.items():
        rate, against = bench.rows / took / 1000, "into Spark's no-op sink"
        yield Figure(f"Kafka, JSON, ten columns: {name}", rate, "krows/s", against, noop / took)
        yield Figure(f"Kafka, for each of {cores} cores: {name}", rate / cores, "krows/s", against, noop / took)


def _parsed(bench: Bench, params: dict[str, str]) -> DataFrame:
    frame = bench.spark.readStream.format("kafka").options(**params).load()
    schema = f"{_SCHEMA}, _bad STRING"
    options = {"mode": "PERMISSIVE", "columnNameOfCorruptRecord": "_bad"}
    return frame.select(F.from_json(F.col("value").cast("string"), schema, options).alias("row")).select("row.*")
