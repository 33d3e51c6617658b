"""The names of a pipeline's prepared transactions: never used twice, and telling whose they are. Standard library only.

``etl:<pipeline's hash>:<query>:<batch>:<epoch>:<driver's attempt>:<part>:<Spark's task attempt>``, at most 199 bytes,
which is all that PostgreSQL takes. A part whose number is ``-1`` holds the dead letters of a second look.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from spark_jobs.contracts.tracker.statements import tag

MAX_NAME_BYTES: Final = 199
LETTERS_PART: Final = -1
_FIELDS: Final = 6


@dataclass(frozen=True, slots=True)
class PartNames:
    """Makes the names of one attempt at one batch.

    :param pipeline_tag: :func:`~spark_jobs.contracts.tracker.statements.tag` of pipeline and tracker.
    :param attempt: the driver's own count within its epoch: a batch that is done again gets other names.
    """

    pipeline_tag: str
    query_id: str
    batch_id: int
    epoch: int
    attempt: int

    def of(self, part: int, task_attempt: int) -> str:
        """Return the name for an attempt at a part."""
        query = self.query_id.replace("-", "")[:64]
        return f"{self.pipeline_tag}{query}:{self.batch_id}:{self.epoch}:{self.attempt}:{part}:{task_attempt}"


@dataclass(frozen=True, slots=True)
class PartName:
    """What a prepared transaction's name says. ``query`` is the query's id without its hyphens."""

    name: str
    query: str
    batch_id: int
    epoch: int
    attempt: int
    part: int
    task_attempt: int

    @classmethod
    def parse(cls, name: str, pipeline_tag: str) -> PartName | None:
        """Read a name; None when it is not one of the pipeline's."""
        if not name.startswith(pipeline_tag):
            return None
        query, *numbers = name[len(pipeline_tag) :].split(":")
        if len(numbers) != _FIELDS - 1 or not all(_whole(number) for number in numbers):
            return None
        return cls(name, query, *map(int, numbers))


def part_names(pipeline_id: str, schema: str, query_id: str, batch_id: int, epoch: int, attempt: int) -> PartNames:
    """Return the maker of names for one attempt at a batch; ``schema`` is the tracker's, unquoted."""
    return PartNames(tag(pipeline_id, schema), query_id, batch_id, epoch, attempt)


def _whole(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit()
