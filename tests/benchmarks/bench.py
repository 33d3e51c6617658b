r"""``make bench``: this sink beside Spark's JDBC writer, psql's ``\copy`` and Spark's no-op sink, on the same rows.

Rounds are interleaved, figures are medians, and what counts are the ratios. Each part is written when it has ended: to
``build/bench/results.json``, and with ``--page``, or when all parts run, to ``docs/reference/benchmarks.md``.
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
import imports
import kafka
import ledger_cleanup
import letters_published
import letters_table
import memory
import replay
import sensor_tasks
import sensors
import small_batches
import upsert
from peers import Bench
from report import Figure, PartResult, keep

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
# Micro-batches: of fewer, a 99th percentile is one single value.
_PUBLISHED = 200
_IN_SESSION: dict[str, Callable[[Bench, int], Iterator[Figure]]] = {
    "append": append.figures,
    "upsert": upsert.figures,
    "kafka": kafka.figures,
    "small": small_batches.figures,
    "replay": replay.figures,
    "bad": error_handling.bad_rows,
    "orphans": error_handling.orphaned_rows,
    "failing": error_handling.failing_rows,
    "healthy": error_handling.healthy,
    "publish": lambda bench, _: letters_published.figures(bench, _PUBLISHED),
}
_TITLES = {
    "append": "Appends: {rows:,} rows of 6 columns",
    "upsert": "Upserts: {rows:,} rows of 6 columns",
    "kafka": "From Kafka: {rows:,} rows of 10 columns",
    "small": "Small micro-batches",
    "memory": "Memory",
    "healthy": "Retry, breaker and dead-letter queue in a healthy run",
    "bad": "Bad rows",
    "orphans": "Rows that a foreign key refuses",
    "failing": "Rows that make a transform fail",
    "publish": "Dead letters to Kafka",
    "replay": "Replaying dead letters",
    "letters": "Looking through {letters:,} dead letters",
    "sensors": "A thousand waiting sensors",
    "tasks": "From a commit to the end of a task",
    "imports": "Imports",
    "cleanup": "A ledger of {ledger_rows:,} micro-batches",
}
PARTS = tuple(_TITLES)
_WITHOUT_ROUNDS = {"publish", "memory", "sensors", "cleanup"}


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(prog="make bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000, help="rows of append, upsert and Kafka")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=PARTS, action="append", help="this part only; may be given several times")
    parser.add_argument("--page", action="store_true", help="write the parts of --only to the page of the docs, too")
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
        missed = False
        for part, figures in _figures(parts, chosen, server, folder):
            title = _TITLES[part].format_map(vars(chosen))
            rounds = 0 if part in _WITHOUT_ROUNDS else chosen.rounds
            result = PartResult.of(title, f'make bench ARGS="--only {part}"', rounds, figures)
            keep(part, result, PARTS, page=chosen.page or not chosen.only)
            missed = missed or any(figure.met is False for figure in figures)
    if missed:
        print("A goal was missed: see the tables.", file=sys.stderr)


def _figures(
    parts: list[str], chosen: argparse.Namespace, server: PostgresServer, folder: Path
) -> Iterator[tuple[str, list[Figure]]]:
    if any(part in _IN_SESSION for part in parts):
        with _session("local[2]") as spark:
            bench = Bench(spark, server, folder, chosen.rows)
            for part, measure in _IN_SESSION.items():
                if part in parts:
                    yield part, list(measure(bench, chosen.rounds))
    alone: dict[str, Callable[[], Iterator[Figure]]] = {
        "memory": lambda: memory.figures(server, folder, chosen.memory_rows),
        "letters": lambda: letters_table.figures(server, chosen.letters, chosen.rounds),
        "cleanup": lambda: ledger_cleanup.figures(server, chosen.ledger_rows),
        "sensors": lambda: sensors.figures(server),
        "tasks": lambda: sensor_tasks.figures(server, chosen.rounds),
        "imports": lambda: imports.figures(chosen.rounds),
    }
    for part, measure_alone in alone.items():
        if part in parts:
            yield part, list(measure_alone())


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
