"""The circuit breaker of one system outside, over a state that is kept anywhere: PostgreSQL, a process, Airflow.

The states and their changes are pybreaker's. What is here: operations that last as long as a run does, the limit of
probes, and the error that says until when.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

import pybreaker

from spark_jobs.contracts.config.circuit_breaker import CircuitBreaker
from spark_jobs.contracts.config.dead_letters import DeadLetterQueue
from spark_jobs.contracts.config.enumerations import DeadLetterBackend
from spark_jobs.contracts.config.extract import Extract
from spark_jobs.contracts.credentials import DatabaseConnection
from spark_jobs.contracts.errors import BreakerOpenError, EtlError

_POSTGRES_PORT: Final = 5432
_BROKERS: Final = "kafka.bootstrap.servers"


def postgres_system(database: DatabaseConnection) -> str:
    """Return the name under which the breaker of a database is kept: where it is, neither user nor password."""
    host = database.host or "localhost"
    shown = f"[{host}]" if ":" in host else host
    return f"postgresql://{shown}:{database.port or _POSTGRES_PORT}/{database.database or ''}"


def kafka_system(bootstrap_servers: str) -> str:
    """Return the name under which the breaker of a Kafka cluster is kept, the same in whatever order they stand."""
    return f"kafka://{','.join(sorted(server.strip() for server in bootstrap_servers.split(',')))}"


def copy_system(queue: DeadLetterQueue, secrets: Mapping[str, str]) -> str | None:
    """Return the name under which the breaker of the dead letters' copy is kept; None where it has none.

    A folder without a host of its own, such as a local one, is no system outside.

    :param secrets: options of the copy's connection, which may have the brokers.
    """
    if queue.backend is DeadLetterBackend.KAFKA:
        return _brokers(queue.brokers, secrets)
    where = urlsplit(queue.folder or "") if queue.backend is DeadLetterBackend.FILES else None
    return f"{where.scheme}://{where.netloc}" if where and where.scheme and where.netloc else None


def redrive_system(extract: Extract, secrets: Mapping[str, str]) -> str | None:
    """Return the name under which the breaker of the brokers is kept that a redrive sends to; None without brokers.

    :param secrets: options of the source's connection, which may have them.
    """
    return _brokers(extract.option(_BROKERS), secrets)


def _brokers(named: str | None, secrets: Mapping[str, str]) -> str | None:
    brokers = named or secrets.get(_BROKERS)
    return kafka_system(brokers) if brokers else None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nobody may ask the system now.

    :param until: when somebody may; knows its zone. :param failure: the last one, in words.
    :param probing: whether as many runs as may are trying it.
    """

    until: datetime
    failure: str = ""
    probing: bool = False


class BreakerStorage(pybreaker.CircuitBreakerStorage):
    """Where a breaker's state is kept. Its setter of ``state`` makes a change only where it still is due."""

    failure: EtlError | None = None
    """What is being counted: kept as the last failure, and as the reason of a change of state."""

    @abstractmethod
    def take_probe(self, most: int) -> bool:
        """Take one of ``most`` places to try a half-open system; True for who has one already."""

    @abstractmethod
    def refusal(self) -> Refusal:
        """Return why nobody may ask now."""

    @abstractmethod
    def release(self) -> None:
        """Forget what was read, and let go of what is open; called after each step of an operation."""

    @property
    def last_failure(self) -> str:
        """The failure that is being counted, in words."""
        return self.failure.what if self.failure else ""


