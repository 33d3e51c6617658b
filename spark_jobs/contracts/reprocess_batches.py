"""Which committed micro-batches are done again, and what came of it."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.from_values import from_values

OWN_IDS: Final = ("/replay/", "/reprocess/")
"""What the ids contain under which replays and reprocessed micro-batches stand in the ledger."""
MOST_SHOWN: Final = 200
"""So many micro-batches are named one by one in a summary; the others are in its sums."""
_OFFSETS = re.compile(r"\s*([\w.-]{1,249})/([0-9]{1,9}):([0-9]{1,18})-([0-9]{1,18})\s*", re.ASCII)
_RANGE = re.compile(r"\s*([0-9]{1,18})(?:\s*-\s*([0-9]{1,18}))?\s*")


class TimesOf(StrEnum):
    """Which times of a micro-batch a time range is compared with."""

    EVENT_TIME = "event_time"
    COMMIT_TIME = "commit_time"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class TopicOffsets(_Model):
    """Records of one partition, first and last both included."""

    topic: str
    partition: int
    first: int
    last: int


class ReprocessRequest(_Model):
    """Micro-batches of one query, by their ids, by time or by the offsets that they have read.

    :param pipeline_id: whose they are.
    :param query_id: of which query; the one that was used last unless given.
    :param batches: first and last batch id, both included.
    :param offsets: instead of ``batches``: those that have read any of these records.
    :param since: with ``until`` instead of ``batches``: those that touch the time from ``since`` (inclusive) until
        ``until`` (exclusive). :param times: by event times of their rows, or by the time of their commit.
    :param dry_run: do everything, and roll it back.
    """

    reprocess_id: UUID
    pipeline_id: str = Field(min_length=1)
    query_id: str | None = None
    batches: tuple[int, int] | None = None
    offsets: TopicOffsets | None = None
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    times: TimesOf = TimesOf.EVENT_TIME
    dry_run: bool = False

    @model_validator(mode="after")
    def _one_choice(self) -> ReprocessRequest:
        by_time = self.since is not None or self.until is not None
        if [self.batches is not None, self.offsets is not None, by_time].count(True) != 1:
            raise ValueError("give either batches, or since and until, or offsets")
        if by_time and (self.since is None or self.until is None or self.since >= self.until):
            raise ValueError("since and until belong together, and since is the earlier one")
        if self.batches is not None and self.batches[0] > self.batches[1]:
            raise ValueError("the first of the batches is the lower one")
        if self.offsets is not None and self.offsets.first > self.offsets.last:
            raise ValueError("the first of the offsets is the lower one")
        return self

    @classmethod
    def of(cls, *, batches: str | int | None = None, offsets: str | None = None, **values: Any) -> ReprocessRequest:
        """Return the request.

        :param batches: ``"12-40"``, or one id. :param offsets: ``"topic/partition:first-last"``.
        :raises ConfigError: naming every value that is not valid, or settings that contradict each other.
        """
        chosen = None if batches in (None, "") else _range(str(batches))
        read = _offsets(offsets) if offsets else None
        request = from_values(
            cls, {**values, "batches": chosen, "offsets": read}, "What is to be reprocessed is not valid"
        )
        if any(mark in request.pipeline_id for mark in OWN_IDS):
            raise ConfigError(
                "A replay, or what was reprocessed, is no pipeline of its own",
                found=request.pipeline_id,
                expected="the id of the pipeline that it belongs to",
                cure=f"Reprocess micro-batches of {owning_pipeline(request.pipeline_id)}",
            )
        return request

    @property
    def own_pipeline_id(self) -> str:
        """The id under which the runs and micro-batches of this stand in the ledger."""
        return f"{self.pipeline_id}{OWN_IDS[1]}{self.reprocess_id}"

    @property
    def choice(self) -> dict[str, Any]:
        """What was asked for, without the id of the asking: a further try asks for the same."""
        return self.model_dump(mode="json", exclude={"reprocess_id"})


class BatchAgain(_Model):
    """One micro-batch that was done again. Numbers are rows; ``letters`` are dead letters of reading and writing."""

    batch_id: int
    rows_before: int
    rows_after: int
    letters_before: int
    letters_after: int


class ReprocessSummary(_Model):
    """What was done again, or would be if it was a dry run: by the first micro-batches one by one, and in all."""

    reprocess_id: UUID
    pipeline_id: str
    query_id: str
    dry_run: bool
    batches: int
    rows_before: int
    rows_after: int
    letters_before: int
    letters_after: int
    shown: tuple[BatchAgain, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return self.model_dump(mode="json")


def owning_pipeline(pipeline_id: str) -> str:
    """Return the pipeline that a replay, or what was reprocessed, belongs to; the pipeline itself otherwise."""
    for mark in OWN_IDS:
        pipeline_id = pipeline_id.partition(mark)[0]
    return pipeline_id


def _range(text: str) -> tuple[int, int]:
    match = _RANGE.fullmatch(text)
    if match is None:
        raise ConfigError(
            "These are no micro-batches",
            found=repr(text[:100]),
            expected='first and last batch id, such as "12-40", or one id',
            cure="`etl-pipeline progress` and the table batch_tracker show a pipeline's batch ids",
        )
    return int(match[1]), int(match[2] or match[1])


def _offsets(text: str) -> dict[str, Any]:
    match = _OFFSETS.fullmatch(text)
    if match is None:
        raise ConfigError(
            "These are no offsets",
            found=repr(text[:100]),
            expected='a partition and its first and last offset, such as "orders/0:1200-1499"',
            cure="A dead letter's source, and the columns _topic, _partition and _offset, say where a record lies",
        )
    return dict(zip(("topic", "partition", "first", "last"), match.groups(), strict=True))
