"""Transforms and sources that another package registers by entry points."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from config_documents import parse, problem, problems, stateless

from spark_jobs.contracts.config import RegisteredTransform, registry, unsupported

MODULE = """
from pydantic import BaseModel, ConfigDict

class Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid")
    factor: int
    column: str = "price"
"""
ENTRY_POINTS = """
[airflow_etl_provider.transforms]
multiply = acme_multiply
broken = acme_missing
[airflow_etl_provider.sources]
pulsar = acme_multiply
"""


@pytest.fixture(autouse=True)
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package on the path, as an installation would put it there."""
    (tmp_path / "acme_multiply.py").write_text(MODULE)
    info = tmp_path / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.forget()
    yield
    registry.forget()
    sys.modules.pop("acme_multiply", None)


def test_a_registered_transform_is_checked_by_its_own_model() -> None:
    config = parse(stateless(transforms=[{"transformType": "multiply", "parameters": {"factor": 3}}]))
    [step] = config.transforms
    assert isinstance(step, RegisteredTransform)
    assert step.parameters.model_dump() == {"factor": 3, "column": "price"}
    assert unsupported(config) == []
    assert config.to_mapping()["transforms"] == [{"transformType": "multiply", "parameters": {"factor": 3}}]
    assert parse(config.to_json()) == config


def test_its_problems_have_their_path() -> None:
    step = {"transformType": "multiply", "parameters": {"factor": "many", "colunm": "x"}}
    found = problems(stateless(transforms=[step]))
    assert [item.path for item in found] == ["transforms[0].parameters.factor", "transforms[0].parameters.colunm"]


def test_a_typo_is_told_the_registered_name() -> None:
    assert problem(stateless(transforms=[{"transformType": "multipy"}])).hint == 'did you mean "multiply"?'


def test_a_package_that_cannot_be_imported() -> None:
    wrong = problem(stateless(transforms=[{"transformType": "broken"}]))
    assert "importing acme_missing failed" in wrong.found
    assert wrong.hint == "install or repair that package"


def test_a_registered_source_checks_its_options() -> None:
    extract = {"sourceType": "pulsar", "connectionParams": {"factor": "3"}}
    assert parse(stateless(extract=extract)).extract.source_type == "pulsar"
    extract["connectionParams"] = {"factor": "x"}
    assert problem(stateless(extract=extract)).path == "extract.connectionParams.factor"
