"""Retry, circuit breaker and dead letters, in both spellings of the references; the first two are not supported yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from spark_jobs.contracts.config.dead_letters import DeadLetterQueue
from spark_jobs.contracts.config.enumerations import RetryStrategy, RetryStrategyText
from spark_jobs.contracts.config.section import Flag, Int, Long, Number, Section


class Retry(Section):
    """Attempts after a passing fault."""

    strategy: RetryStrategyText = Field(RetryStrategy.EXPONENTIAL, description="`exponential`, `fixed` or `none`.")
    max_attempts: Int = Field(1, description="Attempts in all; 1 is no retry.")
    initial_delay_seconds: Number | None = Field(None, description="First wait; or `initialDelayMs`.")
    max_delay_seconds: Number | None = Field(None, description="Longest wait; or `maxDelayMs`.")
    initial_delay_ms: Long | None = Field(None, description="First wait in milliseconds; or `initialDelaySeconds`.")
    max_delay_ms: Long | None = Field(None, description="Longest wait in milliseconds; or `maxDelaySeconds`.")
    backoff_multiplier: Number = Field(2.0, description="How much longer each wait is than the one before.")
    jitter: Flag = Field(True, description="Whether waits vary at random.")

    @property
    def active(self) -> bool:
        """Whether it asks for a second attempt."""
        return self.strategy is not RetryStrategy.NONE and self.max_attempts > 1


class CircuitBreaker(Section):
    """A pause for a target that keeps failing."""

    enabled: Flag = Field(True, description="Whether there is one.")
    failure_threshold: Int = Field(5, description="Failures after which it opens.")
    reset_timeout_seconds: Number = Field(60.0, description="Seconds until it tries again.")
    half_open_max_attempts: Int = Field(1, description="Successes after which it closes.")


class ErrorHandling(Section):
    """What happens when something fails; also spelled ``errorHandling``."""

    also_spelled: ClassVar[Mapping[str, str]] = {
        "retry": "retryConfig",
        "circuitBreaker": "circuitBreakerConfig",
        "deadLetterQueue": "dlqConfig",
    }

    retry: Retry | None = Field(None, alias="retryConfig", description="Attempts after a passing fault.")
    circuit_breaker: CircuitBreaker | None = Field(
        None, alias="circuitBreakerConfig", description="A pause for a target that keeps failing."
    )
    dead_letter_queue: DeadLetterQueue | None = Field(
        None, alias="dlqConfig", description="A copy of the dead letters for other readers."
    )
    fail_fast: Flag = Field(
        False,
        description="End the run at the first dead letter, with nothing of its micro-batch written; else dead letters "
        "are kept and the other rows land.",
    )
