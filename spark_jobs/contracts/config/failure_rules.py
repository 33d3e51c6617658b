"""Rules between the settings of ``errorHandlingConfig``: waits that contradict one another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic.alias_generators import to_camel

from spark_jobs.contracts.config.enumerations import RetryStrategy
from spark_jobs.contracts.config.keys import Document
from spark_jobs.contracts.config.parts import Parts
from spark_jobs.contracts.config.problems import Location
from spark_jobs.contracts.config.retry import INITIAL, LONGEST, Retry, in_seconds, policy_of, strategy_of

_WHERE: Final = ("errorHandlingConfig",)
_LONGEST_SECONDS: Final = 86_400.0


def check(parts: Parts, document: Document) -> None:
    """Note what does not fit together in ``errorHandlingConfig``."""
    handling = parts.error_handling
    if handling is None:
        return
    if handling.retry is not None:
        _check_retry(handling.retry, document)
    breaker = handling.circuit_breaker
    if breaker is not None:
        location = (*_WHERE, "circuitBreakerConfig", "resetTimeoutSeconds")
        _check_length(breaker.reset_timeout_seconds, location, document)


def _check_retry(retry: Retry, document: Document) -> None:
    where = (*_WHERE, "retryConfig")
    _check_settings(retry.given(None), where, document)
    for kind in retry.kinds:
        own = getattr(retry, kind)
        if own is not None:
            _check_settings(own.model_dump(exclude_none=True, by_alias=False), (*where, kind), document)
            _check_order(retry.given(kind), (*where, kind), document)
    _check_order(retry.given(None), where, document)


def _check_settings(given: Mapping[str, Any], where: Location, document: Document) -> None:
    for spellings in (INITIAL, LONGEST):
        _check_spellings(given, spellings, where, document)
    multiplier = given.get("backoff_multiplier", 1)
    if multiplier < 1:
        expected = "1 or more: a wait is not shorter than the one before"
        document.note((*where, "backoffMultiplier"), f"{multiplier:g}", expected)
    exponential = given.get("use_exponential_backoff")
    if exponential is not None and "strategy" in given:
        strategy = strategy_of(given)
        if (strategy is RetryStrategy.EXPONENTIAL) != exponential:
            found = f"{str(exponential).lower()}, and strategy {strategy}"
            document.note(
                (*where, "useExponentialBackoff"), found, "strategy alone; useExponentialBackoff is its old form"
            )


def _check_spellings(given: Mapping[str, Any], spellings: tuple[str, ...], where: Location, document: Document) -> None:
    lengths = {name: in_seconds(name, given[name]) for name in spellings if name in given}
    for name, length in lengths.items():
        _check_length(length, (*where, to_camel(name)), document)
    if len(set(lengths.values())) > 1:
        found = " and ".join(f"{to_camel(name)} {given[name]:g}" for name in lengths)
        document.note((*where, to_camel(list(lengths)[-1])), found, "one of them: they say the same in other units")


def _check_length(length: float, location: Location, document: Document) -> None:
    if not 0 < length <= _LONGEST_SECONDS:
        document.note(location, f"{length:g} seconds", "more than 0 seconds and at most a day")


def _check_order(given: Mapping[str, Any], where: Location, document: Document) -> None:
    policy = policy_of(given)
    if policy.initial > policy.longest:
        name = next((name for name in LONGEST if name in given), LONGEST[0])
        found = f"a first wait of {policy.initial:g} seconds, and a longest one of {policy.longest:g}"
        document.note((*where, to_camel(name)), found, "a first wait that is not longer than the longest")
