"""The circuit breaker of a system that a run writes to: shared through the ledger, the process's own without it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from spark_jobs.contracts.breaker import Breaker, MemoryStorage
from spark_jobs.contracts.config.circuit_breaker import CircuitBreaker
from spark_jobs.contracts.credentials import DatabaseConnection
from spark_jobs.contracts.errors import BreakerOpenError, DatabaseUnreachableError, EtlError, TransientError
from spark_jobs.contracts.run_request import RunRequest
from spark_jobs.contracts.tracker.breakers import PostgresStorage
from spark_jobs.contracts.tracker.connect import connect
from spark_jobs.logs.events import log_event

log = logging.getLogger("etl.breaker")

_CONNECT_SECONDS = 5
_AWAY = (DatabaseUnreachableError, TransientError)


class RunBreaker:
    """One system's breaker, as one run sees it.

    Failures are counted in the process and, where it answers, in the ledger: whichever comes to the threshold opens.

    :param system: from :func:`~spark_jobs.contracts.breaker.postgres_system` or ``kafka_system``.
    :param database: of the ledger, whatever the system is.
    """

    def __init__(
        self, system: str, settings: CircuitBreaker, database: DatabaseConnection, request: RunRequest
    ) -> None:
        seconds = settings.reset_timeout_seconds
        self._system = system
        self._own = Breaker(settings, MemoryStorage(system, seconds))
        storage = PostgresStorage(
            partial(connect, database, application_name="etl:control", connect_timeout=_CONNECT_SECONDS),
            request.tracker_schema,
            system,
            run_id=request.run_id,
            pipeline_id=request.pipeline_id,
            reset_seconds=seconds,
        )
        self._shared = Breaker(settings, storage, self._tell)
        self._to_tell = True

    def enter(self) -> None:
        """Return if the system may be asked.

        :raises BreakerOpenError: it is left alone.
        """
        self._own.enter()
        self._try(self._shared.enter)
        self._to_tell = True

    def succeeded(self) -> None:
        """Say that the system does its work; asks the ledger once after each :meth:`enter`. Raises nothing."""
        if not self._to_tell:
            return
        self._to_tell = False
        self._own.succeeded()
        try:
            self._try(self._shared.succeeded)
        except EtlError:
            log_event(log, logging.WARNING, "breaker_not_told", system=self._system, exc_info=True)

    def failed(self, error: EtlError) -> None:
        """Count a failure.

        :raises BreakerOpenError: the system is left alone from now on.
        """
        self._to_tell = True
        try:
            self._own.failed(error)
        except BreakerOpenError as opened:
            # What could be told to the ledger only now and then may not have come to the threshold there.
            self._try(partial(self._shared.trip, error))
            self._tell("closed", "open")
            raise opened from error
        self._try(partial(self._shared.failed, error))

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
        except _AWAY as away:
            log_event(log, logging.INFO, "breaker_in_process", system=self._system, reason=away.found or away.what)

    def _tell(self, before: str, after: str) -> None:
        log_event(log, logging.WARNING, "breaker_changed", system=self._system, was=before, now=after)