class Breaker:
    """Lets operations on a system through, or refuses them.

    Who is let through by :meth:`enter` says later how it went, with :meth:`succeeded` or :meth:`failed`.

    :param told: called with the states before and after each change.
    """

    def __init__(
        self, settings: CircuitBreaker, storage: BreakerStorage, told: Callable[[str, str], None] | None = None
    ) -> None:
        self.settings = settings
        self.storage = storage
        self._listener = _Listener(storage, settings.half_open_max_attempts, told)

    @property
    def system(self) -> str:
        """Which system it guards."""
        return self.storage.name

    def enter(self) -> None:
        """Return if the system may be asked.

        :raises BreakerOpenError: it is left alone.
        """
        with self._refused(), suppress(_LetThroughError):
            self._breaker().call(_ask)

    def succeeded(self) -> None:
        """Say that the system has done what was asked of it."""
        # Another run may have opened it meanwhile: then that is what holds.
        try:
            with suppress(pybreaker.CircuitBreakerError):
                self._breaker().call(_done)
        finally:
            self.storage.release()

    def failed(self, error: EtlError) -> None:
        """Count a failure.

        :raises BreakerOpenError: the system is left alone from now on.
        """
        self.storage.failure = error
        with self._refused(error):
            try:
                self._breaker().call(_fail, error)
            except EtlError as same:
                if same is not error:
                    raise

    def trip(self, error: EtlError) -> NoReturn:
        """Open it, whatever was counted.

        :raises BreakerOpenError: always.
        """
        self.storage.failure = error
        with self._refused(error):
            self._breaker().open()
            raise pybreaker.CircuitBreakerError
        raise AssertionError("unreachable")

    def _breaker(self) -> pybreaker.CircuitBreaker:
        # A new one for each step: it remembers a state, and would reset counters when it notices another one.
        return pybreaker.CircuitBreaker(
            fail_max=self.settings.failure_threshold,
            reset_timeout=self.settings.reset_timeout_seconds,
            success_threshold=self.settings.half_open_max_attempts,
            state_storage=self.storage,
            listeners=[self._listener],
            name=self.system,
        )

    @contextmanager
    def _refused(self, cause: EtlError | None = None) -> Iterator[None]:
        try:
            yield
        except pybreaker.CircuitBreakerError:
            found = self.storage.refusal()
            failure = found.failure or (cause.what if cause else "")
            raise BreakerOpenError(self.system, found.until, failure=failure, probing=found.probing) from cause
        finally:
            self.storage.release()


class MemoryStorage(pybreaker.CircuitMemoryStorage, BreakerStorage):
    """A state that lives as long as the process, for when nothing better answers."""

    def __init__(self, system: str, reset_seconds: float) -> None:
        super().__init__(pybreaker.STATE_CLOSED)
        self._name = system
        self._reset = timedelta(seconds=reset_seconds)

    def take_probe(self, most: int) -> bool:  # noqa: ARG002 - one process has one operation at a time
        """Let it through."""
        return True

    def refusal(self) -> Refusal:
        """Return the time since which it is open, and how long."""
        return Refusal((self.opened_at or datetime.now(UTC)) + self._reset, self.last_failure)

    def release(self) -> None:
        """Keep everything: there is nothing else."""


class _Listener(pybreaker.CircuitBreakerListener):
    def __init__(self, storage: BreakerStorage, probes: int, told: Callable[[str, str], None] | None) -> None:
        self._storage = storage
        self._probes = probes
        self._told = told

    def before_call(self, cb: pybreaker.CircuitBreaker, func: Callable[..., Any], *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if func is not _ask:
            return
        # pybreaker lets everybody through a half-open breaker.
        if cb.current_state == pybreaker.STATE_HALF_OPEN and not self._storage.take_probe(self._probes):
            raise pybreaker.CircuitBreakerError("all probes are under way")
        # What is raised here is neither a success nor a failure.
        raise _LetThroughError

    def state_change(
        self,
        cb: pybreaker.CircuitBreaker,  # noqa: ARG002
        old_state: pybreaker.CircuitBreakerState | None,
        new_state: pybreaker.CircuitBreakerState,
    ) -> None:
        if self._told is not None:
            self._told(old_state.name if old_state else pybreaker.STATE_CLOSED, new_state.name)


class _LetThroughError(Exception):
    """The system may be asked."""


def _ask() -> NoReturn:
    raise AssertionError("the listener ends the call before")


def _done() -> None:
    return


def _fail(error: EtlError) -> NoReturn:
    raise error
