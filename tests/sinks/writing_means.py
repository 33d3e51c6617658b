"""What a sink has to write with, as the tests of strategies and abilities need it."""

from __future__ import annotations

import pytest

from spark_jobs.contracts.config import WriteMode, WriteStrategy
from spark_jobs.contracts.errors import TwoPhaseUnavailableError
from spark_jobs.sinks.ability import TwoPhase
from spark_jobs.sinks.strategy import Means, choose
from spark_jobs.sources.base import BatchSize

ABLE = TwoPhase(slots=8, limit=64)
MANY = BatchSize(rows=200_001)
"""More than one task writes."""


def means(
    mode: WriteMode = WriteMode.APPEND, ability: TwoPhase = ABLE, *, cores: int = 4, asked: int | None = None
) -> Means:
    """What there is on a cluster of so many cores, when ``load.writeParallelism`` asks for so many parts."""
    return Means(mode, ability, asked or cores, asked)


def refusal(has: Means) -> TwoPhaseUnavailableError:
    """The error of a forced ``two_phase``."""
    with pytest.raises(TwoPhaseUnavailableError) as caught:
        choose(WriteStrategy.TWO_PHASE, MANY, has)
    return caught.value
