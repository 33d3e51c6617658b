"""The base of all configuration models, and the lenient scalar types that they are made of.

Numbers and booleans may be texts, lists of names may be one text with commas; ``to_json`` writes the references' form.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, WithJsonSchema
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from spark_jobs.contracts.config.durations import UNITS, DurationError, parse_duration
from spark_jobs.contracts.config.problems import any_of, fold, nearest

_BIGGEST_LONG = 2**63 - 1
_BIGGEST_INT = 2**31 - 1


class Section(BaseModel):
    """A JSON object of the configuration: frozen, camelCase in JSON, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_alias=True,
        validate_by_name=True,
        serialize_by_alias=True,
        hide_input_in_errors=True,
        protected_namespaces=(),
        defer_build=True,
    )

    also_spelled: ClassVar[Mapping[str, str]] = {}
    """Other JSON keys that mean the same: their name → the key that ``to_json`` writes."""

    @classmethod
    def model_for(cls, value: Mapping[str, Any]) -> type[Section] | None:  # noqa: ARG003 - for those with several
        """Return the model that this object is to be read with; None: leave it to be reported later."""
        return cls

    def derive(self, **values: Any) -> Self:
        """Fill in what follows from other settings, without making it look as if the file had said so."""
        self.__dict__.update(values)
        return self


def mismatch(expected: str, hint: str = "", found: str = "") -> PydanticCustomError:
    """Return the error that a validator raises; the reader's text is made of it (``validation.py``)."""
    context = {"expected": expected, "hint": hint, "found": found}
    return PydanticCustomError("mismatch", "expected {expected}", context)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        hint = "write it in double quotes" if isinstance(value, int | float) and not isinstance(value, bool) else ""
        raise mismatch("a text", hint)
    return value.strip()


def _integer(biggest: int, smallest: int = 1) -> Callable[[Any], int]:
    expected = f"a whole number from {smallest} to {biggest}"

    def parsed(value: Any) -> int:
        number: int | None = None
        if (isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,30}\s*", value)) or (
            isinstance(value, float) and math.isfinite(value) and value.is_integer()
        ):
            number = int(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            number = value
        if number is None or not smallest <= number <= biggest:
            raise mismatch(expected)
        return number

    return parsed


def _number(value: Any) -> float:
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value) if abs(value) < 1e300 else math.inf
    elif isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,20}(\.[0-9]{1,20})?\s*", value):
        number = float(value)
    if not math.isfinite(number) or number < 0:
        raise mismatch("a number, 0 or more")
    return number


def _boolean(value: Any) -> bool:
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    if not isinstance(value, bool):
        raise mismatch("true or false")
    return value


def _duration(*, zero: bool) -> Callable[[Any], str]:
    def checked(value: Any) -> str:
        expected = 'a duration such as "10 minutes"'
        if not isinstance(value, str):
            raise mismatch(expected, "write number and unit as one text" if isinstance(value, int) else "")
        try:
            length = parse_duration(value)
        except DurationError as error:
            raise mismatch(expected, error.hint) from None
        if not length and not zero:
            raise mismatch("a duration longer than nothing")
        return re.sub(r"^interval ", "", " ".join(value.split()), flags=re.IGNORECASE)

    return checked


