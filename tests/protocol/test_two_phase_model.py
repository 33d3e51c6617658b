"""The whole state space of the protocol: nothing lost, nothing twice, nothing stuck; and what each safeguard is for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from checker import Explored, explore, well, wrong_rows
from model import COURTESIES, SAFEGUARDS, SCENARIOS, Protocol, State

SAFETY = [name for name, kind in SAFEGUARDS.items() if kind == "safety"]
LIVENESS = [name for name, kind in SAFEGUARDS.items() if kind == "liveness"]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_interleaving_loses_doubles_or_blocks_anything(
    scenario: str, record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]
) -> None:
    explored = explore(Protocol(), SCENARIOS[scenario])
    record_property("states", len(explored.parents))
    with capsys.disabled():
        print(f"\n{scenario}: {len(explored.parents):,} states", end="")
    bad = explored.first(wrong_rows)
    assert bad is None, explored.trace(bad)
    stuck = explored.stuck(well)
    assert stuck is None, explored.trace(stuck)
    # The space holds what it is about.
    assert any(state.committed and state.drivers[0].step == "dead" for state in explored.parents)
    assert any(state.stopped for state in explored.parents) == bool(SCENARIOS[scenario].by_hand)


@pytest.mark.parametrize("safeguard", SAFETY)
def test_without_it_a_row_is_lost_or_twice(safeguard: str) -> None:
    def bad_in(scenario: State) -> tuple[Explored, State | None]:
        explored = explore(Protocol(frozenset({safeguard})), scenario, stop_at=wrong_rows)
        return explored, explored.first(wrong_rows)

    _shown(safeguard, bad_in)


@pytest.mark.parametrize("safeguard", LIVENESS)
def test_without_it_something_is_stuck_or_orphaned(safeguard: str) -> None:
    def stuck_in(scenario: State) -> tuple[Explored, State | None]:
        explored = explore(Protocol(frozenset({safeguard})), scenario)
        assert explored.first(wrong_rows) is None
        return explored, explored.stuck(well)

    _shown(safeguard, stuck_in)


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("courtesy", sorted(COURTESIES))
def test_without_a_courtesy_nothing_goes_wrong(courtesy: str, scenario: str) -> None:
    explored = explore(Protocol(frozenset({courtesy})), SCENARIOS[scenario])
    assert explored.first(wrong_rows) is None
    assert explored.stuck(well) is None


def _shown(safeguard: str, look: Callable[[State], tuple[Explored, State | None]]) -> None:
    for scenario, start in SCENARIOS.items():
        explored, found = look(start)
        if found is not None:
            print(f"without {safeguard!r}, when {scenario}:", *explored.trace(found), sep="\n  ")
            print(f"  -> in the target: {', '.join(found.target) or 'nothing'}; prepared: {len(found.prepared)}")
            return
    pytest.fail(f"nothing goes wrong without {safeguard!r}")
