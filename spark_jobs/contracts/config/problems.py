"""What is wrong with a configuration: one record for each problem, all of them in one error."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any

from spark_jobs.contracts.config.secret_values import is_secret_key, is_secret_value
from spark_jobs.contracts.errors import ConfigError, NotSupportedYetError

Location = tuple[str | int, ...]

_PLAIN_KEY = re.compile(r"[A-Za-z_$][A-Za-z0-9_$-]*")
_SHOWN = 80


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, where, and how it would be right.

    :param path: JSON path, such as ``transforms[0].parameters.condition``; ``$`` is the whole document.
    :param found: what stands there; never a secret.
    :param expected: what may stand there.
    :param hint: the nearest known name for a typo, or another way out; may be empty.
    """

    path: str
    found: str
    expected: str
    hint: str = ""

    def __str__(self) -> str:
        lines = [self.path, f"  found:    {self.found}", f"  expected: {self.expected}"]
        return "\n".join([*lines, f"  hint:     {self.hint}"] if self.hint else lines)

    def to_json(self) -> dict[str, str]:
        """Return the four texts by name."""
        return asdict(self)


class InvalidConfigError(ConfigError):
    """The configuration is wrong; ``problems`` has everything that is, at once.

    :param problems: at least one.
    :param source: the file's name, where there is one.
    """

    def __init__(self, problems: Sequence[Problem], *, source: str = "") -> None:
        self.problems = list(problems)
        self.source = source
        super().__init__(
            f"{source or 'The pipeline configuration'} has {counted(len(self.problems), 'problem')}",
            found="; ".join(f"{p.path}: {p.found}" for p in self.problems),
            expected="; ".join(f"{p.path}: {p.expected}" for p in self.problems),
            cure="; ".join(f"{p.path}: {p.hint}" for p in self.problems if p.hint) or "correct the file",
        )

    def _message(self) -> str:
        return listing(self.what, self.problems)

    def to_json(self) -> dict[str, Any]:
        """Return the error with its problems one by one."""
        return {**super().to_json(), "problems": [problem.to_json() for problem in self.problems]}


class UnsupportedConfigError(NotSupportedYetError):
    """The configuration is right, but asks for what this version does not have yet; ``problems`` has all of it."""

    def __init__(self, problems: Sequence[Problem], *, source: str = "") -> None:
        self.problems = list(problems)
        self.source = source
        super().__init__(
            f"{source or 'The pipeline'} asks for {counted(len(self.problems), 'thing')} not supported yet",
            found="; ".join(f"{p.path}: {p.found}" for p in self.problems),
            expected="; ".join(f"{p.path}: {p.expected}" for p in self.problems),
            cure="; ".join(f"{p.path}: {p.hint}" for p in self.problems if p.hint) or "take these settings out",
        )

    def _message(self) -> str:
        return listing(self.what, self.problems)

    def to_json(self) -> dict[str, Any]:
        """Return the error with its problems one by one."""
        return {**super().to_json(), "problems": [problem.to_json() for problem in self.problems]}


def counted(number: int, noun: str) -> str:
    """Return ``1 problem``, ``2 problems``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listing(title: str, problems: Iterable[Problem]) -> str:
    """Return the title and, indented below it, each problem."""
    blocks = ["\n".join(f"  {line}" for line in str(problem).splitlines()) for problem in problems]
    return "\n".join([f"{title}:", *blocks])


def json_path(location: Location) -> str:
    """Write keys and indices as a path: ``a.b[0]["odd key"]``; ``$`` when there are none."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _PLAIN_KEY.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += f"[{quoted(part)}]"
    return text or "$"


def quoted(text: str) -> str:
    """Return the text in quotes on one line, shortened, safe for any terminal."""
    short = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
    escaped = json.dumps(short, ensure_ascii=False)
    return "".join(c if c.isprintable() else c.encode("ascii", "backslashreplace").decode() for c in escaped)


def shown(value: Any, location: Location = ()) -> str:  # noqa: PLR0911 - one for each kind
    """Describe a value for a message: scalars as they are, the rest by kind, what may be a secret not at all."""
    if any(isinstance(part, str) and is_secret_key(part) for part in location) or is_secret_value(value):
        return "a value that may be a secret (not shown)"
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return quoted(value) if value.strip() else f"an empty text {quoted(value)}"
        case int():
            return str(value) if abs(value) < 10**20 else "a number of more than 20 digits"
        case float():
            return repr(value) if math.isfinite(value) else f"{value} (not a finite number)"
        case dict():
            return f"an object with {counted(len(value), 'key')}"
        case list() | tuple():
            return f"a list of {counted(len(value), 'item')}"
        case _:
            return f"a Python {type(value).__name__}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``did you mean "…"?`` for the known name that is nearest to a mistyped one, else nothing."""
    by_folded = {fold(candidate): candidate for candidate in known}
    folded = fold(name)
    if folded in by_folded:
        return f"did you mean {quoted(by_folded[folded])}?"
    beginnings = [name for name in by_folded if len(folded) > 3 and name.startswith(folded)]
    if len(beginnings) == 1:
        return f"did you mean {quoted(by_folded[beginnings[0]])}?"
    matches = get_close_matches(folded[:_SHOWN], by_folded, n=1, cutoff=0.7)
    return f"did you mean {quoted(by_folded[matches[0]])}?" if matches else ""


def fold(name: str) -> str:
    """Return the name in the form in which spellings are compared: lower case, without ``_``, ``-`` and spaces."""
    return re.sub(r"[\s_-]+", "", name).casefold()


def any_of(names: Iterable[str]) -> str:
    """Return ``a, b or c``."""
    *head, last = list(names)
    return f"{', '.join(head)} or {last}" if head else last
