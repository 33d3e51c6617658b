"""Schemas of rows, as Spark DDL or in Spark's JSON form: inline, named in the file, or in ``schemas/NAME.json``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from spark_jobs.contracts.config import document as json_document
from spark_jobs.contracts.config.problems import InvalidConfigError, Location, Problem, json_path, nearest, quoted
from spark_jobs.contracts.config.section import mismatch

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_EXPECTED = (
    'a schema: Spark DDL such as "id BIGINT, name STRING", or Spark\'s JSON form ({"type": "struct", "fields": […]})'
)


def _schema(value: Any) -> str:
    if isinstance(value, str) and value.strip().startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise mismatch(_EXPECTED, "the text begins like JSON, but is none") from None
    if isinstance(value, dict):
        if value.get("type") != "struct" or not isinstance(value.get("fields"), list) or not value["fields"]:
            raise mismatch(
                _EXPECTED, 'in JSON form, "type" is "struct" and "fields" a list with a field for each column'
            )
        if not all(isinstance(item, dict) and {"name", "type"} <= item.keys() for item in value["fields"]):
            raise mismatch(_EXPECTED, 'in JSON form, each field has "name" and "type"')
        return json.dumps(value, ensure_ascii=False)
    if not isinstance(value, str) or not value.strip():
        raise mismatch(_EXPECTED)
    if not re.search(r"[^\s,:][\s:]+[A-Za-z]", value):
        raise mismatch(_EXPECTED, "for a schema by its name, use schemaName")
    return value.strip()


def _written(schema: str) -> Any:
    return json.loads(schema) if schema.startswith("{") else schema


SchemaText = Annotated[
    str,
    BeforeValidator(_schema),
    PlainSerializer(_written),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {
                    "type": "object",
                    "required": ["type", "fields"],
                    "properties": {"type": {"const": "struct"}, "fields": {"type": "array", "minItems": 1}},
                },
            ]
        }
    ),
]


def load_named(document: Mapping[str, Any], base_dir: Path | None, problems: list[Problem]) -> dict[str, Any]:
    """Return the schemas that the document names but does not hold, read from ``schemas/NAME.json``.

    What cannot be found or read is noted at the ``schemaName`` that asks for it.
    """
    held = document.get("schemas", {})
    held = held if isinstance(held, dict) else {}
    result: dict[str, Any] = {}
    for section in ("extract", "load"):
        part = document.get(section)
        name = part.get("schemaName") if isinstance(part, dict) else None
        if not isinstance(name, str) or not name.strip() or name.strip() in held:
            continue
        location = (section, "schemaName")
        path = (
            base_dir / "schemas" / f"{name.strip()}.json" if base_dir and _FILE_NAME.fullmatch(name.strip()) else None
        )
        if path is None or not path.is_file():
            problems.append(_unknown(name.strip(), location, held, base_dir))
        elif (schema := _from_file(path, location, problems)) is not None:
            result[name.strip()] = schema
    return result


def _from_file(path: Path, location: Location, problems: list[Problem]) -> Any:
    try:
        value = json_document.check(json_document.parse(json_document.read_text(path)), problems, location)
        _schema(value)
    except InvalidConfigError as error:
        found = f"the file schemas/{path.name}: {error.problems[0].found}"
        problems.append(Problem(json_path(location), found, _EXPECTED, error.problems[0].hint))
        return None
    except ValueError:
        hint = "a DDL text stands in double quotes there"
        problems.append(Problem(json_path(location), f"the file schemas/{path.name}: no schema", _EXPECTED, hint))
        return None
    return value


def _unknown(name: str, location: Location, held: Mapping[str, Any], base_dir: Path | None) -> Problem:
    beside = sorted(path.stem for path in base_dir.glob("schemas/*.json")) if base_dir else []
    known = [*held, *beside]
    listed = f"one of {', '.join(known)}" if known else "a schema that exists; there is none"
    place = f'"schemas": {{{quoted(name)}: "…"}} in the file, or schemas/{name}.json beside it'
    hint = nearest(name, known) or f"add {place}"
    return Problem(json_path(location), f"the unknown schema {quoted(name)}", listed, hint)
