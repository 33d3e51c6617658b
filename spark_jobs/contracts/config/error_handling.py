"""Retry, circuit breaker and dead letters, in both spellings of the references."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from spark_jobs.contracts.config.circuit_breaker import CircuitBreaker
from spark_jobs.contracts.config.dead_letters import DeadLetterQueue
from spark_jobs.contracts.config.retry import Retry
from spark_jobs.contracts.config.section import Flag, Section


class ErrorHandling(Section):
    """What happens when something fails; also spelled ``errorHandling``."""

    also_spelled: ClassVar[Mapping[str, str]] = {
        "retry": "retryConfig",
        "circuitBreaker": "circuitBreakerConfig",
        "deadLetterQueue": "dlqConfig",
    }

    retry: Retry | None = Field(
        None, alias="retryConfig", description="Attempts after a passing fault; without it a run makes one."
    )
    circuit_breaker: CircuitBreaker | None = Field(
        None,
        alias="circuitBreakerConfig",
        description="A pause for a target that keeps failing; without it there is none.",
    )
    dead_letter_queue: DeadLetterQueue | None = Field(
        None, alias="dlqConfig", description="A copy of the dead letters for other readers."
    )
    fail_fast: Flag = Field(
        False,
        description="End the run at the first dead letter, with nothing of its micro-batch written; else dead letters "
        "are kept and the other rows land.",
    )
