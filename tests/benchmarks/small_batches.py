"""Many small micro-batches: what each costs beyond Spark's own, with a ``foreachBatch`` that writes to nowhere."""

from __future__ import annotations

from collections.abc import Iterator

from peers import Bench, rounds
from report import Figure
from rows import SCHEMA, TABLE, parquet

_BATCHES = 80
_ROWS = 1_000


def figures(bench: Bench, number: int) -> Iterator[Figure]:
    """Measure, and yield the milliseconds for each micro-batch."""
    data = parquet(bench.spark, bench.folder, _BATCHES * _ROWS, files=_BATCHES)
    frame = bench.spark.readStream.schema(SCHEMA).option("maxFilesPerTrigger", "1").parquet(str(data))
    params = {"path": str(data), "format": "parquet", "maxFilesPerTrigger": "1"}
    extract = {"sourceType": "file", "connectionParams": params}

    def fresh() -> None:
        bench.sql("DROP TABLE IF EXISTS peer", f"CREATE TABLE peer ({TABLE})", "CHECKPOINT")

    def check(name: str) -> None:
        wanted = 0 if name == "no-op" else _BATCHES * _ROWS
        assert bench.sql("SELECT count(*) FROM peer") == (wanted,), name

    peers = {
        "no-op": lambda: bench.stream(frame, lambda df, _: df.write.format("noop").mode("append").save()),
        "exactly once": lambda: bench.run(bench.pipeline(extract=extract, schema=SCHEMA, load={})),
    }
    seconds = rounds(number, peers, fresh, check)
    each = {name: took / _BATCHES * 1000 for name, took in seconds.items()}
    more = each["exactly once"] - each["no-op"]
    for name, value in each.items():
        what = f"small micro-batches (1,000 rows): {name}"
        yield Figure(what, value, "ms", "Spark's no-op foreachBatch", value / each["no-op"])
    name = "small micro-batches (1,000 rows): beyond Spark's no-op foreachBatch"
    yield Figure(name, more, "ms", "50 ms", more / 50, 1.0, less=True)
