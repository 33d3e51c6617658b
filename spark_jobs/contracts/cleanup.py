"""What a cleanup of the ledger may remove, and what it removed."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from spark_jobs.contracts.from_values import from_values

MINIMUM_BATCHES: Final = 200
"""The newest micro-batches of every query that no cleanup removes: twice what Spark keeps in a checkpoint
(``spark.sql.streaming.minBatchesToRetain``, 100), any of which it may run again."""

Why = Literal["age", "count", "unfinished", "busy", "failed"]
"""Why a query's older batches stay: they are too young, among the newest, a decided one waits for its end, another
session is at them, or their removal failed (see :attr:`CleanupReport.problems`)."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CleanupRequest(_Model):
    """What may go. A batch goes when it is older than ``days`` and not among the newest ``keep_batches`` of its query.

    :param pipelines: only these; all when empty.
    :param days: age in days, by the server's clock. :param keep_batches: newest batches of each query that stay.
    :param letter_days: since a dead letter came home or was given up; since a replay ended. None: they stay.
    :param history_days: of runs, what they did again, reprocesses of micro-batches that are gone, and changes of
        circuit breakers. None: they stay.
    :param batch_size: most rows of one transaction.
    :param pause_seconds: between two transactions, so that the server has time for others; twice as long as the
        transaction took where that is longer. 0: no pause.
    :param dry_run: count, and remove nothing.
    """

    pipelines: tuple[str, ...] = ()
    days: float = Field(30, ge=0, allow_inf_nan=False, le=36_500)
    keep_batches: int = Field(1_000, ge=MINIMUM_BATCHES, le=2**31 - 1)
    letter_days: float | None = Field(365, ge=0, allow_inf_nan=False, le=36_500)
    history_days: float | None = Field(90, ge=0, allow_inf_nan=False, le=36_500)
    batch_size: int = Field(1_000, ge=1, le=10_000)
    pause_seconds: float = Field(0.05, ge=0, le=3_600)
    dry_run: bool = False

    @classmethod
    def of(cls, **values: Any) -> CleanupRequest:
        """Return the request.

        :raises ConfigError: naming every value that is not valid.
        """
        return from_values(cls, values, "The cleanup is not valid")


class QueryCleanup(_Model):
    """What went of one query's batches, and where what stays begins. :param rows: rows of the target, as they said."""

    pipeline_id: str
    query_id: str
    batches: int = 0
    rows: int = 0
    through_batch: int | None = None
    kept_from_batch: int | None = None
    kept_since: datetime | None = None
    why: Why


class CleanupReport(_Model):
    """What a cleanup removed, or would remove if it was a dry run. All numbers are rows of the ledger.

    :param before: batches that were committed before this time were old enough; the server's clock.
    :param queries: those of which something went, or could not go for a reason that passes.
    :param by_pipeline: what went, by pipeline and kind.
    :param totals: the same, of all pipelines, and what is nobody's.
    :param problems: by pipeline, the first thing that could not be cleaned (:meth:`EtlError.to_json`); the other
        pipelines were cleaned all the same. Circuit breakers are no pipeline's: ``circuit breaker <system>``.
    """

    dry_run: bool
    before: datetime
    queries: tuple[QueryCleanup, ...]
    by_pipeline: dict[str, dict[str, int]]
    totals: dict[str, int]
    problems: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return self.model_dump(mode="json")


class SweepRequest(_Model):
    """Which things of drivers that are gone are to be cleared away.

    :param pipelines: only these; all when empty.
    :param older_than_minutes: how long a prepared transaction must have waited, and a driver must have been silent.
    :param progress_days: age from which progress expires; the newest hundred of each pipeline stay. None: all stays,
        which is at most the thousand to which each run keeps its own pipeline's.
    :param role: who prepared transactions and owns staging tables; what each pipeline's ``load.role`` says when None.
    :param dry_run: say what there is, and leave it.
    """

    pipelines: tuple[str, ...] = ()
    older_than_minutes: float = Field(15, ge=2, allow_inf_nan=False, le=525_600)
    progress_days: float | None = Field(90, ge=0, allow_inf_nan=False, le=36_500)
    role: str | None = Field(None, min_length=1)
    dry_run: bool = False

    @classmethod
    def of(cls, **values: Any) -> SweepRequest:
        """Return the request.

        :raises ConfigError: naming every value that is not valid.
        """
        return from_values(cls, values, "The sweep is not valid")


class Orphan(_Model):
    """A thing of a driver that is gone.

    :param kind: ``prepared`` (transaction), ``decided`` (batch), ``staging`` (table), ``replay``, or ``progress`` (of a
        pipeline, expired). :param name: its name in the database; of a batch its id.
    :param state: what was, or would be, done; ``kept`` if it stays. :param why: why it stays.
    :param letters: a replay's dead letters. :param rows: how much progress went, or would.
    """

    kind: Literal["prepared", "decided", "staging", "replay", "progress"]
    pipeline_id: str | None
    name: str
    state: Literal["committed", "rolled back", "dropped", "given back", "removed", "kept"]
    why: str = ""
    letters: int = 0
    rows: int = 0


class SweepReport(_Model):
    """What a sweep found and did.

    :param problems: by pipeline, what could not be cleared away and needs a person (:meth:`EtlError.to_json`).
    """

    dry_run: bool
    orphans: tuple[Orphan, ...]
    problems: dict[str, dict[str, Any]]

    @property
    def cleared(self) -> tuple[Orphan, ...]:
        """What was cleared away, or would be."""
        return tuple(orphan for orphan in self.orphans if orphan.state != "kept")

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return self.model_dump(mode="json")


def totals(counts: Iterable[tuple[str | None, str, int]]) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    """Add up ``(pipeline, kind, number)``; return them by pipeline and kind, and by kind alone. Zeros are left out."""
    by_pipeline: dict[str, dict[str, int]] = {}
    by_kind: dict[str, int] = {}
    for pipeline_id, kind, number in counts:
        if not number:
            continue
        by_kind[kind] = by_kind.get(kind, 0) + number
        if pipeline_id is not None:
            own = by_pipeline.setdefault(pipeline_id, {})
            own[kind] = own.get(kind, 0) + number
    return dict(sorted(by_pipeline.items())), dict(sorted(by_kind.items()))
