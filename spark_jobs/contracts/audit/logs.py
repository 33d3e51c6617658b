"""Spark's checkpoint logs as text: metadata, offset log, commit log, the file source's log. Versions ``v1`` and later.

A log's first line is its version, each line after it JSON. What is cut off or is none of that is :class:`TornError`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

_VERSION: Final = re.compile(r"v\d+")
MOST_BYTES: Final = 64 * 1024 * 1024
"""Of one entry of a log: the offsets of a million partitions have a third of it."""
_MOST_LINE: Final = 1024 * 1024


class TornError(ValueError):
    """A file of the checkpoint is not what Spark writes."""


@dataclass(frozen=True, slots=True)
class Planned:
    """An entry of the offset log.

    :param sources: the end offset of each source, parsed; None where it had none.
    """

    watermark_ms: int
    planned_ms: int
    sources: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class SourceEntry:
    """A file in the file source's log. :param path: a URI, as Spark wrote it. :param number: the log's entry."""

    path: str
    number: int


def parse_metadata(text: str) -> str:
    """Return the query's id."""
    found = _json(text, "metadata").get("id")
    if not isinstance(found, str) or not found:
        raise TornError('no {"id": the query\'s id}')
    return found


def parse_planned(text: str) -> Planned:
    """Return an entry of the offset log."""
    lines = _lines(text)
    if len(lines) < 2:
        raise TornError(f"{len(lines) + 1} of at least 3 lines")
    times = _json(lines[0], "line 2")
    sources = tuple(None if line == "-" else _value(line, f"line {i}") for i, line in enumerate(lines[1:], 3))
    try:
        return Planned(int(times["batchWatermarkMs"]), int(times["batchTimestampMs"]), sources)
    except (KeyError, TypeError, ValueError) as error:
        raise TornError(f"line 2 has no watermark or time: {error!r}") from None


def check_commit(text: str) -> None:
    """Raise :class:`TornError` for what is no entry of the commit log."""
    lines = _lines(text)
    if not lines:
        raise TornError("nothing after the version")
    _json(lines[0], "line 2")


def source_entries(stream: BinaryIO) -> Iterator[SourceEntry]:
    """Yield the files of an entry of the file source's log, or of a ``.compact`` file; one line in memory at a time."""
    _check_version(_text(stream.readline(_MOST_LINE)).rstrip("\n"))
    number = 1
    while line := stream.readline(_MOST_LINE):
        number += 1
        if text := _text(line).strip():
            yield _entry(text, f"line {number}")


def read_text(stream: BinaryIO) -> str:
    """Return a small file's text."""
    content = stream.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise TornError(f"more than {MOST_BYTES:,} bytes")
    return _text(content)


def _entry(text: str, where: str) -> SourceEntry:
    values = _json(text, where)
    path, number = values.get("path"), values.get("batchId")
    if not isinstance(path, str) or not isinstance(number, int) or isinstance(number, bool):
        raise TornError(f"{where} has no path or batchId")
    return SourceEntry(path, number)


def _lines(text: str) -> list[str]:
    # Not splitlines: JSON may hold line separators of Unicode as they are.
    version, *lines = text.rstrip("\n").split("\n")
    _check_version(version)
    return lines


def _check_version(line: str) -> None:
    if not _VERSION.fullmatch(line):
        raise TornError(f"a first line {line[:40]!r}, and no version such as v1" if line else "an empty file")


def _json(text: str, where: str) -> dict[str, Any]:
    found = _value(text, where)
    if not isinstance(found, dict):
        raise TornError(f"{where} is no JSON object")
    return found


def _value(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TornError(f"{where} is no JSON ({error})") from None


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise TornError(f"no UTF-8 ({error.reason} at byte {error.start})") from None