def split_names(value: Any) -> Any:
    """Turn ``a, b`` into its names; a list stays as it is."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(","))
    return value


def _names(value: Any) -> tuple[str, ...]:
    names = split_names(value)
    expected = "column names: one text with commas between them, or a list of texts"
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise mismatch(expected)
    if not names or not all(name.strip() for name in names):
        raise mismatch(expected, "a name is empty; is there a comma too many?")
    doubled = {name for name in names if names.count(name) > 1}
    if doubled:
        raise mismatch("each column once", found=f"{', '.join(sorted(doubled))} more than once")
    return tuple(names)


def _joined(names: tuple[str, ...]) -> str | list[str]:
    joined = ",".join(names)
    return joined if split_names(joined) == names else list(names)


def _string_map(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise mismatch("an object: option name → text")
    result = {}
    for key, item in value.items():
        if isinstance(item, dict | list) or item is None:
            found = f"{key}: {'null' if item is None else 'an object' if isinstance(item, dict) else 'a list'}"
            hint = (
                'JSON as a value is written as a text, with \\" for its quotes' if item is not None else "leave it out"
            )
            raise mismatch("a text, number or boolean for each option", hint, found)
        result[key] = str(item).lower() if isinstance(item, bool) else str(item)
    by_folded: dict[str, str] = {}
    for key in result:
        other = by_folded.setdefault(key.casefold(), key)
        if other != key:
            raise mismatch("each option once; case makes no difference", found=f"both {other} and {key}")
    return result


VARIABLE = {"type": "string", "pattern": r"\$\{[^{}]+\}"}


def _or_text(schema: dict[str, Any], pattern: str) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [schema, {"type": "string", "pattern": pattern}, VARIABLE]})


def cased(word: str) -> str:
    """Return the pattern that finds a word in any case, with any separators in it."""
    return "[_ -]*".join(f"[{letter.upper()}{letter.lower()}]" for letter in fold(word))


_UNIT = "|".join(f"{cased(unit)}[sS]?" for unit in UNITS)
DURATION_PATTERN = rf"^\s*({cased('interval')}\s+)?\d+\s+({_UNIT})(\s+\d+\s+({_UNIT}))*\s*$"
_DURATION_SCHEMA = WithJsonSchema(
    {"anyOf": [{"type": "string", "pattern": DURATION_PATTERN, "examples": ["10 minutes", "1 hour"]}, VARIABLE]}
)
_NAMES_SCHEMA = WithJsonSchema(
    {"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
)
_SCALAR = {"type": ["string", "number", "boolean"]}

Text = Annotated[str, BeforeValidator(_text), WithJsonSchema({"type": "string", "minLength": 1})]
Long = Annotated[
    int, BeforeValidator(_integer(_BIGGEST_LONG)), _or_text({"type": "integer", "minimum": 1}, r"^\s*\d+\s*$")
]
Int = Annotated[
    int, BeforeValidator(_integer(_BIGGEST_INT)), _or_text({"type": "integer", "minimum": 1}, r"^\s*\d+\s*$")
]
Number = Annotated[float, BeforeValidator(_number), _or_text({"type": "number", "minimum": 0}, r"^\s*\d+(\.\d+)?\s*$")]
Flag = Annotated[
    bool, BeforeValidator(_boolean), _or_text({"type": "boolean"}, r"^\s*([Tt][Rr][Uu][Ee]|[Ff][Aa][Ll][Ss][Ee])\s*$")
]
Duration = Annotated[str, BeforeValidator(_duration(zero=False)), _DURATION_SCHEMA]
DurationOrZero = Annotated[str, BeforeValidator(_duration(zero=True)), _DURATION_SCHEMA]
Names = Annotated[tuple[str, ...], BeforeValidator(_names), PlainSerializer(_joined), _NAMES_SCHEMA]
StringMap = Annotated[
    dict[str, str],
    BeforeValidator(_string_map),
    WithJsonSchema({"type": "object", "additionalProperties": _SCALAR}),
]

E_ = TypeVar("E_", bound=StrEnum)


def spelled(kind: type[E_], aliases: Mapping[str, E_] | None = None) -> BeforeValidator:
    """Read an enumeration in all spellings: any case, with or without ``_``, ``-`` and spaces, and by its aliases."""
    by_folded = {fold(member.value): member for member in kind} | {fold(k): v for k, v in (aliases or {}).items()}
    names = [member.value for member in kind]

    def parsed(value: Any) -> E_:
        if not isinstance(value, str):
            raise mismatch(any_of(names))
        member = by_folded.get(fold(value))
        if member is None:
            raise mismatch(any_of(names), nearest(value, names))
        return member

    return BeforeValidator(parsed)


def any_case(*names: str) -> WithJsonSchema:
    """Return the JSON Schema of an enumeration: its names for completion, every other spelling by a pattern."""
    pattern = "|".join(cased(name) for name in names)
    return WithJsonSchema(
        {"anyOf": [{"enum": list(names)}, {"type": "string", "pattern": f"^\\s*({pattern})\\s*$"}, VARIABLE]}
    )
