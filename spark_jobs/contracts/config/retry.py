"""Attempts after a passing fault, in both spellings of the references, and what they mean for each kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from pydantic import Field

from spark_jobs.contracts.config.enumerations import RetryStrategy, RetryStrategyText
from spark_jobs.contracts.config.section import Flag, Int, Long, Number, Section
from spark_jobs.contracts.errors import Operation

ATTEMPTS: Final = 5
INITIAL_SECONDS: Final = 1.0
MAX_SECONDS: Final = 60.0
MULTIPLIER: Final = 2.0

INITIAL: Final = ("initial_delay_seconds", "initial_delay_ms", "delay_seconds")
LONGEST: Final = ("max_delay_seconds", "max_delay_ms")
_STRATEGY: Final = ("strategy", "use_exponential_backoff", "delay_seconds")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often the same work is done again, and how long is waited before. Durations are seconds.

    :param attempts: in all; 1 is no retry.
    :param jitter: whether a wait is a random part, from half to all, of what it would be.
    """

    attempts: int = 1
    initial: float = INITIAL_SECONDS
    longest: float = MAX_SECONDS
    multiplier: float = MULTIPLIER
    jitter: bool = True


class RetrySettings(Section):
    """Attempts and waits. A setting that an operation kind of its own leaves out is the one around it."""

    strategy: RetryStrategyText | None = Field(
        None, description="`exponential` (default), `fixed` or `none`; with `delaySeconds`, `fixed` is the default."
    )
    max_attempts: Int | None = Field(None, description=f"Attempts in all, {ATTEMPTS} unless given; 1 is no retry.")
    initial_delay_seconds: Number | None = Field(
        None, description="First wait, 1 second unless given; or `initialDelayMs`."
    )
    initial_delay_ms: Long | None = Field(None, description="First wait in milliseconds; or `initialDelaySeconds`.")
    max_delay_seconds: Number | None = Field(
        None, description="Longest wait, 60 seconds (or the first wait, if longer) unless given; or `maxDelayMs`."
    )
    max_delay_ms: Long | None = Field(None, description="Longest wait in milliseconds; or `maxDelaySeconds`.")
    delay_seconds: Number | None = Field(None, description="The old form: the wait of the strategy `fixed`.")
    backoff_multiplier: Number | None = Field(
        None, description="How much longer each wait is than the one before, 2 unless given."
    )
    use_exponential_backoff: Flag | None = Field(
        None, description="The old form of `strategy`: `true` is `exponential`, `false` is `fixed`."
    )
    jitter: Flag | None = Field(
        None, description="Whether waits are shortened at random, by half at most; true unless given."
    )


class Retry(RetrySettings):
    """Attempts after a passing fault, within a run."""

    kinds: ClassVar[tuple[Operation, ...]] = ("read", "write", "publish")

    read: RetrySettings | None = Field(None, description="Other settings while the source does not answer.")
    write: RetrySettings | None = Field(None, description="Other settings while PostgreSQL or executors fail.")
    publish: RetrySettings | None = Field(None, description="Other settings while dead letters cannot be published.")

    def policy(self, kind: Operation) -> RetryPolicy:
        """Return what holds for a kind of operation."""
        return policy_of(self.given(kind))

    def given(self, kind: Operation | None) -> dict[str, Any]:
        """Return the settings that hold for a kind (None: for those without settings of their own), as given."""
        own = getattr(self, kind) if kind else None
        outer = _given(self)
        if own is None:
            return outer
        inner = _given(own)
        for spellings in (INITIAL, LONGEST, _STRATEGY):
            # One spelling of the inner settings replaces all spellings around it.
            if any(name in inner for name in spellings):
                outer = {name: value for name, value in outer.items() if name not in spellings}
        return {**outer, **inner}

    @property
    def active(self) -> bool:
        """Whether it asks for a second attempt of anything."""
        return any(self.policy(kind).attempts > 1 for kind in self.kinds)


def policy_of(given: Mapping[str, Any]) -> RetryPolicy:
    """Return what settings mean that do not contradict one another."""
    strategy = strategy_of(given)
    initial = seconds(given, INITIAL) or INITIAL_SECONDS
    fixed = strategy is RetryStrategy.FIXED
    return RetryPolicy(
        attempts=1 if strategy is RetryStrategy.NONE else given.get("max_attempts", ATTEMPTS),
        initial=initial,
        longest=seconds(given, LONGEST) or max(MAX_SECONDS, initial),
        multiplier=1.0 if fixed else given.get("backoff_multiplier", MULTIPLIER),
        jitter=given.get("jitter", True),
    )


def strategy_of(given: Mapping[str, Any]) -> RetryStrategy:
    """Return the strategy, from whichever spelling says it."""
    if "strategy" in given:
        return RetryStrategy(given["strategy"])
    fixed = not given["use_exponential_backoff"] if "use_exponential_backoff" in given else "delay_seconds" in given
    return RetryStrategy.FIXED if fixed else RetryStrategy.EXPONENTIAL


def seconds(given: Mapping[str, Any], spellings: tuple[str, ...]) -> float | None:
    """Return a delay in seconds from the first spelling that is given."""
    return next((in_seconds(name, given[name]) for name in spellings if name in given), None)


def in_seconds(name: str, value: float) -> float:
    """Return the value of a delay's setting in seconds."""
    return value / 1000 if name.endswith("_ms") else float(value)


def _given(section: RetrySettings) -> dict[str, Any]:
    values = {name: getattr(section, name) for name in RetrySettings.model_fields}
    return {name: value for name, value in values.items() if value is not None}
