"""How old what a pipeline wrote is, by the clock of the ledger's server alone."""

from __future__ import annotations

from datetime import timedelta
from typing import ClassVar, Final

from pydantic import Field

from spark_jobs.contracts.errors import ClocksDisagreeError
from spark_jobs.contracts.tracker.run_state import newest_run_life
from spark_jobs.contracts.watch.condition import Age, Condition, LedgerView, Seen, in_words

AHEAD_SECONDS: Final = 60
"""A commit's time is taken when its row is written: a clock that is set by a few seconds is nobody's fault."""

_LAST: Final = """
SELECT b.batch_id, b.processed_at::text AS at, extract(epoch FROM clock_timestamp() - b.processed_at)::float
FROM {schema}.batch_tracker b
WHERE b.pipeline_id = %(pipeline)s
  AND (b.processed_at > clock_timestamp() + make_interval(secs => %(ahead)s)) = %(of_the_future)s
ORDER BY b.processed_at DESC, b.batch_id DESC LIMIT 1"""
_IDLE: Final = """
SELECT run_id, ended_at::text, extract(epoch FROM clock_timestamp() - ended_at)::float FROM {schema}.pipeline_run
WHERE pipeline_id = %(pipeline)s AND state = 'finished'
  AND ended_at <= clock_timestamp() + make_interval(secs => %(ahead)s) ORDER BY registered_at DESC LIMIT 1"""


class Freshness(Condition):
    """Holds when the last commit is young enough.

    :param younger_than: how old it may be. :param idle_runs_count: whether a finished run that found nothing new is as
        good as a commit: then a source that has nothing to say does not make its pipeline stale.
    """

    title: ClassVar[str] = "Freshness"

    younger_than: Age = Field(gt=timedelta())
    idle_runs_count: bool = False

    def _look(self, view: LedgerView) -> Seen:
        about = f"Looking for the last commit of {self.pipeline!r}"
        values = {"pipeline": self.pipeline, "ahead": AHEAD_SECONDS, "of_the_future": False}
        commits = [("micro-batch", *row) for row in view.rows(_LAST, values, about)]
        runs = [("run", *row) for row in view.rows(_IDLE, values, about)] if self.idle_runs_count else []
        found = min((*commits, *runs), key=lambda row: row[3], default=None)
        fresh = found is not None and found[3] <= self.younger_than.total_seconds()
        if not fresh and (wrong := view.rows(_LAST, {**values, "of_the_future": True}, about)):
            raise self._ahead(*wrong[0])
        if found is None:
            run = newest_run_life(view.conn, view.schema, self.pipeline)
            text = f"{self.pipeline}: nothing was ever committed; its newest run is {run.phase.replace('_', ' ')}"
            return Seen(done=False, message=text)
        what, which, moment, age = found
        text = f"{self.pipeline}: {what} {which} is {in_words(max(age, 0))} old ({moment})"
        return Seen(done=fresh, message=text, value={"what": what, "id": which, "at": moment, "age_seconds": age})

    def _ahead(self, batch: int, moment: str, age: float) -> ClocksDisagreeError:
        return ClocksDisagreeError(
            f"How old the last commit of {self.pipeline!r} is cannot be told",
            found=f"micro-batch {batch} at {moment}, {in_words(-age)} ahead of the server's clock",
            expected="commits in the past",
            cure="the clock of the ledger's server was, or is, wrong: set it; the next commit is fresh again",
        )
