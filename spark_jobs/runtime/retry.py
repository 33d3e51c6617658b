"""Does work again after a passing fault, as the pipeline's ``retryConfig`` says; stamina counts, and reckons waits."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from time import monotonic
from typing import Final, TypeVar

import stamina
from stamina.instrumentation import get_on_retry_hooks, set_on_retry_hooks

from spark_jobs.contracts.config.retry import Retry, RetryPolicy
from spark_jobs.contracts.errors import EtlError, Operation
from spark_jobs.contracts.redaction import masked
from spark_jobs.contracts.tracker.connect import Connection
from spark_jobs.contracts.tracker.retries import Retried, record_retries
from spark_jobs.logs.events import log_event
from spark_jobs.runtime.breaker import RunBreaker
from spark_jobs.runtime.heartbeat import Heartbeat
from spark_jobs.runtime.stopping import Stop, StoppedInBatchError
from spark_jobs.sinks.ledger import Ledger

log = logging.getLogger("etl.retry")

T = TypeVar("T")

_NONE: Final = RetryPolicy()
_BEAT_SECONDS: Final = 1.0


class Retries:
    """One run's attempts: what may be tried again, when, and what is told of it.

    :param settings: None for a run that makes one attempt.
    :param breakers: of the systems outside, by what is done with them; empty without circuit breakers.
    """

    def __init__(self, settings: Retry | None, stop: Stop, breakers: dict[Operation, RunBreaker] | None = None) -> None:
        self._settings = settings
        self._stop = stop
        self._breakers = breakers or {}
        self._streaks: dict[Operation, _Streak] = {}
        self._unrecorded: list[Retried] = []
        self._unasked: set[Operation] = set()
        self.ledger: Ledger | None = None
        """Of the newest attempt, for the sign of life while waiting; None before there was an epoch."""

    def guard(self, operation: Operation, breaker: RunBreaker) -> None:
        """Ask a further breaker from now on."""
        self._breakers[operation] = breaker

    def answered(self, operation: Operation) -> None:
        """Say that the system has answered in this attempt."""
        self._unasked.discard(operation)

    def call(self, work: Callable[[], T], *, guarded: bool = True) -> T:
        """Return what ``work`` returns, doing it again after each passing fault as long as there are attempts.

        :param guarded: whether it is what the circuit breakers are for: they are asked before each attempt, and told of
            a success. A target that takes no rows may well take the word that a run has failed.
        :raises EtlError: what ended the last attempt. :raises BreakerOpenError: a system is left alone; nothing is
            tried any more. :raises StopRequestedError: asked to stop while waiting. :raises FencedError: a newer run
            has taken over.
        """
        while True:
            if guarded:
                self._enter()
            try:
                done = work()
            except EtlError as error:
                self._after(error)
            else:
                self._streaks.clear()
                if guarded:
                    self.succeeded()
                return done

    def succeeded(self) -> None:
        """Say that something is done for good, such as a micro-batch: attempts count anew. Raises nothing."""
        self._streaks.clear()
        for breaker in self._breakers.values():
            breaker.succeeded()

    def record(self, conn: Connection, schema: str, run_id: str) -> None:
        """Write to the ledger what was not written yet."""
        record_retries(conn, schema, run_id, self._unrecorded)
        self._unrecorded.clear()

    def _enter(self) -> None:
        # The ledger, in the database that is written to, is asked before anything else.
        self._unasked = set(self._breakers) - {"write"}
        for breaker in self._breakers.values():
            breaker.enter()

    def _after(self, error: EtlError) -> None:
        """Wait for the next attempt, or raise what ends the run."""
        kind = error.operation
        for operation, breaker in self._breakers.items():
            if error.blames_system and operation == kind:
                breaker.failed(error)
            elif operation not in self._unasked:
                breaker.succeeded()  # it has answered, whatever else went wrong
        if not (error.retryable and error.tried_again_in_run):
            raise error
        # Not kept while it fails: after its last attempt there may be other work, which has attempts of its own.
        streak = self._streaks.pop(kind, None) or _Streak(self._settings.policy(kind) if self._settings else _NONE)
        number = streak.attempt
        wait = streak.failed(error)
        self._streaks[kind] = streak
        log_event(
            log,
            logging.WARNING,
            "retry",
            kind=kind,
            attempt=number,
            of=streak.policy.attempts,
            wait_seconds=round(wait, 3),
            error=str(error),
        )
        log.debug("What failed", exc_info=error)
        self._unrecorded.append(Retried(kind, number, wait, masked(error.to_json())))
        self._wait(wait, error)

    def _wait(self, seconds: float, error: EtlError) -> None:
        until = monotonic() + seconds
        alive = Heartbeat(self.ledger, None) if self.ledger is not None else nullcontext()
        with alive as heartbeat:
            while (left := until - monotonic()) > 0 and not self._stop.asked:
                if heartbeat is not None:
                    heartbeat.beat()  # a newer run ends the wait
                self._stop.wait(min(left, _BEAT_SECONDS))
        if self._stop.asked:
            raise StoppedInBatchError(
                "The run was asked to stop",
                found=f"it was waiting to do again what had failed: {error.what}",
                cure="The next run does it again",
            ) from error


class _Streak:
    """Failures of one kind in a row: stamina counts them, and says how long to wait after each."""

    def __init__(self, policy: RetryPolicy) -> None:
        self.policy = policy
        self._attempts = iter(
            stamina.retry_context(
                on=_at_once,
                attempts=policy.attempts,
                timeout=None,
                wait_initial=policy.initial,
                wait_max=policy.longest,
                wait_jitter=0,
                wait_exp_base=policy.multiplier,
            )
        )
        self._attempt = next(self._attempts)

    @property
    def attempt(self) -> int:
        """Number of the attempt under way, from 1."""
        return self._attempt.num

    def failed(self, error: EtlError) -> float:
        """Return the seconds to wait before the next attempt.

        :raises EtlError: the error itself, after the last attempt.
        """
        wait = self._attempt.next_wait
        with self._attempt:
            _raise(error)
        with _quiet():
            self._attempt = next(self._attempts)
        return wait * random.uniform(0.5, 1) if self.policy.jitter else wait  # noqa: S311 - not for secrets


def _raise(error: EtlError) -> None:
    raise error


def _at_once(_error: Exception) -> float:
    # stamina would sleep, deaf to requests to stop: the wait is ours.
    return 0.0


@contextmanager
def _quiet() -> Iterator[None]:
    # Its own hooks tell of retries on standard output, where the run's result goes.
    before = get_on_retry_hooks()
    set_on_retry_hooks(())
    try:
        yield
    finally:
        set_on_retry_hooks(before)
