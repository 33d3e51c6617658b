"""From a pipeline file to ``PipelineConfig``: each step notes what is wrong, one error at the end has it all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from spark_jobs.contracts.config import document as json_document
from spark_jobs.contracts.config import registry, rules, schemas
from spark_jobs.contracts.config import variables as variable_texts
from spark_jobs.contracts.config.keys import REFUSED, Document, keys_of
from spark_jobs.contracts.config.parts import Parts
from spark_jobs.contracts.config.pipeline import PipelineConfig
from spark_jobs.contracts.config.problems import InvalidConfigError, Location, Problem, shown
from spark_jobs.contracts.config.salvage import salvage
from spark_jobs.contracts.config.secret_values import assigns_secret, is_secret_key, is_secret_value
from spark_jobs.contracts.config.section import Section
from spark_jobs.contracts.config.transforms import RegisteredTransform, Transform
from spark_jobs.contracts.config.validation import note, validate
from spark_jobs.contracts.errors import ConfigError

_OPTIONS = ("connectionParams", "connection_params", "config", "variables")


def load_pipeline(path: str | Path, variables: Mapping[str, str] | None = None) -> PipelineConfig:
    """Read a pipeline file; its named schemas may stand in ``schemas/NAME.json`` beside it.

    :raises InvalidConfigError: the file cannot be read, or something in it is wrong; the message names the file.
    """
    path = Path(path)
    text = json_document.read_text(path)
    try:
        return PipelineConfig.from_json(text, variables=variables, base_dir=path.parent)
    except InvalidConfigError as error:
        raise InvalidConfigError(error.problems, source=str(path)) from None


def variable_names(text_or_mapping: str | Mapping[str, Any]) -> frozenset[str]:
    """Return the variables that a document declares or uses, so that a caller can pass on only these.

    :raises InvalidConfigError: the text is no JSON.
    """
    body = _plain(text_or_mapping, [])
    used = variable_texts.Substitution({}, [])
    used.apply({key: value for key, value in body.items() if key != "variables"})
    declared = body.get("variables")
    return frozenset(used.used.union(declared if isinstance(declared, dict) else ()))


def read(
    text_or_mapping: str | Mapping[str, Any], *, variables: Mapping[str, str], base_dir: Path | None
) -> PipelineConfig:
    """Read a document (see ``PipelineConfig.from_json``)."""
    document = Document()
    body = _plain(text_or_mapping, document.problems)
    body, unreliable = _with_variables(body, variables, document.problems)
    _note_secrets(body, document)
    body = document.normalise(body, PipelineConfig)
    _add_named_schemas(body, base_dir, document)
    parts = _validated(body, document)
    rules.check(parts, document)
    problems = [p for p in document.problems if p.path not in unreliable or p in unreliable[p.path]]
    if problems or parts.config is None:
        raise InvalidConfigError(list(dict.fromkeys(problems)))
    rules.fill_in(parts.config)
    return parts.config


def _plain(text_or_mapping: str | Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    value = json_document.parse(text_or_mapping) if isinstance(text_or_mapping, str) else text_or_mapping
    body = json_document.check(value, problems)
    if not isinstance(body, dict):
        raise InvalidConfigError([Problem("$", shown(value), "a JSON object with the pipeline")])
    return body


def _with_variables(
    body: dict[str, Any], given: Mapping[str, str], problems: list[Problem]
) -> tuple[dict[str, Any], dict[str, list[Problem]]]:
    """Replace variables; also return the problems of places whose text is now unreliable, by path."""
    declared = variable_texts.defaults(body, problems)
    from_outside = variable_texts.given_from_outside(given, problems)
    values = declared | from_outside
    substitution = variable_texts.Substitution(values, [])
    replaced = {key: substitution.apply(value, (key,)) for key, value in body.items() if key != "variables"}
    problems += substitution.problems
    variable_texts.note_unused(from_outside, declared.keys() | substitution.used, problems)
    if values:
        replaced["variables"] = values
    elif isinstance(body.get("variables"), dict):
        replaced["variables"] = {}
    unreliable: dict[str, list[Problem]] = {}
    for problem in substitution.problems:
        unreliable.setdefault(problem.path, []).append(problem)
    return replaced, unreliable


def _note_secrets(value: Any, document: Document, location: Location = (), *, in_options: bool = False) -> None:
    match value:
        case dict():
            for key, item in value.items():
                inner = (*location, key)
                if in_options and is_secret_key(key) and not isinstance(item, dict | list):
                    _note_secret(inner, document)
                else:
                    _note_secrets(item, document, inner, in_options=in_options or key in _OPTIONS)
        case list():
            for index, item in enumerate(value):
                _note_secrets(item, document, (*location, index), in_options=in_options)
        case str():
            if assigns_secret(value) if in_options else is_secret_value(value):
                _note_secret(location, document)


def _note_secret(location: Location, document: Document) -> None:
    hint = "put it into an Airflow connection and name that one in credentialId"
    document.note(location, "a secret (not shown)", "no secrets in the file", hint)


def _add_named_schemas(body: dict[str, Any], base_dir: Path | None, document: Document) -> None:
    loaded = schemas.load_named(body, base_dir, document.problems)
    if loaded and isinstance(body.get("schemas", {}), dict):
        body["schemas"] = {**body.get("schemas", {}), **loaded}


def _validated(body: dict[str, Any], document: Document) -> Parts:
    """Validate each section by itself, so that one's problem does not hide another's; then the whole."""
    values, remains = dict(body), dict[str, Section | None]()
    for name, key in keys_of(PipelineConfig).items():
        if name != key.name or values.get(name) is None or key.section is None:
            continue
        if key.section is Transform:
            valid, remain = _transforms(values[name], document), None
        else:
            valid, remain = _section(key.section, name, values[name], document)
        values[name] = valid
        if valid is None:
            remains[name] = remain
    config = _whole({name: value for name, value in values.items() if name not in remains}, set(remains), document)
    return Parts.of(values | remains, set(remains), config)


def _whole(values: Mapping[str, Any], failed: set[str], document: Document) -> PipelineConfig | None:
    try:
        config = PipelineConfig.model_validate(values)
    except ValidationError as error:
        _note_top_level(error, failed, document)
        return None
    return None if failed else config


def _section(model: type[Section], name: str, value: Any, document: Document) -> tuple[Any, Section | None]:
    """Return the valid section, or else what is left of it."""
    try:
        return model.model_validate(value), None
    except ValidationError as error:
        note(error, model, document, (name,))
        bad = {str(line["loc"][0]) for line in error.errors() if line["loc"]}
    return None, salvage(model, value, bad) if bad and isinstance(value, dict) else None


def _note_top_level(error: ValidationError, failed: set[str], document: Document) -> None:
    kept = Document(spelling=document.spelling)
    note(error, PipelineConfig, kept, ())
    names = {document.path((name,)) for name in failed}
    document.problems += [problem for problem in kept.problems if problem.path not in names]


def _transforms(value: Any, document: Document) -> tuple[Transform, ...] | None:
    if not isinstance(value, list):
        document.note(("transforms",), shown(value), "a list of transforms")
        return None
    steps = [_transform(item, document, ("transforms", index)) for index, item in enumerate(value)]
    return None if None in steps else tuple(step for step in steps if step is not None)


def _transform(value: Any, document: Document, location: Location) -> Transform | None:
    if not isinstance(value, dict):
        if value is not REFUSED:
            document.note(location, shown(value), "an object with transformType and parameters")
        return None
    model = Transform.model_for(value)
    if model is RegisteredTransform:
        return _registered_transform(value, document, location)
    step = validate(model, value, document, location) if model else None
    return step if isinstance(step, Transform) else None


def _registered_transform(value: dict[str, Any], document: Document, location: Location) -> Transform | None:
    try:
        model = registry.transform_parameters(value["transformType"])
    except ConfigError as error:
        document.note((*location, "transformType"), error.found, error.expected or "a package that works", error.cure)
        return None
    parameters = validate(model, value.get("parameters", {}), document, (*location, "parameters"))
    if parameters is None:
        return None
    return RegisteredTransform(transform_type=value["transformType"].strip(), parameters=parameters)
