"""Which dead letters a replay takes, what it does with them, and what came of it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Final, Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.from_values import from_values

LetterStatus = Literal["pending", "replaying", "replayed", "parked", "discarded"]
RAW_VALUE: Final = "_value"
"""The name by which a patch changes the raw record, as text, before it is parsed."""
_SEPARATOR = "/replay/"


OUTCOMES: Final = ("taken", "replayed", "failed", "parked")
"""The numbers of letters that a replay's outcome and its summary have."""


class ReplayMode(StrEnum):
    """What a replay does with a letter."""

    REPROCESS = "reprocess"
    REDRIVE = "redrive"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class LetterFilter(_Model):
    """Which letters of one pipeline. What is empty or None does not restrict; the conditions hold together.

    :param since: first failed at this time or later. :param until: before this time.
    """

    pipeline_id: str = Field(min_length=1)
    stages: tuple[str, ...] = ()
    error_classes: tuple[str, ...] = ()
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    ids: tuple[UUID, ...] = ()
    statuses: tuple[LetterStatus, ...] = ("pending",)

    @classmethod
    def of(cls, **values: Any) -> LetterFilter:
        """Return the filter.

        :raises ConfigError: naming every value that is not one.
        """
        return from_values(cls, values, "The choice of dead letters is not valid")


class ReplayRequest(_Model):
    """One replay.

    :param patch: SQL expressions by the column that they repair, over the columns that the transforms get (or, for a
        letter that has no raw record, the target's); :data:`RAW_VALUE` names the raw record as text.
    :param limit: most letters that are taken, the oldest first. :param rate: most letters a second.
    :param max_attempts: failures, the first one included, after which a letter is parked.
    :param batch_size: most letters in a micro-batch.
    :param dry_run: do everything, and roll it back.
    :param not_sent: somebody has looked: letters that a redrive which died may have sent did not reach their topic, as
        far as the topic does not say otherwise.
    """

    replay_id: UUID
    letters: LetterFilter
    mode: ReplayMode = ReplayMode.REPROCESS
    patch: dict[str, str] = Field(default_factory=dict)
    limit: int | None = Field(None, ge=1)
    rate: float | None = Field(None, gt=0)
    max_attempts: int = Field(5, ge=1)
    batch_size: int = Field(100_000, ge=1)
    dry_run: bool = False
    not_sent: bool = False

    @classmethod
    def of(cls, **values: Any) -> ReplayRequest:
        """Return the request.

        :raises ConfigError: naming every value that is not valid, or settings that contradict each other.
        """
        request = from_values(cls, values, "The replay is not valid")
        taken = set(request.letters.statuses)
        if not taken or taken - {"pending", "parked"}:
            raise ConfigError(
                "A replay cannot take these dead letters",
                found=f"letters that are {', '.join(sorted(taken)) or 'nothing'}",
                expected="pending or parked ones: the others came home, or were given up",
            )
        if request.mode is ReplayMode.REDRIVE and request.patch.keys() - {RAW_VALUE}:
            raise ConfigError(
                "A redrive sends raw records: there are no columns to patch",
                found=", ".join(sorted(request.patch.keys() - {RAW_VALUE})),
                expected=f"{RAW_VALUE}, or mode reprocess",
            )
        return request

    @property
    def own_pipeline_id(self) -> str:
        """The id under which the replay's runs and micro-batches stand in the ledger."""
        return f"{self.letters.pipeline_id}{_SEPARATOR}{self.replay_id}"

    @property
    def letters_per_batch(self) -> int:
        """How many letters a micro-batch may have: at most a second's worth where there is a rate."""
        return self.batch_size if self.rate is None else max(min(self.batch_size, int(self.rate)), 1)


class ClassOutcome(_Model):
    """What became of the letters of one stage and error class. All numbers are letters.

    :param failed: failed again, and wait. :param parked: failed for the last time.
    """

    stage: str
    error_class: str
    taken: int = 0
    replayed: int = 0
    failed: int = 0
    parked: int = 0


class LetterSample(_Model):
    """A letter that failed again: what it had failed with, and with what now."""

    dead_letter_id: UUID
    stage: str
    error_class: str
    new_stage: str
    new_error_class: str
    new_message: str


class ReplaySummary(_Model):
    """What a replay did, or would do if it was a dry run.

    :param unsendable: letters that a redrive left where they are, for they hold no record that could be sent.
    :param perhaps_sent: letters that a reprocess left, for a redrive that died may have sent them.
    """

    replay_id: UUID
    pipeline_id: str
    mode: ReplayMode
    dry_run: bool
    taken: int
    replayed: int
    failed: int
    parked: int
    unsendable: int = 0
    perhaps_sent: int = 0
    classes: tuple[ClassOutcome, ...] = ()
    samples: tuple[LetterSample, ...] = ()

    @property
    def numbers(self) -> dict[str, Any]:
        """The numbers of :data:`OUTCOMES`, by name."""
        return {name: getattr(self, name) for name in OUTCOMES}

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return self.model_dump(mode="json")


class Letter(_Model):
    """A dead letter without its payload. Times know their zone."""

    dead_letter_id: UUID
    pipeline_id: str
    query_id: str
    batch_id: int
    status: LetterStatus
    stage: str
    error_class: str
    sqlstate: str | None
    message: str
    column_name: str | None
    constraint_name: str | None
    source: Any
    event_time: datetime | None
    attempt: int
    first_failed_at: datetime
    last_failed_at: datetime
    replay_id: UUID | None
    home_query_id: str | None
    home_batch_id: int | None
    closed_at: datetime | None
    closed_by: str | None
    reason: str | None


class WholeLetter(Letter):
    """A dead letter with all of it.

    :param raw_key: bytes as they came, as is ``raw_value``. :param raw_headers: ``[{"key", "value": base64}]``.
    """

    raw_key: bytes | None
    raw_value: bytes | None
    raw_headers: Any
    parsed_row: Any


class LetterCount(_Model):
    """How many letters there are of a kind."""

    pipeline_id: str
    status: LetterStatus
    stage: str
    error_class: str
    letters: int
