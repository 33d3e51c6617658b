"""What a run's metrics are made of, as the ledger has it: attempts and waits, dead letters, circuit breakers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from spark_jobs.contracts.errors import Operation


@dataclass(frozen=True, slots=True)
class Waited:
    """How often something was done again, and what was waited before it, in all."""

    times: int
    seconds: float


@dataclass(frozen=True, slots=True)
class RunFigures:
    """What the ledger can tell about a run at its end."""

    state: str = ""
    """Empty for a run that the ledger does not know."""
    exit_code: int | None = None
    retries: Mapping[Operation, Waited] = field(default_factory=dict)
    dead_letters: Mapping[str, int] = field(default_factory=dict)
    """By stage."""
    breaker_changes: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """What the run did to breakers: how often, by system and new state."""
    breakers: Mapping[str, str] = field(default_factory=dict)
    """State of each breaker that the ledger knows, whoever changed it."""
