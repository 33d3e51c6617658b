"""What is not supported yet: parsed, and refused when used, one test for each."""

from __future__ import annotations

from typing import Any

import pytest
from config_documents import Document, files, parse, stateless, totals, windowed

from spark_jobs.contracts.config import UnsupportedConfigError, require_supported, unsupported
from spark_jobs.contracts.config.extract import PLANNED_FORMATS, PLANNED_SOURCES
from spark_jobs.contracts.config.load import PLANNED_SINKS
from spark_jobs.contracts.config.registry import PLANNED_TRANSFORMS
from spark_jobs.contracts.exit_codes import ExitCode


def _handling(**config: Any) -> Document:
    return stateless(errorHandlingConfig=config)


USED: list[tuple[Document, str]] = [
    (stateless(mode=...), "mode"),
    (stateless(mode="batch"), "mode"),
    (stateless(mode="batch", streamingConfigJson=...), "mode"),
    *[(stateless(extract={"sourceType": name}), "extract.sourceType") for name in PLANNED_SOURCES],
    *[(files(extract__connectionParams__format=name), "extract.connectionParams.format") for name in PLANNED_FORMATS],
    *[(stateless(transforms=[{"transformType": name}]), "transforms[0].transformType") for name in PLANNED_TRANSFORMS],
    *[(stateless(load__sinkType=name), "load.sinkType") for name in PLANNED_SINKS],
    (stateless(load__schemaName="order", schemas={"order": "a INT"}), "load.schemaName"),
    (stateless(streamingConfigJson__enableIdempotence=False), "streamingConfigJson.enableIdempotence"),
    (stateless(streamingConfigJson__enableIdempotence="false"), "streamingConfigJson.enableIdempotence"),
    (stateless(streamingConfigJson__stateTimeout="1 hour"), "streamingConfigJson.stateTimeout"),
    (
        windowed(streamingConfigJson__lateDataConfig={"strategy": "sendToDLQ", "dlqTopic": "late"}),
        "streamingConfigJson.lateDataConfig.strategy",
    ),
    (
        windowed(streamingConfigJson__lateDataConfig={"strategy": "separateStream", "table": "late"}),
        "streamingConfigJson.lateDataConfig.strategy",
    ),
    (stateless(dataQualityConfig={"rules": []}), "dataQualityConfig"),
    (stateless(dataQuality={"rules": []}), "dataQualityConfig"),
]


@pytest.mark.parametrize(("document", "path"), USED)
def test_what_is_not_supported_yet_is_refused(document: Document, path: str) -> None:
    config = parse(document)
    [found] = unsupported(config)
    assert found.path == path
    assert found.found.endswith("not supported yet")
    assert found.expected
    with pytest.raises(UnsupportedConfigError, match="not supported yet") as caught:
        require_supported(config)
    assert caught.value.exit_code is ExitCode.NOT_SUPPORTED
    assert caught.value.problems == [found]
    assert parse(config.to_json()) == config


def test_a_second_aggregation() -> None:
    document = totals()
    document["transforms"].append(
        {"transformType": "aggregation", "parameters": {"groupByColumns": "price", "aggregations": "country:count:n"}}
    )
    document["load"]["keys"] = "price"
    assert [problem.path for problem in unsupported(parse(document))] == ["transforms[1].transformType"]


def test_everything_not_supported_at_once() -> None:
    document = stateless(
        mode="batch",
        streamingConfigJson__stateTimeout="1 day",
        dataQuality={"rules": []},
    )
    with pytest.raises(UnsupportedConfigError) as caught:
        require_supported(parse(document))
    assert str(caught.value).startswith("The pipeline orders asks for 3 things not supported yet:")


UNUSED: list[Document] = [
    _handling(),
    _handling(retryConfig={"maxAttempts": 1}),
    _handling(retryConfig={"maxAttempts": 9, "strategy": "no_retry"}),
    _handling(circuitBreakerConfig={"enabled": False}),
    _handling(deadLetterQueue={"enabled": "false", "type": "kafka"}),
    _handling(deadLetterQueue={"enabled": "true"}),
    _handling(dlqConfig={"dlqType": "kafka", "topic": "letters", "bootstrapServers": "k:9092"}),
    _handling(failFast=True),
    _handling(failFast="false"),
    stateless(dataQuality={"enabled": False}),
    stateless(streamingConfigJson__enableIdempotence=True),
    windowed(streamingConfigJson__lateDataConfig={"strategy": "drop"}),
    windowed(streamingConfigJson__lateDataConfig={"strategy": "logAndDrop"}),
    *[stateless(streamingConfigJson__triggerMode=name) for name in ("once", "continuous", "processingtime=1 second")],
    *[stateless(load__writeStrategy=name) for name in ("auto", "single", "staged", "two-phase")],
]


@pytest.mark.parametrize("document", UNUSED)
def test_what_is_switched_off_is_no_problem(document: Document) -> None:
    require_supported(parse(document))
