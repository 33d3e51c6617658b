"""Run pipelines through the public door, in this process, against a database of the test's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from pyspark.sql import SparkSession

from spark_jobs.contracts.credentials import DatabaseConnection
from spark_jobs.contracts.replay import LetterFilter, ReplayRequest, ReplaySummary
from spark_jobs.contracts.reprocess_batches import ReprocessRequest, ReprocessSummary
from spark_jobs.contracts.run_request import Resume, RunResult
from spark_jobs.run_pipeline import run_file, run_replay, run_reprocess
from spark_jobs.runtime.run import Ended
from spark_jobs.runtime.stopping import Stop

CREDENTIAL = "warehouse"
VARIABLE = "AIRFLOW_CONN_WAREHOUSE"


@dataclass(frozen=True)
class Finished:
    """A run that finished."""

    result: RunResult


@dataclass
class Pipelines:
    """Runs pipelines; ``folder`` is the test's own, with room for checkpoints and inputs."""

    database: Any
    folder: Path
    spark: SparkSession | None = None

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def path(self, config: Mapping[str, Any] | Path) -> Path:
        """Return the pipeline's file, written if it came as a mapping."""
        if isinstance(config, Path):
            return config
        path = self.folder / f"{config['pipelineId']}.json"
        path.write_text(json.dumps(config))
        return path

    def run(
        self,
        config: Mapping[str, Any] | Path,
        *,
        resume: Resume = "none",
        stop: Stop | None = None,
        **variables: str,
    ) -> Ended:
        """Run to the end in this process; errors before the run is registered are raised."""
        assert self.spark is not None
        spark, stop = self.spark, stop or Stop()
        os.environ[VARIABLE] = self.database.airflow_uri
        try:
            return run_file(
                self.path(config),
                variables,
                resume=resume,
                tracker_schema="etl",
                stop=stop,
                session=lambda: spark,
            )
        finally:
            stop.ended(0)
            del os.environ[VARIABLE]

    def replay(
        self,
        pipeline_id: str,
        *,
        stop: Stop | None = None,
        session: Callable[[], SparkSession] | None = None,
        **request: Any,
    ) -> Ended:
        """Replay dead letters of a pipeline in this process; ``letters`` of the request are the filter's values."""
        assert self.spark is not None
        spark, stop = self.spark, stop or Stop()
        wanted = LetterFilter.of(pipeline_id=pipeline_id, **request.pop("letters", {}))
        replay = ReplayRequest.of(**{"replay_id": uuid4(), "letters": wanted, **request})
        try:
            return run_replay(
                replay,
                DatabaseConnection.from_airflow(CREDENTIAL, self.database.airflow_uri),
                tracker_schema="etl",
                stop=stop,
                session=session or (lambda: spark),
            )
        finally:
            stop.ended(0)

    def replayed(self, pipeline_id: str, **request: Any) -> ReplaySummary:
        """Replay, insist that it finished, and return what came of it."""
        ended = self.replay(pipeline_id, **{"replay_id": (replay_id := uuid4()), **request})
        assert ended.error is None, str(ended.error)
        found = self.one("SELECT summary FROM etl.dead_letter_replay WHERE replay_id = %s", replay_id)
        return ReplaySummary.model_validate(found)

    def reprocess(self, pipeline_id: str, *, stop: Stop | None = None, **choice: Any) -> Ended:
        """Do micro-batches of a pipeline again in this process."""
        assert self.spark is not None
        spark, stop = self.spark, stop or Stop()
        wanted = ReprocessRequest.of(**{"reprocess_id": uuid4(), "pipeline_id": pipeline_id, **choice})
        try:
            return run_reprocess(
                wanted,
                DatabaseConnection.from_airflow(CREDENTIAL, self.database.airflow_uri),
                tracker_schema="etl",
                stop=stop,
                session=lambda: spark,
            )
        finally:
            stop.ended(0)

    def reprocessed(self, pipeline_id: str, **choice: Any) -> ReprocessSummary:
        """Do micro-batches again, insist that it finished, and return what came of it."""
        ended = self.reprocess(pipeline_id, **{"reprocess_id": (reprocess_id := uuid4()), **choice})
        assert ended.error is None, str(ended.error)
        found = self.one(
            "SELECT summary FROM etl.reprocess WHERE reprocess_id = %s", choice.get("reprocess_id", reprocess_id)
        )
        return ReprocessSummary.model_validate(found)

    def finish(self, config: Mapping[str, Any] | Path, **variables: str) -> Finished:
        """Run, and insist that it finished."""
        ended = self.run(config, **variables)
        assert ended.error is None, str(ended.error)
        assert ended.result is not None
        return Finished(ended.result)

    def command(self, *args: str, **environ: str) -> subprocess.Popen[str]:
        """Start ``etl-pipeline`` as a process group of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "spark_jobs.cli", *args],
            env={**os.environ, VARIABLE: self.database.airflow_uri, "PYSPARK_PYTHON": sys.executable, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Ask the database."""
        with self.database.connect() as conn:
            return list(conn.execute(query, parameters or None).fetchall())

    def execute(self, *statements: str) -> None:
        """Execute statements, each in a transaction of its own."""
        with self.database.connect(autocommit=True) as conn:
            for statement in statements:
                conn.execute(statement)

    def one(self, query: str, *parameters: Any) -> Any:
        """Ask the database for one value."""
        return self.rows(query, *parameters)[0][0]


class BeforeBatch(Stop):
    """Executes statements when the ``nth`` micro-batch of a run begins."""

    def __init__(self, nth: int, pipelines: Pipelines, *statements: str) -> None:
        super().__init__()
        self._nth, self._pipelines, self._statements = nth, pipelines, statements
        self._batches = 0

    def enter_batch(self) -> None:
        super().enter_batch()
        self._batches += 1
        if self._batches == self._nth:
            self._pipelines.execute(*self._statements)


def file_pipeline(
    pipeline_id: str,
    data: Path,
    checkpoints: Path,
    *,
    schema: str,
    format: str = "json",
    transforms: list[dict[str, Any]] | None = None,
    load: Mapping[str, Any] | None = None,
    streaming: Mapping[str, Any] | None = None,
    options: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return a pipeline that reads files."""
    return {
        "pipelineId": pipeline_id,
        "mode": "streaming",
        "schemas": {"row": schema},
        "extract": {
            "sourceType": "file",
            "schemaName": "row",
            "connectionParams": {"path": str(data), "format": format, **(options or {})},
        },
        "transforms": transforms or [],
        "load": {
            "sinkType": "postgresql",
            "table": "public.result",
            "writeMode": "append",
            "autoCreateTable": True,
            "credentialId": CREDENTIAL,
            **(load or {}),
        },
        "streamingConfigJson": {
            "checkpointLocation": str(checkpoints / pipeline_id),
            "queryName": pipeline_id,
            "triggerMode": "availablenow",
            **(streaming or {}),
        },
    }


def select(**columns: str) -> dict[str, Any]:
    return {"transformType": "select", "parameters": {"columns": columns}}


def filter_by(condition: str) -> dict[str, Any]:
    return {"transformType": "filter", "parameters": {"condition": condition}}


def aggregation(**parameters: str) -> dict[str, Any]:
    return {"transformType": "aggregation", "parameters": parameters}


def write_lines(path: Path, *rows: Any) -> None:
    """Write rows as JSON lines; text stands as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
