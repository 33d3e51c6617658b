"""What all benchmarks share: one session, one server, our pipeline, psql, and Spark's JDBC writer."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

import psycopg
from pyspark.sql import DataFrame, SparkSession

from sandbox.postgres import PostgresServer
from spark_jobs.run_pipeline import run_file
from spark_jobs.runtime.stopping import Stop

Times = dict[str, float]
"""Median seconds of each peer."""


@dataclass(frozen=True)
class Bench:
    """Runs peers in one Spark session against one database."""

    spark: SparkSession
    server: PostgresServer
    folder: Path
    rows: int
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def uri(self) -> str:
        return self.server.uri("bench")

    def sql(self, *statements: str) -> Any:
        """Run statements; return the last one's first row, if it has one."""
        with psycopg.connect(self.uri, autocommit=True) as conn:
            for statement in statements:
                cursor = conn.execute(statement)
            return cursor.fetchone() if cursor.description else None

    def psql(self, script: str) -> None:
        """Run a script with psql, as one would by hand."""
        psql = shutil.which("psql")
        assert psql, "psql is the peer here: install PostgreSQL's client"
        path = self.folder / f"script-{next(self._numbers)}.sql"
        path.write_text(script)
        subprocess.run([psql, "-qX", "-v", "ON_ERROR_STOP=1", self.uri, "-f", str(path)], check=True)

    def fresh_folder(self, name: str) -> Path:
        return self.folder / f"{name}-{next(self._numbers)}"

    def pipeline(self, **parts: Any) -> Path:
        """Write a pipeline with an id and a checkpoint of its own; ``extract``, ``load`` … as given."""
        name = f"bench-{next(self._numbers)}"
        return write_pipeline(self.folder, name, **parts)

    def run(self, file: Path) -> None:
        """Run a pipeline as ``etl-pipeline run`` would, in this session."""
        run_pipeline(self.spark, file, self.server.airflow_uri("bench"))

    def stream(self, frame: DataFrame, each: Callable[[DataFrame, int], None]) -> None:
        """Run a bare AvailableNow query with a ``foreachBatch`` of its own: no ledger, no checks."""
        writer = frame.writeStream.foreachBatch(each).option("checkpointLocation", str(self.fresh_folder("bare")))
        writer.trigger(availableNow=True).start().awaitTermination()

    def jdbc(self, frame: DataFrame, table: str, *, rewrite: bool) -> None:
        """Spark's own writer: at least once, no ledger."""
        with psycopg.connect(self.uri) as conn:
            user, address = conn.info.user, f"jdbc:postgresql://127.0.0.1:{conn.info.port}/bench"
        options = {"user": user, "password": self.server.password, "driver": "org.postgresql.Driver"}
        url = f"{address}?reWriteBatchedInserts={'true' if rewrite else 'false'}"
        frame.write.mode("append").jdbc(url, table, properties=options)


def rounds(
    number: int, peers: Mapping[str, Callable[[], Any]], before: Callable[[], Any], after: Callable[[str], Any]
) -> Times:
    """Run each peer ``number`` times, one after the other in each round; a round before them is not counted.

    :param before: puts everything back; not timed. :param after: checks what the peer of that name did; not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    for count in range(number + 1):
        # Each round begins with another one: what one leaves to the server's disks, another would pay for.
        names = list(peers)
        for name in names[count % len(names) :] + names[: count % len(names)]:
            peer = peers[name]
            before()
            began = monotonic()
            peer()
            seconds[name].append(monotonic() - began)
            after(name)
            print(f"{f'round {count}' if count else 'warm-up'}: {name}: {seconds[name][-1]:.2f} s", flush=True)
    return {name: median(times[1:]) for name, times in seconds.items()}


def write_pipeline(
    folder: Path,
    name: str,
    *,
    extract: Mapping[str, Any],
    schema: str,
    load: Mapping[str, Any],
    transforms: Sequence[Mapping[str, Any]] = (),
    error_handling: Mapping[str, Any] | None = None,
) -> Path:
    """Write a pipeline's file."""
    file = folder / f"{name}.json"
    config = {
        "pipelineId": name,
        "mode": "streaming",
        "schemas": {"row": schema},
        "extract": {"schemaName": "row", **extract},
        "transforms": list(transforms),
        "load": {"sinkType": "postgresql", "table": "public.peer", "credentialId": "bench", **load},
        "streamingConfigJson": {
            "checkpointLocation": str(folder / f"{name}.checkpoint"),
            "queryName": name,
            "triggerMode": "availablenow",
        },
    }
    if error_handling is not None:
        config["errorHandlingConfig"] = error_handling
    file.write_text(json.dumps(config))
    return file


def run_pipeline(spark: SparkSession, file: Path, connection: str) -> None:
    """Run a pipeline's file and insist that it finished."""
    os.environ["AIRFLOW_CONN_BENCH"] = connection
    stop = Stop()
    ended = run_file(file, {}, resume="none", tracker_schema="etl", stop=stop, session=lambda: spark)
    stop.ended(0)
    assert ended.error is None, ended.error
