"""How many dead letters wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.replay import LetterCount, LetterStatus
from spark_jobs.contracts.tracker.letters import count_letters
from spark_jobs.contracts.watch.condition import Condition, LedgerView, Seen, Step

ALL_PIPELINES = ""
"""In place of a pipeline's id."""


class DeadLetterDepth(Condition):
    """Holds while few enough dead letters are there (``at_most``), or so many that something is to be done.

    Counts are exact, and cheap however many letters there are.

    :param pipeline: whose letters; those of all pipelines with :data:`ALL_PIPELINES`.
    :param at_most: this many or fewer. :param at_least: this many or more. One of both.
    :param statuses: which letters count. :param stages: only these; all when empty.
    :param error_classes: only these; all when empty.
    """

    title: ClassVar[str] = "A count of dead letters"

    pipeline: str = ALL_PIPELINES
    at_most: int | None = Field(None, ge=0)
    at_least: int | None = Field(None, ge=0)
    statuses: tuple[LetterStatus, ...] = Field(("pending", "parked"), min_length=1)
    stages: tuple[str, ...] = ()
    error_classes: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise :class:`ConfigError` unless there is one threshold."""
        if (self.at_most is None) == (self.at_least is None):
            raise ConfigError(
                "A count of dead letters needs one threshold",
                found=f"at_most={self.at_most}, at_least={self.at_least}",
                expected="at_most (few enough letters wait) or at_least (there is something to do)",
            )

    def begin(self, view: LedgerView) -> Step:
        """Look at the ledger. Raises as :meth:`~spark_jobs.contracts.watch.condition.Condition.look` does."""
        return self._look(view) if self.pipeline == ALL_PIPELINES else Condition.begin(self, view)

    def _look(self, view: LedgerView) -> Seen:
        counts = count_letters(
            view.conn,
            view.schema,
            self.pipeline or None,
            statuses=self.statuses,
            stages=self.stages,
            error_classes=self.error_classes,
        )
        letters = sum(count.letters for count in counts)
        return Seen(
            done=self._enough(letters),
            message=f"{self.pipeline or 'all pipelines'}: {letters} dead letters{_kinds(counts)}",
            value={"letters": letters, "counts": [count.model_dump(mode="json") for count in counts]},
        )

    def _enough(self, letters: int) -> bool:
        return letters <= self.at_most if self.at_most is not None else letters >= (self.at_least or 0)


def _kinds(counts: Sequence[LetterCount]) -> str:
    kinds = [f"{count.letters} {count.status} {count.stage} {count.error_class}" for count in counts[:20]]
    if len(counts) > len(kinds):
        kinds.append("…")
    return f" ({', '.join(kinds)})" if kinds else ""
