"""Through a pooler in transaction mode: every strategy; but two_phase with a role is refused before anything moves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import Pipelines, aggregation, file_pipeline, write_lines
from transaction_pooler import transaction_pooler

from spark_jobs.contracts.errors import TwoPhaseUnavailableError


@dataclass(frozen=True)
class Pooled:
    """The same database, its connection through the pooler."""

    database: Any
    port: int

    @property
    def airflow_uri(self) -> str:
        return self.database.airflow_uri.replace(f":{self.database.server.port}/", f":{self.port}/")

    def connect(self) -> Any:
        return self.database.connect()


@pytest.mark.parametrize("strategy", ["single", "staged"])
@pytest.mark.parametrize("mode", ["append", "upsert", "update"])
def test_a_pipeline_through_a_pooler(
    database: Any, spark: Any, tmp_path: Path, inbox: Path, strategy: str, mode: str
) -> None:
    write_lines(inbox / "0.json", *({"id": i % 50, "name": "x"} for i in range(100)), "broken")
    load = {"writeStrategy": strategy, "writeMode": "append" if mode == "append" else "upsert"}
    if mode != "append":
        load["keys"] = "id"
    transforms = [aggregation(groupByColumns="id", aggregations="name:count")] if mode == "update" else []
    config = file_pipeline(
        "pooled",
        inbox,
        tmp_path / "checkpoints",
        schema="id INT, name STRING",
        load=load,
        transforms=transforms,
        streaming={"outputMode": "update" if mode == "update" else "append"},
    )
    with transaction_pooler(database.server.port) as pooler:
        pipelines = Pipelines(Pooled(database, pooler.port), tmp_path, spark)
        pipelines.finish(config)
        pipelines.finish(config)
    assert pipelines.one("SELECT count(*) FROM result") == (100 if mode == "append" else 50)
    assert pipelines.rows("SELECT source_rows, dead_lettered_rows FROM etl.batch_tracker") == [(101, 1)]


def test_two_phase_through_a_pooler(database: Any, spark: Any, tmp_path: Path, inbox: Path) -> None:
    write_lines(inbox / "0.json", *({"id": i} for i in range(100)), "broken")
    write_lines(inbox / "1.json", *({"id": i} for i in range(100, 200)))
    load = {"writeStrategy": "two_phase", "writeParallelism": 2}
    config = file_pipeline("pooled", inbox, tmp_path / "checkpoints", schema="id INT", load=load)
    with transaction_pooler(database.server.port) as pooler:
        Pipelines(Pooled(database, pooler.port), tmp_path, spark).finish(config)
    pipelines = Pipelines(database, tmp_path, spark)
    assert pipelines.one("SELECT count(DISTINCT id) FROM result") == 200
    assert pipelines.rows("SELECT source_rows, dead_lettered_rows, strategy FROM etl.batch_tracker") == [
        (201, 1, "two_phase")
    ]


def test_a_role_and_two_phase_are_refused_before_anything_moves(
    database: Any, spark: Any, tmp_path: Path, inbox: Path, role: str
) -> None:
    write_lines(inbox / "0.json", {"id": 1})
    pipelines = Pipelines(database, tmp_path, spark)
    with transaction_pooler(database.server.port) as pooler:
        pooled = Pipelines(Pooled(database, pooler.port), tmp_path, spark)
        load = {"writeStrategy": "two_phase", "role": role}
        config = file_pipeline("pooled", inbox, tmp_path / "checkpoints", schema="id INT", load=load)
        ended = pooled.run(config)
        assert isinstance(ended.error, TwoPhaseUnavailableError)
        assert "a pooler is between" in str(ended.error)
        assert pipelines.one("SELECT count(*) FROM result") == 0
        config["load"]["writeStrategy"] = "staged"
        pooled.finish(config)
    assert pipelines.one("SELECT count(*) FROM result") == 1
