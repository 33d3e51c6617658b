r"""``make bench``: this sink beside Spark's JDBC writer and psql's ``\copy``, on the same rows, in one run.

Rounds are interleaved, figures are medians, and what counts are the ratios. Writes ``build/bench/results.json`` and
``docs/reference/benchmarks.md`` (the page only when everything was measured).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

from memory import driver_peak
from peers import Bench
from report import Figure, write_report
from rows import csv_files, parquet

from sandbox.jars import jars
from sandbox.postgres import PostgresServer
from sandbox.spark_cluster import SparkCluster, spark_environ

_HERE = Path(__file__).resolve().parent
_SETTINGS = {
    "spark.driver.memory": "2g",
    "spark.driver.host": "127.0.0.1",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.shuffle.partitions": "2",
}


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(prog="make bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000, help="rows of the append benchmark")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("append", "idle", "memory"), action="append")
    parser.add_argument("--memory-rows", type=int, nargs=2, default=(1_000_000, 10_000_000))
    chosen = parser.parse_args()
    parts = chosen.only or ["append", "idle", "memory"]
    os.environ.update({name: spark_environ()[name] for name in ("JAVA_HOME", "SPARK_LOCAL_IP", "PYSPARK_PYTHON")})
    os.environ["PYTHONPATH"] = os.pathsep.join([str(_HERE.parent.parent), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory(prefix="etl-bench-") as name, PostgresServer() as server:
        folder = Path(name)
        folder.chmod(0o755)
        server.create_database("bench")
        figures = list(_figures(parts, chosen, server, folder))
    write_report(figures, chosen.rows, chosen.rounds, page=not chosen.only)


def _figures(parts: list[str], chosen: argparse.Namespace, server: PostgresServer, folder: Path) -> Iterator[Figure]:
    with _session("local[2]") as spark:
        bench = Bench(spark, server, folder, parquet(spark, folder, chosen.rows), chosen.rows)
        if "append" in parts:
            yield from _append(bench, chosen.rounds)
        if "idle" in parts:
            yield _idle(bench)
        large = {rows: parquet(spark, folder, rows) for rows in chosen.memory_rows} if "memory" in parts else {}
    for strategy in ("single", "staged") if large else ():
        yield _memory(server, folder, large, strategy)


def _append(bench: Bench, rounds: int) -> Iterator[Figure]:
    bench.ours("single")
    one, two = csv_files(bench.uri, bench.folder, 1), csv_files(bench.uri, bench.folder, 2)
    peers: dict[str, Callable[[], float]] = {
        "exactly once, auto": lambda: bench.ours("auto"),
        "exactly once, single": lambda: bench.ours("single"),
        "exactly once, staged": lambda: bench.ours("staged"),
        "Spark JDBC": lambda: bench.jdbc(rewrite=False),
        "Spark JDBC, reWriteBatchedInserts": lambda: bench.jdbc(rewrite=True),
        "psql \\copy, 1 connection": lambda: bench.copy(one),
        "psql \\copy, 2 connections": lambda: bench.copy(two),
    }
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    for number in range(rounds):
        for name, peer in peers.items():
            seconds[name].append(peer())
            print(f"round {number + 1}: {name}: {seconds[name][-1]:.2f} s", flush=True)
    rates = {name: bench.rows / statistics.median(times) / 1000 for name, times in seconds.items()}
    jdbc = max((name for name in rates if "JDBC" in name), key=lambda name: rates[name])
    for name, rate in rates.items():
        goal = 1.0 if name == "exactly once, auto" else None
        yield Figure(f"append: {name}", rate, "krows/s", jdbc, rate / rates[jdbc], goal)
    for other in ("Spark JDBC", "psql \\copy, 1 connection"):
        ratio = rates["exactly once, auto"] / rates[other]
        yield Figure(
            f"append: exactly once, auto, against {other}", rates["exactly once, auto"], "krows/s", other, ratio
        )


def _idle(bench: Bench) -> Figure:
    bench.ours("auto")
    times = []
    for _ in range(3):
        began = monotonic()
        bench.run_pipeline("auto")
        times.append(monotonic() - began)
    seconds = statistics.median(times)
    return Figure("idle run, beyond the Spark session's start", seconds, "s", "2 s", seconds / 2, 1.0, less=True)


def _memory(server: PostgresServer, folder: Path, data: dict[int, Path], strategy: str) -> Figure:
    peaks = {}
    for rows, path in data.items():
        with SparkCluster(workers=2) as cluster:
            os.environ["BENCH_MASTER"] = cluster.master_url
            bench = Bench(None, server, folder, path, rows)  # type: ignore[arg-type]  # the driver has a session of its own
            bench.fresh_ledger()
            bench.fresh_table()
            peaks[rows] = driver_peak(
                _HERE / "drive.py", [server.airflow_uri("bench"), str(folder), str(path), strategy]
            )
            bench.check()
        print(f"memory: {strategy}, {rows:,} rows: {peaks[rows]:.0f} MiB", flush=True)
    small, large = (peaks[rows] for rows in sorted(peaks))
    counts = " and ".join(f"{rows // 1_000_000} million" for rows in sorted(peaks))
    name = f"driver's peak memory, {strategy}, one micro-batch of {counts} rows"
    return Figure(name, large, "MiB", f"{small:.0f} MiB", large / small, 1.2, less=True)


@contextmanager
def _session(master: str) -> Iterator[Any]:
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master(master).appName("bench")
    for name, value in _SETTINGS.items():
        builder = builder.config(name, value)
    session = builder.config("spark.jars", ",".join(jar.as_uri() for jar in jars("jdbc"))).getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()


if __name__ == "__main__":
    sys.exit(main())
