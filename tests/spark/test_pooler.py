"""Everything works through a pooler in transaction mode."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import Pipelines, aggregation, file_pipeline, write_lines
from transaction_pooler import transaction_pooler


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
