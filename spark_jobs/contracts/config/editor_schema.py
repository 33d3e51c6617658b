"""The published JSON Schema, made from the models: with it an editor completes and checks pipeline files."""

from __future__ import annotations

from typing import Any

from pydantic.alias_generators import to_snake

from spark_jobs.contracts.config import registry
from spark_jobs.contracts.config.extract import PLANNED_SOURCES, SOURCES
from spark_jobs.contracts.config.keys import keys_of
from spark_jobs.contracts.config.load import PLANNED_SINKS, SINKS
from spark_jobs.contracts.config.pipeline import PipelineConfig
from spark_jobs.contracts.config.section import Section, any_case
from spark_jobs.contracts.config.transforms import (
    Aggregation,
    AggregationParameters,
    AggregationTransform,
    FilterParameters,
    FilterTransform,
    SelectParameters,
    SelectTransform,
)

Schema = dict[str, Any]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PARAMETERS: dict[str, type[Section]] = {
    "select": SelectParameters,
    "filter": FilterParameters,
    "aggregation": AggregationParameters,
}


def published_schema() -> Schema:
    """Return the JSON Schema (draft 2020-12) of a pipeline file.

    It accepts what ``from_json`` accepts key by key: both spellings, numbers as texts, ``${variables}``. Rules between
    settings are beyond it; ``etl-pipeline validate`` checks those, too.
    """
    schema = PipelineConfig.model_json_schema(by_alias=True, mode="validation")
    definitions: Schema = schema["$defs"]
    for name in ("Transform", "SelectTransform", "FilterTransform", "AggregationTransform"):
        definitions.pop(name, None)
    for model in parameter_models():
        own = model.model_json_schema(by_alias=True, ref_template="#/$defs/{model}")
        definitions |= own.pop("$defs", {})
        definitions[model.__name__] = own
    definitions["AggregationParameters"]["properties"]["aggregations"] |= _aggregations()
    for model in models():
        _accept_all_spellings(schema if model is PipelineConfig else definitions[model.__name__], model)
    definitions["Transform"] = _transform()
    definitions["Extract"]["properties"] |= _types(
        "sourceType", definitions["Extract"], registry.source_names(), SOURCES, PLANNED_SOURCES
    )
    definitions["Load"]["properties"] |= _types("sinkType", definitions["Load"], list(SINKS), SINKS, PLANNED_SINKS)
    about = {"title": "Pipeline", "description": "A pipeline file for etl-pipeline."}
    return {"$schema": _DIALECT, **about, **{k: v for k, v in _for_editors(schema).items() if k not in about}}


def models() -> list[type[Section]]:
    """Return the models that stand for an object of the file, outermost first; transforms by their parameters."""
    found: list[type[Section]] = []

    def visit(model: type[Section]) -> None:
        if model in found or model.__name__.endswith("Transform"):
            return
        found.append(model)
        for key in keys_of(model).values():
            if key.section:
                visit(key.section)

    visit(PipelineConfig)
    for model in parameter_models():
        visit(model)
    return found


def parameter_models() -> list[type[Section]]:
    """Return the models of the transforms' parameters."""
    return list(_PARAMETERS.values())


def transform_models() -> dict[str, tuple[type[Section], type[Section]]]:
    """Return each built-in transform with the model of its parameters."""
    steps: list[type[Section]] = [SelectTransform, FilterTransform, AggregationTransform]
    return {name: (step, model) for (name, model), step in zip(_PARAMETERS.items(), steps, strict=True)}


def _accept_all_spellings(schema: Schema, model: type[Section]) -> None:
    properties: Schema = schema["properties"]
    spellings: dict[str, list[str]] = {}
    for given, key in keys_of(model).items():
        spellings.setdefault(key.name, []).append(given)
    for name, others in spellings.items():
        for other in others:
            if other != name:
                properties[other] = {
                    "$ref": f"{_pointer(model)}/properties/{name}",
                    "description": f"The same as {name}.",
                }
    required = [name for name in schema.pop("required", []) if len(spellings[name]) == 1]
    if required:
        schema["required"] = required
    chosen = [
        {"anyOf": [{"required": [spelling]} for spelling in spellings[field.alias or name]]}
        for name, field in model.model_fields.items()
        if field.is_required() and len(spellings[field.alias or name]) > 1
    ]
    if chosen:
        schema["allOf"] = chosen


def _pointer(model: type[Section]) -> str:
    return "#" if model is PipelineConfig else f"#/$defs/{model.__name__}"


def _for_editors(value: Any) -> Any:
    """Take out what makes an editor's messages vague: a title for each property, and object-or-null choices."""
    if isinstance(value, list):
        return [_for_editors(item) for item in value]
    if not isinstance(value, dict):
        return value
    result = {k: _for_editors(v) for k, v in value.items() if not (k == "title" and isinstance(v, str))}
    match result.get("anyOf"):
        case [{"$ref": reference}, {"type": "null"}]:
            del result["anyOf"]
            return {**result, "if": {"not": {"type": "null"}}, "then": {"$ref": reference}}
    return result


def _aggregations() -> Schema:
    text = {"type": "string", "pattern": r"^[^:,]+:[^:,]+(:[^:,]+)?(,[^:,]+:[^:,]+(:[^:,]+)?)*$|\$\{[^{}]+\}"}
    items = {"anyOf": [text, {"$ref": f"#/$defs/{Aggregation.__name__}"}]}
    return {"type": ["string", "array"], "pattern": text["pattern"], "items": items, "minItems": 1}


def _any_spelling(names: list[str]) -> Schema:
    return dict(any_case(*names).json_schema or {})


def _transform() -> Schema:
    """One definition for all transforms: the type chooses the parameters' model, so that errors name the right one."""
    names = registry.transform_names()
    kind = {**_any_spelling(names), "description": "Which transform."}
    keys = ("transformType", to_snake("transformType"))
    choices = []
    for name, model in _PARAMETERS.items():
        chosen = [{"properties": {key: _any_spelling([name])}, "required": [key]} for key in keys]
        then = {"properties": {"parameters": {"$ref": f"#/$defs/{model.__name__}"}}, "required": ["parameters"]}
        choices.append({"if": {"anyOf": chosen}, "then": then})
    return {
        "description": "A step between source and sink.",
        "type": "object",
        "properties": {keys[0]: kind, keys[1]: kind, "parameters": {"type": "object"}},
        "additionalProperties": False,
        "anyOf": [{"required": [key]} for key in keys],
        "allOf": choices,
    }


def _types(name: str, section: Schema, usable: list[str], own: tuple[str, ...], planned: tuple[str, ...]) -> Schema:
    kept = {key: value for key, value in section["properties"][name].items() if key != "anyOf"}
    others = [other for other in usable if other not in own]
    accepted = _any_spelling(
        [*own, *planned, "postgres", "files", "ratemicrobatch"]
        if name == "sourceType"
        else [*own, *planned, "postgres"]
    )
    accepted["anyOf"][0] = {"enum": usable}
    if others:
        accepted["anyOf"].append({"enum": others})
    return {name: {**kept, **accepted}}
