"""Properties that hold for all documents."""

from __future__ import annotations

import json
from typing import Any

import pytest
from config_documents import Document, stateless, totals, windowed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spark_jobs.contracts.config import InvalidConfigError, PipelineConfig, json_schema, unsupported
from spark_jobs.contracts.config.editor_schema import models
from spark_jobs.contracts.config.keys import keys_of

KEYS = sorted({key for model in models() for key in keys_of(model)} | {"transformType"})
TEXTS = [
    *(
        "kafka",
        "file",
        "rate",
        "append",
        "upsert",
        "complete",
        "postgresql",
        "streaming",
        "10 minutes",
        "a:sum",
        "${a}",
    ),
    *("aggregation", "select", "$${", "a INT", "true", "1", "processingtime=1 second", "", " ", '{"type": "struct"}'),
]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from(TEXTS), st.binary(max_size=3)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text()), inner, max_size=6)
    ),
    max_leaves=25,
)
DOCUMENTS = [stateless(), windowed(), totals()]
# Machines differ in speed; the number of examples is what bounds the time.
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _read(document: Any) -> PipelineConfig | None:
    try:
        config = PipelineConfig.from_json(document)
    except InvalidConfigError as error:
        refused = error
    else:
        unsupported(config)
        return config
    assert refused.problems
    assert all(problem.path and problem.found and problem.expected for problem in refused.problems)
    str(refused).encode()
    return None


@quick
@given(st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text()), JSON, max_size=8))
def test_any_mapping_is_a_pipeline_or_an_invalid_config_error(document: dict[str, Any]) -> None:
    _read(document)


@quick
@given(st.text())
def test_any_text_is_a_pipeline_or_an_invalid_config_error(text: str) -> None:
    _read(text)


@st.composite
def damaged(draw: st.DrawFn) -> Document:
    """A valid document with one to three places replaced."""
    document: Any = json.loads(json.dumps(draw(st.sampled_from(DOCUMENTS))))
    for _ in range(draw(st.integers(1, 3))):
        target = document
        while True:
            keys = list(target) if isinstance(target, dict) else list(range(len(target)))
            key = draw(st.sampled_from([*keys, *([draw(st.sampled_from(KEYS))] if isinstance(target, dict) else [])]))
            inner = target[key] if key in keys else None
            if isinstance(inner, dict | list) and inner and draw(st.integers(0, 4)):
                target = inner
                continue
            target[key] = draw(JSON)
            break
    return dict(document)


@quick
@given(damaged())
def test_a_damaged_document_is_a_pipeline_that_round_trips_or_an_invalid_config_error(document: Document) -> None:
    config = _read(document)
    if config is not None:
        assert PipelineConfig.from_json(config.to_json()) == config


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=12).filter(
    str.strip
)


@st.composite
def valid(draw: st.DrawFn) -> Document:
    """A valid document with odd names and values in it."""
    document = json.loads(json.dumps(draw(st.sampled_from([windowed(), totals()]))))
    groups = draw(st.lists(NAMES, min_size=1, max_size=3, unique_by=lambda name: name.casefold()))
    functions = draw(st.lists(st.sampled_from(["sum", "COUNT", "Avg", "min", "max"]), min_size=1, max_size=3))
    document["name"] = draw(NAMES).replace("${", "$${")
    document["transforms"][0]["parameters"] |= {
        "groupByColumns": [name.replace("${", "$${") for name in groups],
        "aggregations": [
            {"column": draw(NAMES).replace("${", "$${"), "function": function, "output": f"result {index}"}
            for index, function in enumerate(functions)
        ],
    }
    if "keys" in document["load"]:
        document["load"]["keys"] = document["transforms"][0]["parameters"]["groupByColumns"]
    document["load"]["autoCreateTable"] = draw(st.sampled_from([True, False, "true", "FALSE"]))
    document["streamingConfigJson"]["maxRecordsPerTrigger"] = draw(st.one_of(st.integers(1, 2**63 - 1), st.just("17")))
    condition = draw(NAMES).replace("${", "$${")
    document["transforms"].insert(0, {"transformType": "filter", "parameters": {"condition": condition}})
    return dict(document)


@quick
@given(valid())
def test_a_valid_document_round_trips(document: Document) -> None:
    config = PipelineConfig.from_json(json.dumps(document))
    text = config.to_json()
    again = PipelineConfig.from_json(text)
    assert again == config
    assert again.to_json() == text
    assert config.aggregation is not None
    groups = document["transforms"][1]["parameters"]["groupByColumns"]
    assert config.aggregation.group_by == tuple(name.replace("$${", "${") for name in groups)


@settings(quick, max_examples=50)
@given(valid())
def test_what_is_valid_is_valid_by_the_published_schema(document: Document) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json_schema())
    assert [error.message for error in validator.iter_errors(document)] == []
