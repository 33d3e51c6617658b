"""Publishing 100 dead letters to Kafka: percentiles over many micro-batches of one warm run.

``.venv/bin/python tests/benchmarks/letters.py [BATCHES]``, with a broker, a PostgreSQL server and a Spark session of
its own. The time is the whole of it: reading the letters from where they were staged, writing them, the answer.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from sandbox.jars import jars
from sandbox.kafka import KafkaBroker
from sandbox.postgres import PostgresServer
from sandbox.spark_cluster import spark_environ
from spark_jobs.run_pipeline import run_file
from spark_jobs.runtime.session import DEFAULTS
from spark_jobs.runtime.stopping import Stop

_LETTERS = 100
_WARM_UP = 30
_LIMIT_MS = 100


class Times(logging.Handler):
    """Collects what the log says about published letters."""

    def __init__(self) -> None:
        super().__init__()
        self.milliseconds: list[int] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Take one line of the log."""
        if found := re.search(r"event=letters_published .*milliseconds=(\d+)", record.getMessage()):
            self.milliseconds.append(int(found[1]))


def measure(batches: int) -> list[int]:
    """Return the milliseconds of each batch, the first ones left out."""
    times = Times()
    logger = logging.getLogger("etl.batch")
    logger.addHandler(times)
    logger.setLevel(logging.INFO)
    with KafkaBroker() as broker, PostgresServer() as server, tempfile.TemporaryDirectory() as folder:
        broker.create_topic("letters")
        server.create_database("letters")
        os.environ["AIRFLOW_CONN_WAREHOUSE"] = server.airflow_uri("letters")
        spark = _session()
        path = Path(folder) / "pipeline.json"
        path.write_text(json.dumps(_pipeline(Path(folder), broker.bootstrap_servers, batches + _WARM_UP)))
        ended = run_file(path, {}, resume="none", tracker_schema="etl", stop=Stop(), session=lambda: spark)
        assert ended.error is None, ended.error
        spark.stop()
    return times.milliseconds[_WARM_UP:]


def _session() -> SparkSession:
    os.environ.update({name: spark_environ()[name] for name in ("JAVA_HOME", "SPARK_LOCAL_IP", "PYSPARK_PYTHON")})
    builder: Any = SparkSession.builder.master("local[2]").appName("letters")
    settings = {**DEFAULTS, "spark.driver.host": "127.0.0.1", "spark.ui.enabled": "false"}
    for name, value in settings.items():
        builder = builder.config(name, value)
    session = builder.config("spark.jars", ",".join(jar.as_uri() for jar in jars("spark-kafka"))).getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    return session  # type: ignore[no-any-return]


def _pipeline(folder: Path, brokers: str, files: int) -> dict[str, Any]:
    inbox = folder / "inbox"
    inbox.mkdir()
    for number in range(files):
        lines = [f"line {number}.{line} is no JSON" for line in range(_LETTERS)]
        (inbox / f"{number}.json").write_text("\n".join([*lines, '{"id": 1}', ""]))
    return {
        "pipelineId": "letters",
        "mode": "streaming",
        "extract": {
            "sourceType": "file",
            "schema": "id INT",
            "connectionParams": {"path": str(inbox), "format": "json", "maxFilesPerTrigger": "1"},
        },
        "load": {
            "sinkType": "postgresql",
            "table": "public.result",
            "autoCreateTable": True,
            "credentialId": "warehouse",
            "maxDeadLetterFraction": 1,
        },
        "streamingConfigJson": {
            "checkpointLocation": str(folder / "checkpoint"),
            "queryName": "letters",
            "triggerMode": "availablenow",
        },
        "errorHandlingConfig": {"dlqConfig": {"type": "kafka", "bootstrapServers": brokers, "topic": "letters"}},
    }


def main() -> None:
    """Print the percentiles; exit code 1 when the 99th is above the limit."""
    batches = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    found = sorted(measure(batches))
    at = {share: found[min(int(len(found) * share), len(found) - 1)] for share in (0.5, 0.9, 0.99)}
    words = ", ".join(f"p{share * 100:.0f} {value} ms" for share, value in at.items())
    print(f"{_LETTERS} dead letters to Kafka, {len(found)} micro-batches: {words} (limit: p99 {_LIMIT_MS} ms)")
    sys.exit(at[0.99] > _LIMIT_MS)


if __name__ == "__main__":
    main()
