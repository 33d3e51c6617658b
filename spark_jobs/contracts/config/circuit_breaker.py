"""A pause for a system that keeps failing, in both spellings of the references."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from spark_jobs.contracts.config.section import Flag, Int, Number, Section


class CircuitBreaker(Section):
    """A pause for a target that keeps failing. All pipelines that write to the same system share its state."""

    also_spelled: ClassVar[Mapping[str, str]] = {"resetTimeout": "resetTimeoutSeconds"}

    enabled: Flag = Field(True, description="Whether there is one.")
    failure_threshold: Int = Field(5, description="Failures in a row after which it opens.")
    reset_timeout_seconds: Number = Field(
        60.0, description="Seconds that it stays open, then a probe is let through; also spelled `resetTimeout`."
    )
    half_open_max_attempts: Int = Field(
        1, description="Probes let through at once after that, and successes after which it closes."
    )
