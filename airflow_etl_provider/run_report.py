"""What a task tells Airflow's metrics when its run has ended, well or not."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Literal

from airflow.sdk.exceptions import TaskDeferred

from airflow_etl_provider import metrics
from airflow_etl_provider.breaker import TaskBreaker
from airflow_etl_provider.hooks.driver_lines import DriverLines
from airflow_etl_provider.hooks.ledger import LedgerHook
from spark_jobs.contracts.errors import BreakerOpenError, EtlError, Operation
from spark_jobs.contracts.exit_codes import ExitCode
from spark_jobs.contracts.run_figures import RunFigures, Waited

log = logging.getLogger(__name__)

Work = Literal["stream", "replay", "reprocess"]

# What a run's state says when its driver left no exit code.
_WITHOUT_CODE: Final = {"registered": "never_started", "running": "lost", "": "unexpected"}


@dataclass
class RunReport:
    """Filled while the task goes on; whatever is missing when it ends is not told."""

    work: Work
    pipeline_id: str = "unknown"
    breaker: TaskBreaker | None = None
    ledger: LedgerHook | None = None
    run_id: str | None = None
    heard: DriverLines = field(default_factory=DriverLines)
    """What a driver below this process has said: all there is where the ledger's database stays away."""

    @contextmanager
    def told(self) -> Iterator[None]:
        """Send the metrics when the block ends, however it does; a deferred task has not ended."""
        try:
            yield
        except TaskDeferred:
            raise
        except BaseException as error:
            self._send(error)
            raise
        self._send(None)

    def _send(self, error: BaseException | None) -> None:
        try:
            self._send_all(error)
        except Exception as failed:  # noqa: BLE001 - no task fails for a metric
            log.warning("Metrics of run %s were not sent: %s: %s", self.run_id, type(failed).__name__, failed)

    def _send_all(self, error: BaseException | None) -> None:
        figures = self._figures(error)
        metrics.count(metrics.RUN_ENDED, 1, exit=_exit(error, figures), **self._tags)
        self._send_attempts(figures)
        for stage, letters in (figures.dead_letters if figures else {}).items():
            metrics.count(metrics.RUN_DEAD_LETTERS, letters, stage=stage, **self._tags)
        self._send_breakers(figures or RunFigures(), error)

    @property
    def _tags(self) -> dict[str, str]:
        return {"pipeline_id": self.pipeline_id, "work": self.work}

    def _figures(self, error: BaseException | None) -> RunFigures | None:
        """Ask the ledger, unless it is what did not answer, or nobody has time any more."""
        if self.ledger is None or self.run_id is None or _is_away(error):
            return None
        if error is not None and not isinstance(error, Exception):
            return None  # killed
        try:
            return self.ledger.figures(self.run_id)
        except Exception as failed:  # noqa: BLE001 - no task fails for a metric
            log.warning("Metrics of run %s lack what the ledger knows: %s", self.run_id, failed)
            return None

    def _send_attempts(self, figures: RunFigures | None) -> None:
        retries: Mapping[Operation, Waited] = figures.retries if figures else self.heard.retries
        if figures.state not in ("", "registered") if figures else self.heard.any:
            metrics.count(metrics.RUN_ATTEMPTS, 1 + sum(one.times for one in retries.values()), **self._tags)
        for kind, waited in retries.items():
            metrics.count(metrics.RUN_RETRIES, waited.times, kind=kind, **self._tags)
            metrics.timing(metrics.RUN_RETRY_WAIT, waited.seconds, kind=kind, **self._tags)

    def _send_breakers(self, figures: RunFigures, error: BaseException | None) -> None:
        changes = dict(figures.breaker_changes)
        states: dict[str, str] = {}
        if self.breaker is not None and self.breaker.system:
            states[self.breaker.system] = "closed"
            for state in self.breaker.changes:
                key = (self.breaker.system, state)
                changes[key] = changes.get(key, 0) + 1
        states |= figures.breakers
        if isinstance(error, BreakerOpenError):
            states[error.system] = "open"
        for (system, after), times in changes.items():
            metrics.count(metrics.BREAKER_CHANGES, times, pipeline_id=self.pipeline_id, system=system, to=after)
        for system, state in states.items():
            metrics.gauge(metrics.BREAKER_OPEN, int(state != "closed"), system=system)


def _exit(error: BaseException | None, figures: RunFigures | None) -> str:
    if error is None:
        return ExitCode.FINISHED.name.lower()
    if not isinstance(error, Exception):
        return "killed"
    if isinstance(error, EtlError):
        return error.exit_code.name.lower()
    if figures is None:
        return ExitCode.UNEXPECTED.name.lower()
    if figures.exit_code is not None:
        return _name(figures.exit_code)
    return _WITHOUT_CODE.get(figures.state, figures.state)


def _name(code: int) -> str:
    try:
        return ExitCode(code).name.lower()
    except ValueError:
        return str(code)  # of a driver of a newer version


def _is_away(error: BaseException | None) -> bool:
    """Tell whether the ledger's database is what failed: to ask it again would take its whole time limit."""
    while error is not None:
        if isinstance(error, EtlError) and error.blames_system:
            return True
        error = error.__cause__
    return False
