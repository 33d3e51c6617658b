"""The ways to bring the same rows into PostgreSQL. Each returns the seconds it took; the table is empty before."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import psycopg
from pyspark.sql import SparkSession
from rows import SCHEMA, TABLE

from sandbox.postgres import PostgresServer
from spark_jobs.run_pipeline import run_file
from spark_jobs.runtime.stopping import Stop


@dataclass(frozen=True)
class Bench:
    """What all peers share."""

    spark: SparkSession
    server: PostgresServer
    folder: Path
    data: Path
    rows: int

    @property
    def uri(self) -> str:
        return self.server.uri("bench")

    def fresh_table(self) -> None:
        with psycopg.connect(self.uri, autocommit=True) as conn:
            conn.execute("DROP TABLE IF EXISTS peer")
            conn.execute(f"CREATE TABLE peer ({TABLE})")
            conn.execute("CHECKPOINT")

    def check(self) -> None:
        with psycopg.connect(self.uri) as conn:
            row = conn.execute("SELECT count(*), count(DISTINCT id) FROM peer").fetchone()
        assert row == (self.rows, self.rows), row

    def timed(self, work: Callable[[], Any]) -> float:
        self.fresh_table()
        began = monotonic()
        work()
        seconds = monotonic() - began
        self.check()
        return seconds

    # -- peers --------------------------------------------------------------------------------------------------------

    def ours(self, strategy: str) -> float:
        """The whole run: readiness, ledger, exactly-once commit. Only the Spark session is there before."""
        self.fresh_ledger()
        return self.timed(lambda: self.run_pipeline(strategy))

    def run_pipeline(self, strategy: str) -> None:
        """Run the pipeline once; a second time there is nothing new."""
        run_bench_pipeline(self.spark, self.server.airflow_uri("bench"), self.folder, self.data, strategy)

    def fresh_ledger(self) -> None:
        shutil.rmtree(self.folder / "checkpoint", ignore_errors=True)
        with psycopg.connect(self.uri, autocommit=True) as conn:
            conn.execute("DROP SCHEMA IF EXISTS etl CASCADE")

    def jdbc(self, *, rewrite: bool) -> float:
        """Spark's own writer: at least once, no ledger."""
        options = {"user": "postgres", "password": self.server.password, "driver": "org.postgresql.Driver"}
        with psycopg.connect(self.uri) as conn:
            options["user"] = conn.info.user
            address = f"jdbc:postgresql://127.0.0.1:{conn.info.port}/bench"
        url = f"{address}?reWriteBatchedInserts={'true' if rewrite else 'false'}"
        frame = self.spark.read.schema(SCHEMA).parquet(str(self.data))
        return self.timed(lambda: frame.write.mode("append").jdbc(url, "peer", properties=options))

    def copy(self, files: list[Path]) -> float:
        r"""Psql's ``\copy`` from CSV files, a connection for each: no Spark at all."""
        psql = shutil.which("psql")

        def one(path: Path) -> None:
            if psql:
                command = f"\\copy peer FROM '{path}' (FORMAT csv)"
                subprocess.run([psql, "-qX", "-v", "ON_ERROR_STOP=1", self.uri, "-c", command], check=True)
                return
            command = "COPY peer FROM STDIN (FORMAT csv)"
            with path.open("rb") as file, psycopg.connect(self.uri) as conn, conn.cursor().copy(command) as copy:
                while block := file.read(1 << 18):
                    copy.write(block)

        def all_files() -> None:
            with ThreadPoolExecutor(len(files)) as pool:
                list(pool.map(one, files))

        return self.timed(all_files)


def run_bench_pipeline(spark: SparkSession, connection: str, folder: Path, data: Path, strategy: str) -> None:
    """Run the pipeline that appends the Parquet rows of ``data`` to ``public.peer``."""
    file = folder / "pipeline.json"
    file.write_text(json.dumps(_pipeline(folder, data, strategy)))
    os.environ["AIRFLOW_CONN_BENCH"] = connection
    stop = Stop()
    ended = run_file(file, {}, resume="none", tracker_schema="etl", stop=stop, session=lambda: spark)
    stop.ended(0)
    assert ended.error is None, ended.error


def _pipeline(folder: Path, data: Path, strategy: str) -> dict[str, Any]:
    return {
        "pipelineId": "bench",
        "mode": "streaming",
        "schemas": {"row": SCHEMA},
        "extract": {
            "sourceType": "file",
            "schemaName": "row",
            "connectionParams": {"path": str(data), "format": "parquet"},
        },
        "load": {
            "sinkType": "postgresql",
            "table": "public.peer",
            "credentialId": "bench",
            "writeStrategy": strategy,
        },
        "streamingConfigJson": {
            "checkpointLocation": str(folder / "checkpoint"),
            "queryName": "bench",
            "triggerMode": "availablenow",
        },
    }
