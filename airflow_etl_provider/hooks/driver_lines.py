"""What is read off a driver's lines while they pass into the task's log: the retries that it tells of."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final, get_args

from spark_jobs.contracts.errors import Operation
from spark_jobs.contracts.run_figures import Waited

_LOGGER: Final = "etl.retry"
_KINDS: Final[tuple[Operation, ...]] = get_args(Operation)
# From the line's start: a value within another line may well look the same.
_PLAIN: Final = re.compile(
    rf"\S+ \S+ \w+ {re.escape(_LOGGER)} event=retry kind=(?P<kind>\w+) .*?\bwait_seconds=(?P<wait_seconds>[\d.e-]+)"
)
_OURS: Final = re.compile(r"\S+ \S+ [A-Z]+ etl\.|\{\"ts\": ")


class DriverLines:
    """Listens to the lines of one driver, in either log format."""

    def __init__(self) -> None:
        self.any = False
        """Whether the driver has said anything itself: its attempt had begun."""
        self.retries: dict[Operation, Waited] = {}

    def listening(self, lines: Iterable[str]) -> Iterator[str]:
        """Pass the lines on."""
        for line in lines:
            self.hear(line)
            yield line

    def hear(self, line: str) -> None:
        """Take note of a line, if it says something."""
        self.any = self.any or _OURS.match(line) is not None
        found = _json(line) if line.startswith("{") else _plain(line)
        for kind in _KINDS:
            if found.get("kind") == kind:
                before = self.retries.get(kind, Waited(0, 0.0))
                self.retries[kind] = Waited(before.times + 1, before.seconds + _number(found.get("wait_seconds")))


def _plain(line: str) -> dict[str, Any]:
    found = _PLAIN.match(line)
    return found.groupdict() if found else {}


def _json(line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(event, dict) or (event.get("logger"), event.get("event")) != (_LOGGER, "retry"):
        return {}
    return event


def _number(value: object) -> float:
    # The lines are on their way to the task's log: none may stop there for what it says.
    try:
        return number if math.isfinite(number := float(str(value))) else 0.0
    except ValueError:
        return 0.0
