"""How far a pipeline's query has come: a micro-batch, source offsets, rows, the end of its run, or its speed."""

from __future__ import annotations

from typing import Any, ClassVar, Final

from pydantic import AwareDatetime, Field

from spark_jobs.contracts.errors import ConfigError, EtlError
from spark_jobs.contracts.tracker.run_state import RunLife, RunPhase, newest_run_life, run_life
from spark_jobs.contracts.watch.condition import Condition, LedgerView, Seen, in_words
from spark_jobs.contracts.watch.offsets import by_partition, reaches
from spark_jobs.contracts.watch.reachable_offsets import require_reachable

# The query that was begun, or that has committed, last: the checkpoint of an older one may be brought back.
_NEWEST: Final = """
SELECT b.batch_id, q.query_id, b.end_offsets, b.source_rows, b.duration_ms
FROM {schema}.pipeline_query q LEFT JOIN LATERAL (
    SELECT batch_id, end_offsets, source_rows, duration_ms, epoch FROM {schema}.batch_tracker b
    WHERE b.pipeline_id = q.pipeline_id AND b.query_id = q.query_id
        AND (%(run)s::text IS NULL OR b.run_id = %(run)s)
    ORDER BY batch_id DESC LIMIT 1
) AS b ON true
WHERE q.pipeline_id = %(pipeline)s
ORDER BY (%(run)s::text IS NOT NULL AND b.batch_id IS NULL), greatest(q.epoch, b.epoch) DESC, q.created_at DESC
LIMIT 1"""
# What comes after a run's end: a micro-batch that it had decided, which another one finishes for it.
_DECIDED: Final = """
SELECT 1 FROM {schema}.batch_decision WHERE pipeline_id = %(pipeline)s AND run_id = %(run)s LIMIT 1"""
_ENDED_OTHERWISE: Final = (RunPhase.FAILED, RunPhase.STOPPED, RunPhase.FENCED)

_ROWS: Final = """
SELECT coalesce(sum(record_count), 0)::bigint FROM {schema}.batch_tracker
WHERE pipeline_id = %(pipeline)s AND processed_at >= coalesce(%(since)s::timestamptz, '-infinity')
    AND (%(run)s::text IS NULL OR run_id = %(run)s)"""
# Of the pipeline's own queries: under its name stand those of its replays, too, whose rows are not counted above.
_REMOVED: Final = """
SELECT coalesce(sum(r.removed_rows), 0)::bigint, max(r.through_time)::text,
    coalesce(max(r.through_time) >= coalesce(%(since)s::timestamptz, (
        SELECT registered_at FROM {schema}.pipeline_run WHERE run_id = %(run)s)), false)
FROM {schema}.batch_retention r JOIN {schema}.pipeline_query q USING (pipeline_id, query_id)
WHERE r.pipeline_id = %(pipeline)s"""


