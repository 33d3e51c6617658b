"""A transform and a source that another package registers, from file to table."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import Pipelines, file_pipeline, select, write_lines

from spark_jobs.contracts.config import registry

TRANSFORM = """
from pydantic import BaseModel, ConfigDict
from pyspark.sql import functions as F

class Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid")
    column: str
    factor: int

def apply(df, parameters):
    return df.withColumn(parameters.column, F.col(parameters.column) * parameters.factor)
"""
SOURCE = """
from pydantic import BaseModel, ConfigDict
from spark_jobs.sources.rate import RateSource

class Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rows: int

def build(spark, config, schema, secrets):
    return RateSource(spark, {"rowsPerBatch": config.extract.connection_params["rows"]})
"""
ENTRY_POINTS = """
[airflow_etl_provider.transforms]
multiply = acme_multiply
[airflow_etl_provider.sources]
counter = acme_counter
"""


@pytest.fixture(autouse=True)
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package on the path, as an installation would put it there."""
    package = tmp_path / "site"
    info = package / "acme-1.0.dist-info"
    info.mkdir(parents=True)
    (package / "acme_multiply.py").write_text(TRANSFORM)
    (package / "acme_counter.py").write_text(SOURCE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(package))
    registry.forget()
    yield
    registry.forget()
    for name in ("acme_multiply", "acme_counter"):
        sys.modules.pop(name, None)


def test_a_registered_transform_runs_between_ours(pipelines: Pipelines, inbox: Path) -> None:
    write_lines(inbox / "0.json", {"id": 1}, {"id": 2}, "broken")
    config = file_pipeline(
        "rows",
        inbox,
        pipelines.checkpoints,
        schema="id INT",
        transforms=[
            select(n="id"),
            {"transformType": "multiply", "parameters": {"column": "n", "factor": 21}},
            select(answer="n"),
        ],
    )
    pipelines.finish(config)
    assert pipelines.rows("SELECT answer FROM result ORDER BY 1") == [(21,), (42,)]
    assert pipelines.one("SELECT dead_lettered_rows FROM etl.batch_tracker") == 1


def test_a_registered_source_is_read(pipelines: Pipelines, tmp_path: Path) -> None:
    config: dict[str, Any] = file_pipeline("count", tmp_path, pipelines.checkpoints, schema="id INT")
    config["extract"] = {"sourceType": "counter", "connectionParams": {"rows": "7"}}
    del config["schemas"]
    pipelines.finish(config)
    assert pipelines.rows("SELECT count(*), max(value) FROM result") == [(7, 6)]
