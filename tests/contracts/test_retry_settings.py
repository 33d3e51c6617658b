"""What ``retryConfig`` and ``circuitBreakerConfig`` mean, in both spellings, and which settings contradict."""

from __future__ import annotations

from typing import Any

import pytest
from config_documents import parse, problem, problems, stateless

from spark_jobs.contracts.config.retry import Retry, RetryPolicy
from spark_jobs.contracts.errors import Operation


def retry(**settings: Any) -> Retry:
    config = parse(stateless(errorHandlingConfig={"retryConfig": settings}))
    assert parse(config.to_json()) == config
    assert config.error_handling is not None
    assert config.error_handling.retry is not None
    return config.error_handling.retry


def policy(kind: Operation = "write", **settings: Any) -> RetryPolicy:
    return retry(**settings).policy(kind)


def test_an_empty_section_asks_for_the_defaults() -> None:
    assert policy() == RetryPolicy(attempts=5, initial=1, longest=60, multiplier=2, jitter=True)


SPELLINGS: list[tuple[dict[str, Any], RetryPolicy]] = [
    (
        {"strategy": "exponential", "maxAttempts": 5, "initialDelaySeconds": 10, "maxDelaySeconds": 300},
        RetryPolicy(5, 10, 300, 2, True),
    ),
    (
        {"strategy": "exponential-backoff", "initialDelayMs": 1500, "maxDelayMs": 2000, "backoffMultiplier": 1.5},
        RetryPolicy(5, 1.5, 2, 1.5, True),
    ),
    ({"maxAttempts": 3, "delaySeconds": 5, "jitter": False}, RetryPolicy(3, 5, 60, 1, False)),
    ({"delaySeconds": 5, "useExponentialBackoff": True, "backoffMultiplier": 3}, RetryPolicy(5, 5, 60, 3, True)),
    ({"delaySeconds": 120, "useExponentialBackoff": "false"}, RetryPolicy(5, 120, 120, 1, True)),
    ({"strategy": "fixed", "initialDelaySeconds": 0.5, "initialDelayMs": 500}, RetryPolicy(5, 0.5, 60, 1, True)),
    ({"strategy": "none", "maxAttempts": 9}, RetryPolicy(1, 1, 60, 2, True)),
    ({"max_attempts": "2", "initial_delay_ms": "20"}, RetryPolicy(2, 0.02, 60, 2, True)),
]


@pytest.mark.parametrize(("settings", "expected"), SPELLINGS)
def test_each_spelling_means_the_same(settings: dict[str, Any], expected: RetryPolicy) -> None:
    assert policy(**settings) == expected


def test_a_kind_has_settings_of_its_own_and_the_others_around_it() -> None:
    found = retry(
        initialDelayMs=100,
        maxAttempts=3,
        read={"maxAttempts": 9, "initialDelaySeconds": 2},
        publish={"strategy": "none"},
    )
    assert found.policy("read") == RetryPolicy(9, 2, 60, 2, True)
    assert found.policy("write") == RetryPolicy(3, 0.1, 60, 2, True)
    assert found.policy("publish").attempts == 1
    assert found.active
    assert not retry(strategy="none").active
    assert retry(strategy="none", read={"strategy": "fixed"}).active


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"strategy": "fibonacci"}, "strategy", "exponential, fixed or none"),
    ({"initialDelaySeconds": 10, "maxDelaySeconds": 5}, "maxDelaySeconds", "not longer"),
    ({"initialDelaySeconds": 10, "maxDelayMs": 5}, "maxDelayMs", "not longer"),
    ({"initialDelaySeconds": 10, "initialDelayMs": 10}, "initialDelayMs", "one of them"),
    ({"delaySeconds": 10, "initialDelayMs": 10}, "delaySeconds", "one of them"),
    ({"maxDelaySeconds": 10, "maxDelayMs": 1000}, "maxDelayMs", "one of them"),
    ({"initialDelaySeconds": -1}, "initialDelaySeconds", "0 or more"),
    ({"initialDelayMs": -1}, "initialDelayMs", "from 1"),
    ({"initialDelaySeconds": 0}, "initialDelaySeconds", "more than 0"),
    ({"maxDelaySeconds": 86401}, "maxDelaySeconds", "at most a day"),
    ({"backoffMultiplier": 0.5}, "backoffMultiplier", "1 or more"),
    ({"maxAttempts": 0}, "maxAttempts", "from 1"),
    ({"strategy": "fixed", "useExponentialBackoff": True}, "useExponentialBackoff", "strategy alone"),
    ({"strategy": "exponential", "useExponentialBackoff": False}, "useExponentialBackoff", "strategy alone"),
    ({"read": {"initialDelaySeconds": 90}, "maxDelaySeconds": 60}, "read.maxDelaySeconds", "not longer"),
    ({"write": {"backoffMultiplier": 0}}, "write.backoffMultiplier", "1 or more"),
    ({"load": {}}, "load", "strategy"),
]


@pytest.mark.parametrize(("settings", "path", "expected"), WRONG)
def test_settings_that_contradict_are_named(settings: dict[str, Any], path: str, expected: str) -> None:
    wrong = problem(stateless(errorHandlingConfig={"retryConfig": settings}))
    assert wrong.path == f"errorHandlingConfig.retryConfig.{path}"
    assert expected in wrong.expected


def test_the_breakers_settings_in_both_spellings() -> None:
    for name in ("resetTimeout", "resetTimeoutSeconds", "reset_timeout_seconds"):
        settings = {"failureThreshold": 10, name: 120, "halfOpenMaxAttempts": "2"}
        handling = parse(stateless(errorHandling={"circuitBreaker": settings})).error_handling
        assert handling is not None
        assert handling.circuit_breaker is not None
        breaker = handling.circuit_breaker
        assert (breaker.failure_threshold, breaker.reset_timeout_seconds, breaker.half_open_max_attempts) == (
            10,
            120,
            2,
        )
        assert breaker.enabled


@pytest.mark.parametrize(("name", "value"), [("resetTimeout", 0), ("resetTimeoutSeconds", 1e9)])
def test_a_breaker_that_never_opens_or_never_closes_is_refused(name: str, value: float) -> None:
    wrong = problem(stateless(errorHandling={"circuitBreaker": {name: value}}))
    assert wrong.path == f"errorHandling.circuitBreaker.{name}"
    assert "more than 0 seconds" in wrong.expected


def test_all_that_is_wrong_is_told_at_once() -> None:
    settings = {"retryConfig": {"backoffMultiplier": 0}, "circuitBreakerConfig": {"failureThreshold": 0}}
    found = problems(stateless(errorHandlingConfig=settings))
    assert "errorHandlingConfig.circuitBreakerConfig.failureThreshold" in [item.path for item in found]
