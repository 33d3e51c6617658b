r"""``make bench``: this sink beside Spark's JDBC writer, psql's ``\copy`` and Spark's no-op sink, on the same rows.

Rounds are interleaved, figures are medians, and what counts are the ratios. Writes ``build/bench/results.json``, and
for a whole run ``docs/reference/benchmarks.md`` with its plots.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import append
import error_handling
import kafka
import ledger_cleanup
import letters_table
import memory
import replay
import sensor_tasks
import sensors
import small_batches
import upsert
from peers import Bench
from report import Figure, write_report

from sandbox.jars import jars
from sandbox.postgres import PostgresServer
from sandbox.spark_cluster import spark_environ
from spark_jobs.runtime.session import DEFAULTS

_HERE = Path(__file__).resolve().parent
_SETTINGS = {
    "spark.driver.memory": "2g",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.shuffle.partitions": "2",
}
_IN_SESSION: dict[str, Callable[[Bench, int], Iterator[Figure]]] = {
    "append": append.figures,
    "upsert": upsert.figures,
    "kafka": kafka.figures,
    "small": small_batches.figures,
    "replay": replay.figures,
    "bad": error_handling.bad_rows,
    "healthy": error_handling.healthy,
}
PARTS = (*_IN_SESSION, "memory", "letters", "cleanup", "sensors", "tasks")


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(prog="make bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000, help="rows of append, upsert and Kafka")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=PARTS, action="append", help="this part only; may be given several times")
    parser.add_argument("--letters", type=int, default=10_000_000, help="dead letters to look through")
    parser.add_argument("--ledger-rows", type=int, default=10_000_000, help="ledger rows, half of which are cleaned up")
    parser.add_argument("--memory-rows", type=int, nargs="+", default=(1_000_000, 5_000_000, 20_000_000))
    chosen = parser.parse_args()
    parts = chosen.only or list(PARTS)
    os.environ.update({name: spark_environ()[name] for name in ("JAVA_HOME", "SPARK_LOCAL_IP", "PYSPARK_PYTHON")})
    os.environ["PYTHONPATH"] = os.pathsep.join([str(_HERE.parent.parent), str(_HERE), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory(prefix="etl-bench-") as name, PostgresServer() as server:
        folder = Path(name)
        folder.chmod(0o755)
        server.create_database("bench")
        figures = list(_figures(parts, chosen, server, folder))
    write_report(figures, chosen.rows, chosen.rounds, page=not chosen.only)
    if any(figure.met is False for figure in figures):
        print("A goal was missed: see the table.", file=sys.stderr)


def _figures(parts: list[str], chosen: argparse.Namespace, server: PostgresServer, folder: Path) -> Iterator[Figure]:
    if any(part in _IN_SESSION for part in parts):
        with _session("local[2]") as spark:
            bench = Bench(spark, server, folder, chosen.rows)
            for part, measure in _IN_SESSION.items():
                if part in parts:
                    yield from measure(bench, chosen.rounds)
    if "memory" in parts:
        yield from memory.figures(server, folder, chosen.memory_rows)
    if "letters" in parts:
        yield from letters_table.figures(server, chosen.letters, chosen.rounds)
    if "cleanup" in parts:
        yield from ledger_cleanup.figures(server, chosen.ledger_rows, chosen.rounds)
    if "sensors" in parts:
        yield from sensors.figures(server)
    if "tasks" in parts:
        yield from sensor_tasks.figures(server, chosen.rounds)


@contextmanager
def _session(master: str) -> Iterator[Any]:
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master(master).appName("bench")
    for name, value in {**DEFAULTS, **_SETTINGS}.items():
        builder = builder.config(name, value)
    found = ",".join(jar.as_uri() for name in ("jdbc", "spark-kafka") for jar in jars(name))
    session = builder.config("spark.jars", found).getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()


if __name__ == "__main__":
    sys.exit(main())
