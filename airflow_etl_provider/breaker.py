"""The circuit breaker before a task: a system that keeps failing is not asked, and no driver is started for it.

Its state is the ledger's. While the ledger is what does not answer, it is kept in an Airflow Variable, which all
workers share and which outlives the task.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, Literal

import pybreaker
from airflow.sdk import Variable
from airflow.sdk.exceptions import AirflowRescheduleException, AirflowSkipException

from airflow_etl_provider.hooks.ledger import LedgerHook, RunRow
from spark_jobs.contracts.breaker import Breaker, BreakerStorage, Refusal, postgres_system
from spark_jobs.contracts.config import PipelineConfig
from spark_jobs.contracts.config.circuit_breaker import CircuitBreaker
from spark_jobs.contracts.errors import BreakerOpenError, ConfigError, EtlError
from spark_jobs.contracts.exit_codes import ExitCode

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)

WhenOpen = Literal["wait", "skip"]
XCOM_KEY: Final = "breaker"
_EXIT_CODE = re.compile(r"Error code is: (\d+)")
_SOONEST: Final = timedelta(seconds=1)


class TaskBreaker:
    """One task's view of the breaker of its pipeline's target; lets everything through where there is none."""

    def __init__(self, config: PipelineConfig, ledger: LedgerHook, run_id: str) -> None:
        handling = config.error_handling
        settings = handling.circuit_breaker if handling else None
        self.system = ""
        """Which system it guards; empty for a pipeline without a circuit breaker."""
        self.changes: list[str] = []
        """The states into which it came while the ledger did not answer."""
        self._own: Breaker | None = None
        self._shared: Breaker | None = None
        if settings is None or not settings.enabled:
            return
        self.system = system = postgres_system(ledger.database)
        storage = ledger.breaker_storage(system, settings, run_id=run_id, pipeline_id=config.pipeline_id)
        self._own = Breaker(settings, VariableStorage(system, settings), self._changed)
        self._shared = Breaker(settings, storage, self._tell)

    def ask(self) -> None:
        """Return if a run may be registered and submitted.

        :raises BreakerOpenError: the system is left alone.
        """
        if self._own is None or self._shared is None:
            return
        self._own.enter()
        try:
            self._shared.enter()
        except BreakerOpenError:
            self._own.succeeded()  # the ledger has answered
            raise

    @contextmanager
    def watching(self, submit_error: str = "") -> Iterator[None]:
        """Count a ledger that does not answer as a failure, one that answers as a success.

        :param submit_error: what spark-submit said; a driver that found its breaker open is believed.
        :raises BreakerOpenError: the system is left alone from now on.
        """
        try:
            yield
        except BreakerOpenError:
            raise
        except EtlError as error:
            if self._own is not None and error.blames_system:
                if _left_alone(submit_error):
                    self._own.trip(error)
                self._own.failed(error)
            raise
        if self._own is not None:
            self._own.succeeded()

    def require_closed(self, row: RunRow | None, submit_error: str) -> None:
        """Return unless the driver ended because a breaker was open.

        :raises BreakerOpenError: it did.
        """
        if self._own is None or row is None or row.state == "finished":
            return
        error = row.error or {}
        if row.exit_code == ExitCode.BREAKER_OPEN and error.get("until"):
            until = datetime.fromisoformat(error["until"])
            raise BreakerOpenError(error.get("system", self._own.system), until, failure=error.get("found", ""))
        if not error and _left_alone(submit_error):
            self._own.trip(EtlError(f"The driver of run {row.run_id} found its breaker open"))

    def _changed(self, before: str, after: str) -> None:
        self.changes.append(after)
        self._tell(before, after)

    def _tell(self, before: str, after: str) -> None:
        log.warning("breaker of %s: %s -> %s", self.system, before, after)


@contextmanager
def breaker_answers(when_open: WhenOpen, context: Context) -> Iterator[None]:
    """Make the task wait, or end as skipped, when a breaker is open; until when is in its log and its XCom.

    :raises AirflowRescheduleException: ``wait``. :raises AirflowSkipException: ``skip``.
    """
    if when_open not in ("wait", "skip"):
        raise ConfigError("`breaker_open` is wrong", found=repr(when_open), expected="'wait' or 'skip'")
    try:
        yield
    except BreakerOpenError as error:
        until = error.until.isoformat(timespec="milliseconds")
        log.warning("breaker open until %s: %s", until, error)
        value = {"system": error.system, "until": until, "failure": error.failure, "answer": when_open}
        context["ti"].xcom_push(key=XCOM_KEY, value=value)
        if when_open == "skip":
            raise AirflowSkipException(f"breaker open until {until} ({error.system})") from error
        moment = max(error.until, datetime.now(UTC) + _SOONEST)
        raise AirflowRescheduleException(moment) from error  # type: ignore[no-untyped-call]


class VariableStorage(BreakerStorage):
    """A breaker's state in an Airflow Variable: ``etl_circuit_breaker_`` and a digest of the system's name.

    By the workers' clocks. Two tasks that change it at once may count one failure less, or both try the system, with
    one connection each. A closed breaker without failures has no Variable.
    """

    def __init__(self, system: str, settings: CircuitBreaker) -> None:
        super().__init__(system)
        self.key = f"etl_circuit_breaker_{sha256(system.encode()).hexdigest()[:16]}"
        self._reset = timedelta(seconds=settings.reset_timeout_seconds)
        self._kept: dict[str, Any] | None = None
        self._values: dict[str, Any] | None = None

    @property
    def state(self) -> str:
        """``closed``, ``open`` or ``half-open``."""
        return str(self._read().get("state", pybreaker.STATE_CLOSED))

    @state.setter
    def state(self, state: str) -> None:
        values: dict[str, Any] = {"state": state, "successes": 0}
        if state == pybreaker.STATE_OPEN:
            values |= {"opened_at": datetime.now(UTC).isoformat(), "last_failure": self.last_failure}
        if state == pybreaker.STATE_CLOSED:
            values |= {"failures": 0}
        self._read().update(values)

    @property
    def counter(self) -> int:
        """Failures in a row."""
        return int(self._read().get("failures", 0))

    @property
    def success_counter(self) -> int:
        """Successes since it is half-open."""
        return int(self._read().get("successes", 0))

    @property
    def opened_at(self) -> datetime | None:
        """When it was opened."""
        moment = self._read().get("opened_at")
        return datetime.fromisoformat(moment) if moment else None

    @opened_at.setter
    def opened_at(self, datetime: datetime) -> None:
        """Nothing: the change of state says when."""

    def increment_counter(self) -> None:
        """Count a failure."""
        self._read().update(failures=self.counter + 1, last_failure=self.last_failure)

    def reset_counter(self) -> None:
        """Forget the failures before a success."""
        self._read()["failures"] = 0

    def increment_success_counter(self) -> None:
        """Count a probe that succeeded."""
        self._read()["successes"] = self.success_counter + 1

    def reset_success_counter(self) -> None:
        """Nothing: each change of state does it."""

    def take_probe(self, most: int) -> bool:  # noqa: ARG002 - a Variable cannot be changed atomically
        """Let it through: the probe is one connection."""
        return True

    def refusal(self) -> Refusal:
        """Return the time since which it is open, and how long."""
        return Refusal((self.opened_at or datetime.now(UTC)) + self._reset, str(self._read().get("last_failure", "")))

    def release(self) -> None:
        """Write what has changed."""
        values, self._values = self._values, None
        if values is None or values == self._kept:
            return
        if values.get("state", pybreaker.STATE_CLOSED) == pybreaker.STATE_CLOSED and not values.get("failures"):
            if self._kept:
                Variable.delete(self.key)
            return
        described = f"Circuit breaker of {self.name}, kept here while its database does not answer"
        Variable.set(self.key, {"system": self.name, **values}, description=described, serialize_json=True)

    def _read(self) -> dict[str, Any]:
        if self._values is None:
            self._kept = Variable.get(self.key, default=None, deserialize_json=True) or {}
            self._values = dict(self._kept)
        return self._values


def _left_alone(submit_error: str) -> bool:
    code = _EXIT_CODE.search(submit_error)
    return code is not None and int(code[1]) == ExitCode.BREAKER_OPEN