class QueryProgress(Condition):
    """Holds when all that was asked for is reached.

    :param run_id: only this run, and nothing of others; once it has ended without, nothing is waited for any more. The
        newest one without it: what that has not reached, the next may.
    :param since: only a run that was registered, and rows that were committed, at this time or later.
    :param batch_id: a micro-batch of the newest query that must be committed.
    :param offsets: source offsets that must be reached, in the source's own form: ``{"topic": {"0": 1000}}``. What the
        source can never have is an error.
    :param rows: how many rows must be written. :param run_finished: whether the run must have finished.
    :param rows_per_second: what the newest micro-batch must have read, at least.
    """

    title: ClassVar[str] = "Progress"

    run_id: str | None = None
    since: AwareDatetime | None = None
    batch_id: int | None = Field(None, ge=0)
    offsets: dict[str, Any] | int | None = None
    rows: int | None = Field(None, ge=1)
    run_finished: bool = False
    rows_per_second: float | None = Field(None, gt=0, allow_inf_nan=False)

    def check(self) -> None:
        """Raise :class:`ConfigError` where nothing is waited for."""
        goals = (self.batch_id, self.offsets, self.rows, self.rows_per_second)
        if not self.run_finished and all(goal is None for goal in goals):
            raise ConfigError(
                "Nothing is waited for",
                found="no batch_id, offsets, rows, rows_per_second or run_finished",
                expected="one of them at least",
            )
        if isinstance(self.offsets, dict) and not by_partition(self.offsets):
            raise ConfigError(
                "Offsets that nobody can reach are waited for",
                found=f"offsets={self.offsets}",
                expected='next offsets by topic and partition, such as {"orders": {"0": 1000}}',
            )

    def _look(self, view: LedgerView) -> Seen:
        values = {"pipeline": self.pipeline, "run": self.run_id, "since": self.since}
        about = f"Looking at the progress of {self.pipeline!r}"
        run = self._run(view)
        newest = view.rows(_NEWEST, values, about)
        if self._judges(run):
            require_reachable(view, self.pipeline, newest[0][2] if newest else None, self.offsets)
        done, said, value = self._run_seen(run)
        for reached, words, found in (
            self._batch_seen(*newest[0]) if newest and newest[0][0] is not None else self._none_seen()
        ):
            done, said, value = done and reached, [*said, words], {**value, **found}
        if self.rows is not None:
            written = self._written(view, values, about)
            done = done and written >= self.rows
            said, value = [*said, f"{written} of {self.rows} rows written"], {**value, "rows": written}
        over = self.run_id is not None and run.phase in (RunPhase.FINISHED, *_ENDED_OTHERWISE)
        if over and not done and not view.rows(_DECIDED, values, about):
            raise self._in_vain(said)
        return Seen(done=done, message=f"{self.pipeline}: {', '.join(said)}", value=value)

    def _written(self, view: LedgerView, values: dict[str, Any], about: str) -> int:
        written = int(view.rows(_ROWS, values, about)[0][0])
        removed, through, within = view.rows(_REMOVED, values, about)[0]
        if self.since is None and self.run_id is None:
            # What a cleanup has removed was written all the same.
            return written + int(removed)
        if within and self.rows is not None and written < self.rows:
            raise EtlError(
                f"How many rows pipeline {self.pipeline!r} has written since then cannot be told any more",
                found=f"{written} of {self.rows} rows; a cleanup has removed the micro-batches up to {through}",
                expected="a time, or a run, of which the ledger still has every micro-batch",
                cure="wait since a later time, or without since and run_id for rows at all; or keep more (days, keep)",
            )
        return written

    def _judges(self, run: RunLife) -> bool:
        # By the newest run's source; a run that is waited for may have another.
        if self.offsets is None or self.run_id is not None:
            return False
        return self.since is None or (run.registered_at is not None and run.registered_at >= self.since)

    def _in_vain(self, said: list[str]) -> EtlError:
        return EtlError(
            f"What is waited for is not reached, and run {self.run_id} of pipeline {self.pipeline!r} has ended",
            found=", ".join(said),
            expected="a run that comes so far before it ends",
            cure="correct what is waited for, or leave run_id out: then the next run may reach it",
        )

    def _run(self, view: LedgerView) -> RunLife:
        if self.run_id is None:
            return newest_run_life(view.conn, view.schema, self.pipeline)
        found = run_life(view.conn, view.schema, self.run_id)
        if found.pipeline_id != self.pipeline:
            raise ConfigError(
                f"Run {self.run_id!r} is not one of pipeline {self.pipeline!r}",
                found=f"a run of {found.pipeline_id!r}",
                cure="correct run_id or pipeline",
            )
        return found

    def _run_seen(self, run: RunLife) -> tuple[bool, list[str], dict[str, Any]]:
        value = {"run_id": run.run_id, "run_state": run.phase.value}
        if run.registered_at is None:
            return not self.run_finished, ["no run was ever registered"], value
        words = f"run {run.run_id} of {run.registered_at.isoformat()} is {_phase(run)}"
        if not self.run_finished:
            return True, [words], value
        if self.since is not None and run.registered_at < self.since:
            return False, [f"no run since {self.since.isoformat()}; the newest {words}"], value
        if self.run_id is not None and run.phase in _ENDED_OTHERWISE:
            raise EtlError(
                f"Run {run.run_id} of pipeline {self.pipeline!r} will not finish",
                found=f"it is {_phase(run)}",
                expected="a run that finishes",
                cure="look at the run; a newer one is found without run_id",
            )
        return run.phase is RunPhase.FINISHED, [words], value

    def _batch_seen(
        self, batch: int, query: str, end: Any, rows: int, duration_ms: int
    ) -> list[tuple[bool, str, dict[str, Any]]]:
        wanted = "" if self.batch_id is None else f" of {self.batch_id}"
        reached = self.batch_id is None or batch >= self.batch_id
        seen = [(reached, f"micro-batch {batch}{wanted} is committed", {"batch_id": batch, "query_id": query})]
        if self.offsets is not None:
            there = reaches(end, self.offsets)
            words = f"offsets {'reached' if there else 'not reached yet'}: {end}"
            seen.append((there, words, {"end_offsets": end}))
        if self.rows_per_second is not None:
            rate = rows * 1000 / max(duration_ms, 1)
            words = f"{rate:.1f} rows/s, at least {self.rows_per_second:g} wanted"
            seen.append((rate >= self.rows_per_second, words, {"rows_per_second": rate}))
        return seen

    def _none_seen(self) -> list[tuple[bool, str, dict[str, Any]]]:
        needed = (self.batch_id, self.offsets, self.rows_per_second)
        return [(all(goal is None for goal in needed), "no micro-batch is committed", {"batch_id": None})]


def _phase(run: RunLife) -> str:
    if run.phase is RunPhase.FAILED and run.error:
        return f"failed ({run.error.get('what')})"
    if run.phase is RunPhase.SILENT:
        return f"silent for {in_words(run.silent_seconds or 0)}: {run.advice}"
    return run.phase.value
