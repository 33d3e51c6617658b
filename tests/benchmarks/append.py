r"""Append: a whole exactly-once run beside ``\copy``, JDBC, and the same writer without ledger and fence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

import pyarrow as pa
from peers import Bench, rounds
from pyspark.sql import DataFrame
from report import Figure
from rows import SCHEMA, TABLE, csv_files, parquet

from spark_jobs.sinks.copying import Session, copy_rows, transaction
from spark_jobs.sinks.writing import begun

OURS = ("auto", "single", "two_phase", "staged")


def figures(bench: Bench, number: int) -> Iterator[Figure]:
    """Measure, and yield what the goals ask for."""
    data = parquet(bench.spark, bench.folder, bench.rows)
    _fresh(bench)
    _ours(bench, data, "single")
    one, two = csv_files(bench.uri, bench.folder, 1), csv_files(bench.uri, bench.folder, 2)
    frame = bench.spark.read.schema(SCHEMA).parquet(str(data))
    peers: dict[str, Callable[[], Any]] = {
        **{f"exactly once, {strategy}": partial(_ours, bench, data, strategy) for strategy in OURS},
        "without ledger, 1 task": lambda: _bare(bench, data, 1),
        "without ledger, 2 tasks": lambda: _bare(bench, data, 2),
        "Spark JDBC": lambda: bench.jdbc(frame, "peer", rewrite=False),
        "Spark JDBC, reWriteBatchedInserts": lambda: bench.jdbc(frame, "peer", rewrite=True),
        "psql \\copy, 1 connection": lambda: _copy(bench, one),
        "psql \\copy, 2 connections": lambda: _copy(bench, two),
    }
    rates = {
        name: bench.rows / seconds / 1000
        for name, seconds in rounds(number, peers, lambda: _fresh(bench), lambda _: _check(bench)).items()
    }

    def against(mine: str, other: str, goal: float | None = None) -> Figure:
        return Figure(f"append: {mine}", rates[mine], "krows/s", other, rates[mine] / rates[other], goal)

    yield against("exactly once, single", "psql \\copy, 1 connection", 0.9)
    yield against("exactly once, two_phase", "psql \\copy, 2 connections", 0.9)
    yield against("exactly once, auto", "Spark JDBC", 2.0)
    yield against("exactly once, auto", "Spark JDBC, reWriteBatchedInserts", 1.3)
    yield against("exactly once, single", "without ledger, 1 task", 0.95)
    yield against("exactly once, two_phase", "without ledger, 2 tasks", 0.95)
    yield against("exactly once, staged", "Spark JDBC, reWriteBatchedInserts")
    for name in rates:
        if not name.startswith("exactly once"):
            yield against(name, "psql \\copy, 1 connection")
    yield _idle(bench, data)


def _ours(bench: Bench, data: Path, strategy: str) -> None:
    extract = {"sourceType": "file", "connectionParams": {"path": str(data), "format": "parquet"}}
    bench.run(bench.pipeline(extract=extract, schema=SCHEMA, load={"writeStrategy": strategy}))


def _bare(bench: Bench, data: Path, tasks: int) -> None:
    def each(df: DataFrame, _batch: int) -> None:
        df.coalesce(tasks).mapInArrow(partial(_copy_task, bench.uri), "rows BIGINT").collect()

    bench.stream(bench.spark.readStream.schema(SCHEMA).parquet(str(data)), each)


def _copy_task(uri: str, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    session = Session(uri=uri, application_name="bare", lock_timeout="60s", idle_timeout="300s")
    with transaction(session) as cursor:
        rows = copy_rows(cursor, "public", "peer", begun(batches))
        cursor.run("COMMIT")
    yield pa.RecordBatch.from_pydict({"rows": [rows]})


def _copy(bench: Bench, files: list[Path]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(len(files)) as pool:
        list(pool.map(lambda file: bench.psql(f"\\copy peer FROM '{file}' (FORMAT csv)\n"), files))


def _fresh(bench: Bench) -> None:
    bench.sql("DROP TABLE IF EXISTS peer", f"CREATE TABLE peer ({TABLE})", "CHECKPOINT")


def _check(bench: Bench) -> None:
    found = bench.sql("SELECT count(*), count(DISTINCT id) FROM peer")
    assert found == (bench.rows, bench.rows), found


def _idle(bench: Bench, data: Path) -> Figure:
    _fresh(bench)
    extract = {"sourceType": "file", "connectionParams": {"path": str(data), "format": "parquet"}}
    file = bench.pipeline(extract=extract, schema=SCHEMA, load={})
    bench.run(file)
    times = []
    for _ in range(5):
        began = monotonic()
        bench.run(file)
        times.append(monotonic() - began)
    seconds = median(times)
    name = "run with nothing to do, beyond the Spark session's start"
    return Figure(name, seconds, "s", "2 s", seconds / 2, 1.0, less=True)
