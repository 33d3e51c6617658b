"""What an audit of a pipeline's checkpoint has found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from spark_jobs.contracts.errors import CheckpointMismatchError, ConfigError, EtlError, TransientError


class State(StrEnum):
    """How checkpoint, ledger and source stand to each other. The later of two is the worse one."""

    CONSISTENT = "consistent"
    NEW = "new"
    """No checkpoint, and no micro-batch that would be missed."""
    PLANNED = "planned"
    """The newest micro-batch is planned and not committed, as a driver that was killed leaves it."""
    RUNNING = "running"
    """A run is going on: what it changes meanwhile is not judged."""
    UNKNOWN = "unknown"
    """A part could not be looked at."""
    MOVED = "moved"
    """The newest run's configuration names another checkpoint than the one that was used last."""
    BEHIND = "behind"
    """The ledger has later micro-batches of the same query: an older copy was brought back."""
    SOURCE = "source"
    """The source does not have any more what comes next, or goes less far than the checkpoint."""
    DIFFERENT = "different"
    """The same micro-batch has other offsets or files in the checkpoint than in the ledger."""
    DAMAGED = "damaged"
    REPLACED = "replaced"
    """Another checkpoint has read on since."""
    AHEAD = "ahead"
    """The checkpoint has committed what the ledger lacks: the database lost it."""
    FOREIGN = "foreign"
    """Another pipeline's, or one that the ledger does not know."""
    LOST = "lost"
    UNREADABLE = "unreadable"
    """The checkpoint's place cannot be read from here: nothing is known of it."""


_WORST: Final = tuple(State)
GOOD: Final = (State.CONSISTENT, State.NEW, State.PLANNED, State.RUNNING)
"""What needs nobody."""
BAD: Final = tuple(state for state in State if state not in GOOD)
"""What somebody is to look at before the next run, in the order of :class:`State`."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Finding(_Model):
    """One thing that was found.

    :param found: what there is. :param expected: what there should be. :param advice: what to do.
    :param passing: whether it may be gone when it is looked at again, without anybody doing something.
    """

    state: State
    found: str
    expected: str
    advice: str
    passing: bool = False


class AuditReport(_Model):
    """What was found of one pipeline.

    :param checkpoint: its location; None while the ledger knows none.
    :param query_id: as the checkpoint says; None without one.
    :param last_planned, last_committed: the newest micro-batches of the checkpoint.
    :param last_in_ledger: the newest one that the ledger has of the same query.
    :param compared_batches: how many were compared with the ledger. :param compared_files: of how many files.
    :param findings: the worst first; empty when all agrees.
    :param not_judged: what was not looked at, and why.
    """

    pipeline: str
    checkpoint: str | None = None
    query_id: str | None = None
    last_planned: int | None = None
    last_committed: int | None = None
    last_in_ledger: int | None = None
    compared_batches: int = 0
    compared_files: int = 0
    findings: tuple[Finding, ...] = ()
    not_judged: tuple[str, ...] = ()

    @property
    def state(self) -> State:
        """The worst of what was found."""
        return self.findings[0].state if self.findings else State.CONSISTENT

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {"state": self.state.value, **self.model_dump(mode="json")}


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return the findings in the order in which a person wants to read them."""
    return tuple(sorted(findings, key=lambda finding: -_WORST.index(finding.state)))


def states(names: Sequence[str]) -> tuple[State, ...]:
    """Return the states of these names.

    :raises ConfigError: naming those that there are not.
    """
    wrong = [name for name in names if name not in _WORST]
    if wrong:
        raise ConfigError(
            "States of an audit are not known", found=", ".join(map(repr, wrong)), expected=", ".join(State)
        )
    return tuple(State(name) for name in names)


def failure(reports: Iterable[AuditReport], fail_on: Sequence[State]) -> EtlError | None:
    """Return the error for what was found of the states ``fail_on``; None when there is nothing of them.

    It is retryable when all of it may pass by itself.
    """
    bad = [(report, one) for report in reports for one in report.findings if one.state in fail_on]
    if not bad:
        return None
    kind = TransientError if all(one.passing for _, one in bad) else CheckpointMismatchError
    names = dict.fromkeys(repr(report.pipeline) for report, _ in bad)
    return kind(
        f"Checkpoint, ledger and source do not agree: {', '.join(names)}",
        found="; ".join(f"{report.pipeline} is {one.state}: {one.found}" for report, one in bad),
        expected="; ".join(dict.fromkeys(one.expected for _, one in bad)),
        cure="; ".join(dict.fromkeys(one.advice for _, one in bad)),
    )
