"""The one line of JAAS with which Kafka's Java client logs in, written and read.

Kafka reads it with Java's ``StreamTokenizer``: words, texts in quotes with backslashes, ``//`` and ``/* */`` comments.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from spark_jobs.contracts.errors import ConfigError

LOGIN_MODULES: Final = {
    "PLAIN": "org.apache.kafka.common.security.plain.PlainLoginModule",
    "SCRAM-SHA-256": "org.apache.kafka.common.security.scram.ScramLoginModule",
    "SCRAM-SHA-512": "org.apache.kafka.common.security.scram.ScramLoginModule",
}
"""The module that takes a user and a password, for each mechanism of SASL that has one."""

_FLAGS: Final = ("required", "requisite", "sufficient", "optional")
_TOKEN: Final = re.compile(
    r"""\s+ | //[^\n]* | /\*.*?\*/
    | (?P<word>[^\s=;"'/]+(?:/(?![/*])[^\s=;"'/]*)*)
    | "(?P<double>(?:[^"\\\r\n]|\\[^\r\n])*)" | '(?P<single>(?:[^'\\\r\n]|\\[^\r\n])*)'
    | (?P<mark>[=;])""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE: Final = re.compile(r"\\([0-3][0-7]{2}|[0-7]{1,2}|.)", re.DOTALL)
_CONTROLS: Final = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


@dataclass(frozen=True, slots=True)
class LoginEntry:
    """A login module and its options, which hold the secrets."""

    module: str
    options: dict[str, str] = field(repr=False)


def login_line(mechanism: str, user: str, password: str) -> str:
    """Return the JAAS line for a mechanism of :data:`LOGIN_MODULES`."""
    return f"{LOGIN_MODULES[mechanism]} required username={_quoted(user)} password={_quoted(password)};"


def parse_login(line: str) -> LoginEntry:
    """Read the value of ``sasl.jaas.config``.

    :raises ConfigError: it is not one login module with its options; the message never quotes the line.
    """
    tokens = list(_tokens(line))
    # The mark behind an entry ends it; Kafka takes exactly one.
    if len(tokens) < 3 or tokens[-1] != ("mark", ";") or tokens[0][0] != "text" or tokens[1][0] != "text":
        raise _unreadable("no module, flag and options that end with a semicolon")
    if tokens[1][1].lower() not in _FLAGS:
        raise _unreadable("no flag behind the module's name")
    return LoginEntry(tokens[0][1], _options(tokens[2:-1]))


def _options(tokens: list[tuple[str, str]]) -> dict[str, str]:
    if ("mark", ";") in tokens:
        raise _unreadable("more than one entry")
    names, marks, values = tokens[::3], tokens[1::3], tokens[2::3]
    regular = len(names) == len(marks) == len(values) and all(mark == ("mark", "=") for mark in marks)
    if not regular or any(kind != "text" for kind, _ in (*names, *values)):
        raise _unreadable("an option that is not name=value")
    return {name: value for (_, name), (_, value) in zip(names, values, strict=True)}


def _tokens(line: str) -> Iterator[tuple[str, str]]:
    place = 0
    while place < len(line):
        found = _TOKEN.match(line, place)
        if found is None:
            raise _unreadable(f"something that is neither a word nor a quoted text, at letter {place + 1}")
        place = found.end()
        if found.lastgroup in ("double", "single"):
            yield "text", _ESCAPE.sub(_letter, found[found.lastgroup])
        elif found.lastgroup is not None:
            yield ("mark" if found.lastgroup == "mark" else "text"), found[0]


def _letter(escape: re.Match[str]) -> str:
    text = escape[1]
    return chr(int(text, 8)) if text[0] in "01234567" else _CONTROLS.get(text, text)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _unreadable(found: str) -> ConfigError:
    return ConfigError(
        "sasl.jaas.config cannot be read",
        found=found,
        expected='one entry: MODULE required username="…" password="…";',
        cure="correct it in the connection, or give the connection a login and a password instead",
    )
