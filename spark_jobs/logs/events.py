"""A log line as an event with fields. Standard library only: executors import it too."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import Any

# What stands in a plain line as it is: one word, that cannot be taken for a quoted one.
_BARE = re.compile(r"[^\s'\"\x00-\x1f\x7f-\x9f][^\s\x00-\x1f\x7f-\x9f]*")


class Event:
    """The message of a log record: a name and typed fields; its text is ``event=name field=value …``."""

    __slots__ = ("fields", "name")

    def __init__(self, name: str, fields: Mapping[str, Any]) -> None:
        self.name = name
        self.fields = dict(fields)

    def __str__(self) -> str:
        return " ".join((f"event={self.name}", *(f"{key}={rendered(value)}" for key, value in self.fields.items())))


def log_event(log: logging.Logger, level: int, name: str, /, *, exc_info: bool = False, **fields: Any) -> None:
    """Log an event.

    :param fields: with their own types: the JSON format keeps them.
    :param exc_info: with the trace of the exception that is being handled.
    """
    if log.isEnabledFor(level):
        log.log(level, Event(name, fields), exc_info=exc_info, stacklevel=2)


def rendered(value: Any) -> str:
    """Return a value as plain lines show it: one word, or quoted, and without characters that end or move a line."""
    text = _json(value) if isinstance(value, dict | list | tuple) else str(value)
    return text if _BARE.fullmatch(text) and text.isprintable() else repr(text)


def _json(value: Any) -> str:
    try:
        return json.dumps(value, default=str, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):
        return str(value)
