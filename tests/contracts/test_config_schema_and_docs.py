"""The published JSON Schema and the generated reference page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from config_documents import (
    REPOSITORY,
    Document,
    files,
    parse,
    reference_examples,
    shared_pipelines,
    stateless,
    windowed,
)
from jsonschema import Draft202012Validator

from spark_jobs.contracts.config import PipelineConfig, json_schema, reference
from spark_jobs.contracts.config.editor_schema import models
from spark_jobs.contracts.config.section import Section

DOCS = REPOSITORY / "docs" / "reference"
REGENERATE = "run: python -m spark_jobs.contracts.config.reference docs/reference"


def editor_errors(document: Any) -> list[str]:
    """What an editor underlines."""
    return [
        f"{error.json_path}: {error.message}" for error in Draft202012Validator(json_schema()).iter_errors(document)
    ]


def test_the_schema_is_a_json_schema() -> None:
    Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("path", shared_pipelines(), ids=lambda path: path.stem)
def test_editors_find_nothing_wrong_with_the_shared_files(path: Path) -> None:
    assert editor_errors(json.loads(path.read_text())) == []


def test_editors_find_nothing_wrong_with_the_production_example() -> None:
    [text] = [example for example in reference_examples("002") if '"production-events-pipeline"' in example]
    assert editor_errors(json.loads(text)) == []


RIGHT: list[Document] = [
    files(),
    stateless(**{"$schema": "../pipeline.schema.json"}),
    stateless(
        mode="${mode}", streamingConfigJson__maxRecordsPerTrigger="${n}", variables={"mode": "streaming", "n": 5}
    ),
    stateless(streamingConfigJson__maxRecordsPerTrigger="5", load__autoCreateTable="True"),
    stateless(streamingConfigJson__triggerMode="processing_time=5 Seconds"),
    stateless(extract__schema={"type": "struct", "fields": [{"name": "a", "type": "long"}]}),
    windowed(transforms__0__parameters__aggregations=[{"column": "price", "function": "Sum"}, "a:count"]),
    windowed(transforms__0__parameters__aggregations="orders:count, price:sum"),
    windowed(streamingConfigJson__lateDataConfig={"strategy": "log_and_drop"}),
    stateless(transforms=[{"transformType": "Select", "parameters": {"columns": {"a": "b"}}}]),
    stateless(transforms=[{"transform_type": "filter", "parameters": {"condition": "a > 1"}}]),
    stateless(errorHandling={"retry": {"maxAttempts": 5}, "deadLetterQueue": {"type": "S3", "bucketPath": "/a"}}),
    stateless(errorHandlingConfig=None),
    stateless(load__sinkType="Postgres", extract__connectionParams__includeHeaders=True),
]


@pytest.mark.parametrize("document", RIGHT)
def test_what_is_right_is_right_in_the_editor(document: Document) -> None:
    parse(document)
    assert editor_errors(document) == []


WRONG: list[Document] = [
    stateless(pipelineId=...),
    stateless(extract=...),
    stateless(pipelineID="x"),
    stateless(load__writeMode="apend"),
    stateless(load__conectionParams={}),
    stateless(extract__sourceType="kafak"),
    stateless(streamingConfigJson__queryName=...),
    stateless(streamingConfigJson__triggerMode="processingtime=5s"),
    stateless(streamingConfigJson__maxRecordsPerTrigger=0),
    stateless(streamingConfigJson__maxRecordsPerTrigger="many"),
    stateless(streamingConfigJson__enableIdempotence="yes"),
    stateless(transforms=[{"transformType": "agregation", "parameters": {}}]),
    stateless(transforms=[{"transformType": "filter", "parameters": {"conditon": "a"}}]),
    stateless(transforms=[{"transformType": "filter"}]),
    windowed(transforms__0__parameters__windowDuration="10 minuets"),
    windowed(transforms__0__parameters__aggregations="price"),
    windowed(transforms__0__parameters__aggregations=[{"column": "price"}]),
    windowed(streamingConfigJson__watermark__delayThreshold=10),
]


def test_the_editor_points_at_the_very_place() -> None:
    document = windowed(streamingConfigJson__watermark__delayThreshold="5m")
    [error] = editor_errors(document)
    assert error.startswith("$.streamingConfigJson.watermark.delayThreshold: ")


@pytest.mark.parametrize("document", WRONG)
def test_what_is_wrong_is_wrong_in_the_editor(document: Document) -> None:
    assert editor_errors(document)


def test_the_committed_page_is_up_to_date() -> None:
    assert (DOCS / reference.PAGE).read_text(encoding="utf-8") == reference.configuration_page(), REGENERATE


def test_the_committed_schema_is_up_to_date() -> None:
    assert (DOCS / reference.SCHEMA).read_text(encoding="utf-8") == reference.schema_text(), REGENERATE


def test_the_page_is_written_by_the_command(tmp_path: Path) -> None:
    reference.write(tmp_path / "new")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {reference.PAGE, reference.SCHEMA}


@pytest.mark.parametrize("model", models(), ids=lambda model: model.__name__)
def test_every_field_of_every_model_is_on_the_page(model: type[Section]) -> None:
    page = reference.configuration_page()
    about = " ".join((model.__doc__ or "").replace("``", "`").split())
    [section] = [part for part in re.split(r"^#+ ", page, flags=re.MULTILINE) if f"\n{about}\n" in part]
    for name, field in model.model_fields.items():
        assert f"| `{field.alias or name}`" in section
        assert field.description
        assert field.description in section


def test_links_on_the_page_lead_somewhere() -> None:
    page = reference.configuration_page()
    titles = re.findall(r"^#+ (.+)$", page, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    assert set(re.findall(r"\(#([^)]+)\)", page)) <= anchors


def test_the_pages_example_works() -> None:
    [text] = re.findall(r"```json\n(.*?)```", reference.configuration_page(), re.DOTALL)
    assert PipelineConfig.from_json(text).pipeline_id == "orders-per-5-minutes"
    assert editor_errors(json.loads(text)) == []
