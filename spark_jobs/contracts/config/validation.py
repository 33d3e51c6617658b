"""From pydantic's errors to problems that a stranger understands."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from spark_jobs.contracts.config.keys import Document, keys_of
from spark_jobs.contracts.config.problems import Location, shown
from spark_jobs.contracts.config.section import Section

M = TypeVar("M", bound=BaseModel)

_EXPECTED = {
    "missing": "this key; it is required",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "dict_type": "an object",
    "tuple_type": "a list",
    "list_type": "a list",
    "string_type": "a text",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "extra_forbidden": "no such key",
}


def validate(model: type[M], value: Any, document: Document, location: Location) -> M | None:
    """Return the model's instance; or None, when what is wrong has been noted in the document."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        note(error, model, document, location)
        return None


def note(error: ValidationError, model: type[BaseModel], document: Document, location: Location) -> None:
    """Note every problem of a pydantic error, below the given location."""
    for item in error.errors(include_url=False):
        inner: Location = tuple(part for part in item["loc"] if part != "[key]")
        place = (*location, *inner)
        context = item.get("ctx", {})
        found = context.get("found") or shown(item["input"], place)
        expected = context.get("expected") if item["type"] == "mismatch" else _EXPECTED.get(item["type"], item["msg"])
        if item["type"] == "missing":
            found = "nothing"
            expected = f"{_description(model, inner)} It is required.".strip()
        document.note(place, found, str(expected), context.get("hint", "") if item["type"] == "mismatch" else "")


def _description(model: type[BaseModel], location: Location) -> str:
    """Return what the docs say about the field at this place."""
    text = ""
    for part in location:
        if isinstance(part, int):
            continue
        field = next((f for n, f in model.model_fields.items() if part in (f.alias, n)), None)
        if field is None:
            return ""
        text = (field.description or "").replace("`", "")
        if isinstance(model, type) and issubclass(model, Section):
            inner = keys_of(model).get(field.alias or str(part))
            model = inner.section if inner and inner.section else model
    return text
