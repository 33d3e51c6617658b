"""A source or a transform that fails among the rows of a task: nothing of the task's part is committed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pipeline_runs import Pipelines, file_pipeline, write_lines

from spark_jobs.contracts.config import registry

ROWS = 20_000
TRANSFORM = """
from pydantic import BaseModel
from pyspark.sql import functions as F

class Parameters(BaseModel):
    bad: int

def apply(df, parameters):
    return df.withColumn("id", F.expr(f"IF(id = {parameters.bad}, CAST(raise_error('bad row') AS INT), id)"))
"""


@pytest.fixture(autouse=True)
def failing_transform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package whose transform fails at the row that it is told."""
    package = tmp_path / "site"
    info = package / "acme-1.0.dist-info"
    info.mkdir(parents=True)
    (package / "acme_failing.py").write_text(TRANSFORM)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[airflow_etl_provider.transforms]\nfailing = acme_failing\n")
    monkeypatch.syspath_prepend(str(package))
    registry.forget()
    yield
    registry.forget()
    sys.modules.pop("acme_failing", None)


@pytest.mark.parametrize("bad", [300, 2_560, 5_000, ROWS - 1])
@pytest.mark.parametrize("strategy", ["single", "staged", "two_phase"])
def test_a_transform_that_fails_at_a_row(pipelines: Pipelines, inbox: Path, strategy: str, bad: int) -> None:
    write_lines(inbox / "0.json", *({"id": number} for number in range(ROWS)))
    failing = {"transformType": "failing", "parameters": {"bad": bad}}
    config = file_pipeline(
        "failing", inbox, pipelines.checkpoints, schema="id INT", transforms=[failing], load={"writeStrategy": strategy}
    )
    ended = pipelines.run(config)
    assert ended.error is not None
    assert "bad row" in str(ended.error)
    assert pipelines.one("SELECT count(*) FROM result") == 0
    assert pipelines.one("SELECT count(*) FROM etl.batch_tracker") == 0
    config["transforms"] = []
    pipelines.finish(config)
    assert pipelines.one("SELECT count(DISTINCT id) FROM result") == ROWS
