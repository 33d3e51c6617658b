"""From text to a JSON document of plain Python values, with everything noted that strict JSON does not allow."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from spark_jobs.contracts.config.problems import InvalidConfigError, Location, Problem, json_path, quoted, shown

_DEEPEST = 64
_SYNTAX_HINTS = (
    (re.compile(r"\s*(//|/\*|#)"), "JSON has no comments; take it out"),
    (re.compile(r"\s*'"), 'JSON texts stand in double quotes (")'),
    (re.compile(r"\s*(True|False|None)\b"), "JSON spells these true, false and null"),
    (re.compile(r"\s*\Z"), "the file ends too early; a closing bracket or quote is missing"),
)


class _Object(dict[str, Any]):
    """A JSON object that remembers which keys it had twice; a plain dict silently keeps the last."""

    twice: tuple[str, ...] = ()


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    result = _Object(pairs)
    if len(result) != len(pairs):
        result.twice = tuple(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
    return result


def _integer(digits: str) -> int | float:
    # Python refuses to read integers of thousands of digits; as infinity they are reported with their path.
    return int(digits) if len(digits) < 1000 else math.inf


def read_text(path: Path) -> str:
    """Read a UTF-8 file, with or without byte order mark.

    :raises InvalidConfigError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        hint = "check the path" if isinstance(error, FileNotFoundError) else "check the path and its permissions"
        _fail(Problem("$", error.strerror or type(error).__name__, "a readable file", hint), str(path))
    except UnicodeDecodeError as error:
        problem = Problem("$", f"byte {error.start} is not UTF-8", "a file in UTF-8", "save it again as UTF-8")
        _fail(problem, str(path))


def parse(text: str) -> Any:
    """Parse JSON text; objects remember keys that they had twice (see ``check``).

    :raises InvalidConfigError: the text is not JSON; the message has line and column.
    """
    try:
        return json.loads(text.removeprefix("\ufeff"), object_pairs_hook=_object, parse_int=_integer)
    except json.JSONDecodeError as error:
        _fail(_syntax_problem(text.removeprefix("\ufeff"), error))
    except RecursionError:
        _fail(Problem("$", "brackets nested too deeply to be read", f"at most {_DEEPEST} levels"))


def _syntax_problem(text: str, error: json.JSONDecodeError) -> Problem:
    if not text.strip():
        return Problem(
            "$", "an empty file", "a JSON object with the pipeline", "etl-pipeline schema prints what it holds"
        )
    if text.strip().endswith(".json") and "\n" not in text:
        return Problem("$", f"the text {quoted(text)}", "JSON text", "to read a file, use load_pipeline(path)")
    if comma := _trailing_comma(text, error.pos):
        message = f"no valid JSON at {_place(text, comma)}: a comma before a closing bracket"
        return Problem("$", message, "strict JSON", "take the comma out")
    message = f"no valid JSON at {_place(text, error.pos)}: {error.msg}"
    return Problem("$", message, "strict JSON", _syntax_hint(text, error))


def _place(text: str, position: int) -> str:
    return f"line {text.count(chr(10), 0, position) + 1}, column {position - text.rfind(chr(10), 0, position)}"


def _trailing_comma(text: str, position: int) -> int | None:
    """Return where it is; Python's versions point at different characters near it."""
    comma = position if text[position : position + 1] == "," else len(text[:position].rstrip()) - 1
    return comma if comma > 0 and re.match(r",\s*[}\]]", text[comma:]) else None


def _syntax_hint(text: str, error: json.JSONDecodeError) -> str:
    after = text[error.pos :]
    if "delimiter" in error.msg and after.startswith('"'):
        return "a comma is missing before this place"
    return next((hint for pattern, hint in _SYNTAX_HINTS if pattern.match(after)), "")


def check(value: Any, problems: list[Problem], location: Location = ()) -> Any:  # noqa: PLR0911 - one for each kind
    """Return the document as plain dicts, lists and scalars; note what JSON or PostgreSQL's jsonb cannot hold."""
    if len(location) > _DEEPEST:
        problems.append(Problem(json_path(location[:8]) + "…", "more levels", f"at most {_DEEPEST} levels"))
        return None
    match value:
        case Mapping():
            return _checked_object(value, problems, location)
        case list() | tuple():
            return [check(item, problems, (*location, index)) for index, item in enumerate(value)]
        case None | bool() | int():
            return value
        case str():
            return _checked_text(value, problems, location)
        case float() if math.isfinite(value):
            return value
    expected = "a finite number" if isinstance(value, float) else "a JSON value"
    problems.append(Problem(json_path(location), shown(value, location), expected))
    return None


def _checked_object(value: Mapping[Any, Any], problems: list[Problem], location: Location) -> dict[str, Any]:
    for key in getattr(value, "twice", ()):
        problems.append(Problem(json_path((*location, key)), "this key twice in one object", "each key once"))
    result: dict[str, Any] = {}
    for key, item in value.items():
        if not isinstance(key, str):
            problems.append(Problem(json_path(location), f"a key that is {shown(key)}", "keys that are texts"))
            continue
        if "${" in key:
            expected, hint = "a plain key", "variables are replaced in values, never in keys"
            problems.append(Problem(json_path((*location, key)), f"the key {quoted(key)}", expected, hint))
        _checked_text(key, problems, (*location, key))
        result[key] = check(item, problems, (*location, key))
    return result


def _checked_text(text: str, problems: list[Problem], location: Location) -> str:
    if "\x00" in text or not _encodable(text):
        found = "a text with a NUL character or half a surrogate pair"
        problems.append(Problem(json_path(location), found, "a text that UTF-8 and PostgreSQL can hold"))
        return "?"
    return text


def _encodable(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _fail(problem: Problem, source: str = "") -> NoReturn:
    raise InvalidConfigError([problem], source=source) from None
