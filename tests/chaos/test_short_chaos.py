"""A minute of what ``make chaos`` does for twenty."""

from __future__ import annotations

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests.chaos.loop import Chaos
from tests.chaos.workload import Kind


def test_a_minute_of_random_kills_loses_nothing_and_doubles_nothing() -> None:
    seed = random.randrange(1_000_000)
    with Chaos(seed, [Kind("two_phase", "append"), Kind("staged", "upsert")]) as chaos:
        results = chaos.run(60)
    assert results.good, results
    assert results.kills, "nothing was killed: the run shows nothing"
    assert results.batches_under_fire > 0, "nothing was committed under fire: the run shows nothing"
    assert results.records > 0
