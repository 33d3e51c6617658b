"""How old what a pipeline wrote is, by the clock of the ledger's server alone."""

from __future__ import annotations

from datetime import timedelta
from typing import ClassVar, Final

from pydantic import Field

from spark_jobs.contracts.errors import ClocksDisagreeError
from spark_jobs.contracts.watch.condition import Age, Condition, LedgerView, Seen, in_words

# A commit's time is taken when its row is written: a clock that is set by a few seconds is nobody's fault.
_AHEAD_SECONDS: Final = 60

_LAST: Final = """
SELECT batch_id, processed_at::text, extract(epoch FROM clock_timestamp() - processed_at)::float
FROM {schema}.batch_tracker WHERE pipeline_id = %(pipeline)s ORDER BY processed_at DESC, batch_id DESC LIMIT 1"""
_IDLE: Final = """
SELECT run_id, ended_at::text, extract(epoch FROM clock_timestamp() - ended_at)::float FROM {schema}.pipeline_run
WHERE pipeline_id = %(pipeline)s AND state = 'finished' ORDER BY registered_at DESC LIMIT 1"""
_RUN: Final = """
SELECT state FROM {schema}.pipeline_run WHERE pipeline_id = %(pipeline)s ORDER BY registered_at DESC LIMIT 1"""


class Freshness(Condition):
    """Holds when the last commit is young enough.

    :param younger_than: how old it may be. :param idle_runs_count: whether a finished run that found nothing new is as
        good as a commit: then a source that has nothing to say does not make its pipeline stale.
    """

    title: ClassVar[str] = "Freshness"

    younger_than: Age = Field(gt=timedelta())
    idle_runs_count: bool = False

    def _look(self, view: LedgerView) -> Seen:
        values, about = {"pipeline": self.pipeline}, f"Looking for the last commit of {self.pipeline!r}"
        commits = [("micro-batch", *row) for row in view.rows(_LAST, values, about)]
        runs = [("run", *row) for row in view.rows(_IDLE, values, about)] if self.idle_runs_count else []
        found = min((*commits, *runs), key=lambda row: row[3], default=None)
        if found is None:
            state = view.rows(_RUN, values, about)
            text = f"{self.pipeline}: nothing was ever committed; its newest run is {state[0][0] if state else 'none'}"
            return Seen(done=False, message=text)
        what, which, moment, age = found
        if age < -_AHEAD_SECONDS:
            raise ClocksDisagreeError(
                f"How old the last commit of {self.pipeline!r} is cannot be told",
                found=f"{what} {which} at {moment}, {in_words(-age)} ahead of the server's clock",
                expected="commits in the past",
                cure="the clock of the ledger's server was, or is, wrong: set it, and look again once it has passed "
                "that time, or after the next commit",
            )
        text = f"{self.pipeline}: {what} {which} is {in_words(max(age, 0))} old ({moment})"
        value = {"what": what, "id": which, "at": moment, "age_seconds": age}
        return Seen(done=age <= self.younger_than.total_seconds(), message=text, value=value)
