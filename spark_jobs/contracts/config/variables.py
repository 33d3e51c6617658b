"""``${name}`` in a configuration's texts: replaced once, before anything else looks at them.

``$${name}`` stands for the text ``${name}``: of two or more dollars before a brace, one is taken off.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spark_jobs.contracts.config.problems import Location, Problem, json_path, nearest, quoted, shown
from spark_jobs.contracts.config.secret_values import is_secret_key

_ESCAPED_OR_VARIABLE = re.compile(r"(\$\$+)\{|\$\{([^{}]*\}?)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


@dataclass
class Substitution:
    """Replaces variables in one document; notes problems and which names were used."""

    values: Mapping[str, str]
    problems: list[Problem]
    used: set[str] = field(default_factory=set)

    def apply(self, value: Any, location: Location = ()) -> Any:
        """Return the document with every text's variables replaced."""
        match value:
            case str():
                return self._text(value, location)
            case dict():
                return {key: self.apply(item, (*location, key)) for key, item in value.items()}
            case list():
                return [self.apply(item, (*location, index)) for index, item in enumerate(value)]
            case _:
                return value

    def _text(self, text: str, location: Location) -> str:
        def replaced(match: re.Match[str]) -> str:
            dollars, rest = match.groups()
            return dollars[1:] + "{" if dollars else self._value(rest, location)

        return _ESCAPED_OR_VARIABLE.sub(replaced, text) if "${" in text else text

    def _value(self, rest: str, location: Location) -> str:
        name = rest.removesuffix("}").strip()
        if not rest.endswith("}") or not _NAME.fullmatch(name):
            hint = 'for the characters "${" themselves write "$${"'
            self._note(location, f"{quoted('${' + rest)}, which names no variable", "${name}", hint)
            return ""
        self.used.add(name)
        if name not in self.values:
            known = (
                f"one of {', '.join(sorted(self.values))}" if self.values else "a variable with a value; none is given"
            )
            hint = (
                nearest(name, self.values) or f'give it: --var {name}=…, or "variables": {{"{name}": "…"}} in the file'
            )
            self._note(location, f"the unknown variable ${{{name}}}", known, hint)
            return ""
        return self.values[name]

    def _note(self, location: Location, found: str, expected: str, hint: str) -> None:
        self.problems.append(Problem(json_path(location), found, expected, hint))


def escape(value: Any) -> Any:
    """Return the document so that ``Substitution.apply`` gives it back unchanged."""
    match value:
        case str():
            return re.sub(r"\$+\{", r"$\g<0>", value)
        case dict():
            return {key: escape(item) for key, item in value.items()}
        case list():
            return [escape(item) for item in value]
        case _:
            return value


def defaults(document: Mapping[str, Any], problems: list[Problem]) -> dict[str, str]:
    """Return the document's own ``variables``; they are plain values and may not refer to others."""
    given = document.get("variables", {})
    if not isinstance(given, dict):
        problems.append(Problem("variables", shown(given), "an object: variable name → value"))
        return {}
    result: dict[str, str] = {}
    nothing = Substitution({}, [])
    for name, value in given.items():
        location = ("variables", name)
        if _name_problem(name, location, problems):
            continue
        if isinstance(value, dict | list) or value is None:
            problems.append(Problem(json_path(location), shown(value, location), "a text, number or boolean"))
            continue
        nothing.problems.clear()
        result[name] = nothing.apply(plain_text(value), location)
        if nothing.problems:
            hint = 'for the characters "${" themselves write "$${"'
            problems.append(Problem(json_path(location), "a reference to a variable", "a plain value", hint))
    return result


def given_from_outside(variables: Mapping[str, Any], problems: list[Problem]) -> dict[str, str]:
    """Return the variables that a caller gives (``--var``, the operator's ``variables``), as texts."""
    result: dict[str, str] = {}
    for name, value in variables.items():
        if not isinstance(name, str) or _name_problem(name, ("variables", name), problems):
            continue
        if not isinstance(value, str | int | float) or "\x00" in str(value):
            problems.append(Problem(json_path(("variables", name)), shown(value), "a text, number or boolean"))
            continue
        result[name] = plain_text(value)
    return result


def note_unused(given: Mapping[str, str], known: set[str], problems: list[Problem]) -> None:
    """A variable that a caller gives but nothing uses is a typo that would leave a default in force."""
    for name in sorted(given.keys() - known):
        expected = f"one of {', '.join(sorted(known))}" if known else "no variable: this pipeline has none"
        found = f"the variable {quoted(name)}, which this pipeline does not use"
        problems.append(Problem("variables", found, expected, nearest(name, known)))


def plain_text(value: Any) -> str:
    """Return a scalar as JSON would write it, texts without quotes."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _name_problem(name: str, location: Location, problems: list[Problem]) -> bool:
    if is_secret_key(name):
        hint = "secrets come from credentialId, never from a variable"
        problems.append(Problem(json_path(location), f"a variable named {quoted(name)}", "no secrets", hint))
        return True
    if not _NAME.fullmatch(name):
        expected = "a name of letters, digits, _ . - that starts with a letter or _"
        problems.append(Problem(json_path(location), f"the variable name {quoted(name)}", expected))
        return True
    return False
