"""Retry, circuit breaker and dead letters, in both spellings of the references."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from spark_jobs.contracts.config.circuit_breaker import CircuitBreaker
from spark_jobs.contracts.config.retry import Retry
from spark_jobs.contracts.config.section import Flag, Section, StringMap, Text


class DeadLetterQueue(Section):
    """Where rows go that cannot be read or written."""

    also_spelled: ClassVar[Mapping[str, str]] = {"type": "dlqType"}

    enabled: Flag = Field(True, description="Whether there is one.")
    dlq_type: Text | None = Field(None, description="`postgresql`, `kafka` or `s3`; also spelled `type`.")
    bootstrap_servers: Text | None = Field(None, description="Kafka: the brokers.")
    topic: Text | None = Field(None, description="Kafka: the topic.")
    bucket_path: Text | None = Field(None, description="Object storage: the directory.")
    partition_by: Text | None = Field(None, description="Object storage: `date`, `hour` or `pipeline`.")
    config: StringMap = Field(default_factory=dict, description="The backend's own options.")


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
        None, alias="dlqConfig", description="Another home for dead letters."
    )
    fail_fast: Flag = Field(True, description="End the run at the first failure. `false` is not supported yet.")
