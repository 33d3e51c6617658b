"""What drivers left between the two phases, for people: shown by pipeline, and resolved without starting a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from spark_jobs.contracts.tracker.connect import Connection, classified, query
from spark_jobs.contracts.tracker.decisions import Decided, commit_parts, decided, finish
from spark_jobs.contracts.tracker.fence import with_fence_row
from spark_jobs.contracts.tracker.prepared import Prepared, all_prepared, prepared_of, resolve
from spark_jobs.contracts.tracker.recovery import undecided
from spark_jobs.contracts.tracker.run_state import SILENCE, SILENT_AFTER_SECONDS

SILENT_AFTER: Final = timedelta(seconds=SILENT_AFTER_SECONDS)
"""A driver without a heartbeat for so long counts as gone. If it is not, it loses its right before its parts: nothing
is lost."""

_FENCE = f"""
SELECT p.epoch, coalesce(run.ended_at IS NULL AND run.state = 'running' AND {SILENCE} < %s, false)
FROM {{schema}}.pipeline p LEFT JOIN {{schema}}.pipeline_run run ON run.run_id = p.epoch_run_id
WHERE p.pipeline_id = %s
"""  # noqa: S608 - constants
# Its run keeps its own right: a driver that the cluster starts again may claim the next epoch.
_TAKE_THE_EPOCH = "UPDATE {schema}.pipeline SET epoch = epoch + 1, epoch_run_id = NULL WHERE pipeline_id = %s"


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """A prepared transaction, or a decided batch that waits for its end (``name`` is None then).

    :param state: ``decided``, ``undecided``, ``running`` (its driver has not ended), and once resolved ``committed``
        or ``rolled back``.
    """

    pipeline_id: str
    batch_id: int
    state: str
    part: int | None = None
    name: str | None = None
    owner: str | None = None
    since: datetime | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields, the time as ISO 8601."""
        return {
            "pipeline_id": self.pipeline_id,
            "batch_id": self.batch_id,
            "state": self.state,
            "part": self.part,
            "name": self.name,
            "owner": self.owner,
            "since": self.since.isoformat() if self.since else None,
        }


@dataclass(frozen=True, slots=True)
class _Fence:
    epoch: int
    running: bool


def left_behind(
    conn: Connection, schema: str, pipeline_id: str | None = None, *, silence: timedelta = SILENT_AFTER
) -> list[LeftBehind]:
    """Return what there is of one pipeline, or of all; only of this project, only in this database."""
    found = prepared_of(conn, schema, pipeline_id) if pipeline_id else all_prepared(conn, schema)
    batches = decided(conn, schema, pipeline_id)
    winning = {winner.name for batch in batches for winner in batch.winners}
    fences = {one: _fence(conn, schema, one, silence) for one in {item.pipeline_id for item in found}}
    shown = [_shown(item, _state(item, fences[item.pipeline_id], winning)) for item in found]
    waiting = {item.name for item in found}
    return shown + [
        LeftBehind(batch.pipeline_id, batch.batch_id, "decided")
        for batch in batches
        if not any(winner.name in waiting for winner in batch.winners)
    ]


def resolve_left_behind(
    conn: Connection,
    schema: str,
    pipeline_id: str,
    *,
    role: str | None = None,
    accept_missing: bool = False,
    silence: timedelta = SILENT_AFTER,
) -> list[LeftBehind]:
    """Finish the pipeline's decided batches and roll back its undecided parts; what a running driver prepared stays.

    A driver that has been silent for long loses its right to commit before its parts are rolled back.

    :raises DecidedPartMissingError: a part of a decided batch was rolled back by hand.
    :raises TransientError: another session keeps the pipeline's row.
    """
    done = _finish_decided(conn, schema, pipeline_id, role, accept_missing=accept_missing)
    found = prepared_of(conn, schema, pipeline_id)
    fence = _fence(conn, schema, pipeline_id, silence)
    waiting = undecided(conn, schema, pipeline_id, found)
    if not fence.running and any(item.part.epoch >= fence.epoch for item in waiting):
        fence = _take_the_epoch(conn, schema, pipeline_id, fence, silence)
        # A driver that was only slow may have decided until then.
        done += _finish_decided(conn, schema, pipeline_id, role, accept_missing=accept_missing)
    lost = [item for item in found if _state(item, fence, set()) == "undecided"]
    # Asked again: no driver of these parts has decided since it lost its right.
    for item in undecided(conn, schema, pipeline_id, lost):
        if resolve(conn, item.name, commit=False, role=role):
            done.append(_shown(item, "rolled back"))
    return done


def take_right_of_silent(conn: Connection, schema: str, pipeline_id: str, *, silence: timedelta = SILENT_AFTER) -> bool:
    """Take the right to commit from a driver without a heartbeat for so long; return whether this call did it.

    :raises TransientError: another session keeps the pipeline's row.
    """
    fence = _fence(conn, schema, pipeline_id, silence)
    return not fence.running and _take_the_epoch(conn, schema, pipeline_id, fence, silence).epoch > fence.epoch


def _finish_decided(
    conn: Connection, schema: str, pipeline_id: str, role: str | None, *, accept_missing: bool
) -> list[LeftBehind]:
    done = []
    for batch in decided(conn, schema, pipeline_id):
        commit_parts(conn, batch, role)
        if finish(conn, _AnyRight(schema, pipeline_id), batch, accept_missing=accept_missing):
            done.append(_finished(batch))
    return done


def _take_the_epoch(conn: Connection, schema: str, pipeline_id: str, silent: _Fence, silence: timedelta) -> _Fence:
    """Take the right to decide from a silent driver, unless it has spoken or been replaced; return the fence then."""

    def work() -> _Fence:
        _AnyRight(schema, pipeline_id).check(conn)
        # Not with the lock's own statement: what came while it waited must be seen.
        fence = _fence(conn, schema, pipeline_id, silence)
        if fence != silent:
            return fence
        query(conn, schema, _TAKE_THE_EPOCH, (pipeline_id,))
        return replace(fence, epoch=fence.epoch + 1)

    return with_fence_row(conn, schema, pipeline_id, work, lambda: silent.epoch)


@dataclass(frozen=True, slots=True)
class _AnyRight:
    """Whoever finishes a decided batch by hand needs no epoch: it was decided by a driver that had one."""

    schema: str
    pipeline_id: str

    def check(self, conn: Connection) -> None:
        """Wait for a driver that is doing the same."""
        query(
            conn,
            self.schema,
            "SELECT FROM {schema}.pipeline WHERE pipeline_id = %s FOR NO KEY UPDATE",
            (self.pipeline_id,),
        )


def _state(item: Prepared, fence: _Fence, winning: set[str]) -> str:
    if item.name in winning:
        return "decided"
    return "running" if fence.running and item.part.epoch >= fence.epoch else "undecided"


def _fence(conn: Connection, schema: str, pipeline_id: str, silence: timedelta) -> _Fence:
    with classified("Reading the fence"):
        row = query(conn, schema, _FENCE, (silence.total_seconds(), pipeline_id)).fetchone()
    return _Fence(*row) if row else _Fence(0, running=False)


def _shown(item: Prepared, state: str) -> LeftBehind:
    part = item.part
    return LeftBehind(item.pipeline_id, part.batch_id, state, part.part, item.name, item.owner, item.prepared_at)


def _finished(batch: Decided) -> LeftBehind:
    return LeftBehind(batch.pipeline_id, batch.batch_id, "committed")
