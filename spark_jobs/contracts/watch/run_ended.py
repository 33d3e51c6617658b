"""Whether there is anything left to wait for in a run: it has ended, or its driver is gone, or none ever came up."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, ClassVar

from pydantic import Field

from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.tracker.run_state import RunLife, RunPhase, run_life
from spark_jobs.contracts.watch.condition import Age, Condition, LedgerView, Seen, in_words


class RunEnded(Condition):
    """Holds when the run has ended, however it did, and when nobody is there who could end it.

    ``value["driver"]`` says which: ``ended``, ``silent`` (it came up, and its heartbeat has stopped) or ``not_started``
    (none has come up for longer than ``start_within``).

    :param run_id: the run. :param start_within: how long after its registration its driver may take to come up.
    """

    title: ClassVar[str] = "The end of a run"

    run_id: str = Field(min_length=1)
    start_within: Age = Field(timedelta(minutes=10), gt=timedelta())

    def _look(self, view: LedgerView) -> Seen:
        run = run_life(view.conn, view.schema, self.run_id)
        if run.pipeline_id != self.pipeline:
            raise ConfigError(
                f"Run {self.run_id!r} is not one of pipeline {self.pipeline!r}",
                found=f"a run of {run.pipeline_id!r}",
                cure="correct run_id or pipeline",
            )
        driver, words = self._driver(run)
        value: dict[str, Any] = {"run_id": run.run_id, "run_state": run.phase.value, "driver": driver}
        message = f"{self.pipeline}: run {run.run_id} {words}"
        return Seen(done=driver not in ("awaited", "running"), message=message, value=value)

    def _driver(self, run: RunLife) -> tuple[str, str]:
        quiet = in_words(run.silent_seconds or 0)
        if run.phase is RunPhase.SILENT:
            return "silent", f"is {run.phase}: no sign of life for {quiet}; {run.advice}"
        if run.phase is RunPhase.REGISTERED:
            if (run.silent_seconds or 0) <= self.start_within.total_seconds():
                return "awaited", "waits for its driver"
            limit = in_words(self.start_within)
            return "not_started", f"has had no driver for {quiet}, longer than {limit}; {run.advice}"
        if run.phase is RunPhase.RUNNING:
            return "running", "is running"
        return "ended", f"has ended: {run.phase}"
