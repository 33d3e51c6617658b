"""The files and examples that must work as they stand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from config_documents import problems, reference_examples, shared_pipelines, stateless
from pydantic.alias_generators import to_snake

from spark_jobs.contracts.config import (
    AggregationTransform,
    FilterTransform,
    LateDataStrategy,
    OutputMode,
    PipelineConfig,
    SelectTransform,
    TableName,
    TriggerKind,
    WriteMode,
    load_pipeline,
    unsupported,
)
from spark_jobs.contracts.errors import NotSupportedYetError

pipelines = pytest.mark.parametrize("path", shared_pipelines(), ids=lambda path: path.stem)


def test_the_shared_files_are_there() -> None:
    assert len(shared_pipelines()) == 3


@pipelines
def test_a_shared_file_is_read_and_supported(path: Path) -> None:
    config = load_pipeline(path)
    assert unsupported(config) == []
    assert config.extract.schema_text == json.loads(path.read_text())["schemas"][config.extract.schema_name or ""]


@pipelines
def test_a_shared_file_is_written_as_it_was_with_variables_replaced(path: Path) -> None:
    raw = json.loads(path.read_text())
    text = path.read_text()
    for name, value in raw["variables"].items():
        text = text.replace(f"${{{name}}}", value)
    assert json.loads(load_pipeline(path).to_json()) == json.loads(text)


@pipelines
def test_a_shared_file_in_snake_case_means_the_same(path: Path) -> None:
    def snake(value: Any, keep: bool = False) -> Any:
        if isinstance(value, dict):
            free = {"connectionParams", "columns", "schemas", "variables"}
            return {key if keep else to_snake(key): snake(item, key in free) for key, item in value.items()}
        return [snake(item) for item in value] if isinstance(value, list) else value

    document = snake(json.loads(path.read_text()))
    assert "streaming_config_json" in document
    assert PipelineConfig.from_json(document) == load_pipeline(path)


@pipelines
def test_a_shared_file_with_all_numbers_and_booleans_as_texts(path: Path) -> None:
    def texts(value: Any) -> Any:
        match value:
            case dict():
                return {key: texts(item) for key, item in value.items()}
            case list():
                return [texts(item) for item in value]
            case bool():
                return str(value)
            case int():
                return str(value)
        return value

    assert PipelineConfig.from_json(texts(json.loads(path.read_text()))) == load_pipeline(path)


def test_the_windowed_file_in_attributes() -> None:
    [path] = [path for path in shared_pipelines() if path.stem == "orders_per_5_minutes"]
    config = load_pipeline(path, {"brokers": "kafka:9092"})
    step = config.aggregation
    assert isinstance(step, AggregationTransform)
    assert config.reader_options["kafka.bootstrap.servers"] == "kafka:9092"
    assert (step.group_by, step.window_column, step.window_duration) == (("country",), "created_at", "5 minutes")
    assert [(a.column, a.function, a.output) for a in step.aggregations] == [
        ("orders", "count", "orders"),
        ("quantity", "sum", "quantity"),
        ("price", "avg", "average_price"),
    ]
    assert step.output_columns == ("window_start", "window_end", "country", "orders", "quantity", "average_price")
    assert config.load.target == TableName("sales", "orders_per_5_minutes")


def test_the_total_file_in_attributes() -> None:
    [path] = [path for path in shared_pipelines() if path.stem == "revenue_by_country_day"]
    config = load_pipeline(path)
    kinds = [type(step) for step in config.transforms]
    assert kinds == [FilterTransform, SelectTransform, AggregationTransform]
    assert (config.load.write_mode, config.load.keys) == (WriteMode.UPSERT, ("country", "day"))
    assert config.streaming is not None
    assert config.streaming.output_mode is OutputMode.UPDATE
    assert config.extract.path == "/data/online-retail"
    assert config.reader_options == {"header": "true", "maxFilesPerTrigger": "50"}


def test_the_production_example_of_reference_002(tmp_path: Path) -> None:
    [text] = [example for example in reference_examples("002") if '"production-events-pipeline"' in example]
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas" / "event-schema.json").write_text('"event_id BIGINT, event_timestamp TIMESTAMP"')
    columns = {"type": "struct", "fields": [{"name": "event_id", "type": "long", "nullable": True, "metadata": {}}]}
    (tmp_path / "schemas" / "event-table-schema.json").write_text(json.dumps(columns))
    (tmp_path / "production.json").write_text(text)

    config = load_pipeline(tmp_path / "production.json")

    assert config.extract.schema_text == "event_id BIGINT, event_timestamp TIMESTAMP"
    assert config.streaming is not None
    assert config.streaming.trigger.kind is TriggerKind.PROCESSING_TIME
    assert config.streaming.trigger.interval == "30 seconds"
    assert config.streaming.late_data is not None
    assert config.streaming.late_data.strategy is LateDataStrategy.SEND_TO_DLQ
    # Both are upper bounds, so that the smaller keeps both.
    assert config.reader_options["maxOffsetsPerTrigger"] == "50000"
    assert config.error_handling is not None
    assert config.error_handling.retry is not None
    assert config.error_handling.retry.initial_delay_seconds == 10
    written = json.loads(config.to_json())
    assert written.pop("schemas").keys() == {"event-schema", "event-table-schema"}
    assert written == json.loads(text)
    assert PipelineConfig.from_json(config.to_json()) == config
    assert [problem.path for problem in unsupported(config)] == [
        "load.schemaName",
        "streamingConfigJson.lateDataConfig.strategy",
    ]


# What an example leaves out, and nothing else, is wrong with it: the references show parts of files.
FRAGMENTS = [
    ("001", 0, {"pipelineId", "extract", "load"}),
    ("001", 1, {"extract", "load", "streamingConfigJson.checkpointLocation", "streamingConfigJson.queryName"}),
    ("001", 2, {"pipelineId", "extract", "load"}),
    ("001", 3, {"pipelineId", "extract", "load", "streamingConfigJson.checkpointLocation"}),
    ("002", 0, {"extract", "load"}),
    ("004", 0, {"extract", "load"}),
]


@pytest.mark.parametrize(("name", "index", "missing"), FRAGMENTS)
def test_only_what_an_example_leaves_out_is_missing(name: str, index: int, missing: set[str]) -> None:
    document = json.loads(reference_examples(name)[index])
    if "transformType" in document:
        document = {"transforms": [document]}
    found = problems(document)
    assert {problem.path for problem in found} == missing
    assert {problem.found for problem in found} == {"nothing"}


@pytest.mark.parametrize(("name", "index"), [(name, index) for name, index, _ in FRAGMENTS])
def test_an_example_completed_is_a_pipeline(name: str, index: int) -> None:
    document = json.loads(reference_examples(name)[index])
    if "transformType" in document:
        document = {"transforms": [document]}
    base = stateless()
    streaming = base["streamingConfigJson"] | document.pop("streamingConfigJson", {})
    if "transforms" in document:
        streaming = {"watermark": {"eventTimeColumn": _event_time(document), "delayThreshold": "1 hour"}} | streaming
    config = PipelineConfig.from_json({**base, **document, "streamingConfigJson": streaming})
    assert PipelineConfig.from_json(config.to_json()) == config


def _event_time(document: dict[str, Any]) -> str:
    column = document["transforms"][0]["parameters"].get("windowColumn", "event_time")
    assert isinstance(column, str)
    return column


def test_reference_001s_window_without_a_column_takes_the_watermarks() -> None:
    document = json.loads(reference_examples("001")[1])
    base = stateless()
    document["streamingConfigJson"] |= base["streamingConfigJson"]
    config = PipelineConfig.from_json({**base, **document})
    assert config.aggregation is not None
    assert config.aggregation.window_column == "event_time"
    assert "windowColumn" not in config.to_json()


def test_reference_002s_fragment_with_a_comment_is_no_json() -> None:
    [text] = [example for example in reference_examples("002") if "// ✅" in example]
    [problem] = problems(text)
    assert "line 3, column 32" in problem.found
    assert problem.hint == "JSON has no comments; take it out"


def test_reference_004s_spelling_of_error_handling() -> None:
    document = stateless() | json.loads(reference_examples("004")[0])
    handling = PipelineConfig.from_json(document).error_handling
    assert handling is not None
    assert handling.retry is not None
    assert (handling.retry.strategy, handling.retry.max_delay_ms) == ("exponential", 60000)
    assert handling.circuit_breaker is not None
    assert handling.dead_letter_queue is not None
    assert handling.dead_letter_queue.dlq_type == "kafka"


def test_not_supported_yet_is_an_error_of_its_own() -> None:
    from spark_jobs.contracts.config import require_supported

    example = json.loads(reference_examples("004")[0])
    require_supported(PipelineConfig.from_json(stateless() | example))
    config = PipelineConfig.from_json(stateless() | example | {"dataQualityConfig": {"rules": []}})
    with pytest.raises(NotSupportedYetError) as caught:
        require_supported(config)
    assert caught.value.exit_code == 3
    assert "dataQualityConfig" in str(caught.value)
