"""The traces in docs/explanation/two-phase.md can happen in the model, end where they say, and none is shorter."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from checker import explore, well, wrong_rows
from model import SAFEGUARDS, SCENARIOS, Protocol, State

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "explanation" / "two-phase.md"
_SECTION = re.compile(
    r"^### Without “(?P<safeguard>.+?)”.*?\nWhen (?P<scenario>.+?):\n\n```text\n(?P<trace>.*?)```", re.M | re.S
)
SECTIONS = {
    found["safeguard"]: (found["scenario"], found["trace"].splitlines())
    for found in _SECTION.finditer(PAGE.read_text())
}
_BEGINNING = ["driver 1 claims the epoch", "driver 1 looks for older parts", "driver 1 rolls older parts back"]
"""Left out on the page, which says so."""


def test_every_safeguard_has_its_trace() -> None:
    assert list(SECTIONS) == list(SAFEGUARDS)


@pytest.mark.parametrize("safeguard", SAFEGUARDS)
def test_a_trace_is_a_shortest_way_to_what_it_shows(safeguard: str) -> None:
    scenario, (*shown_steps, outcome) = SECTIONS[safeguard]
    steps = [*(_BEGINNING if shown_steps[0] == "driver 1 starts the tasks" else []), *shown_steps]
    protocol, start = Protocol(frozenset({safeguard})), SCENARIOS[scenario]
    safety = SAFEGUARDS[safeguard] == "safety"
    explored = explore(protocol, start, stop_at=wrong_rows if safety else None)
    shown = explored.first(wrong_rows) if safety else explored.stuck(well)
    assert shown is not None
    assert len(steps) == len(explored.trace(shown))
    ends = [state for state in _walked(protocol, start, steps) if outcome == _outcome(state)]
    if safety:
        assert any(wrong_rows(state) for state in ends)
    else:
        assert any(explore(protocol, state).stuck(well) == state for state in ends)


def _walked(protocol: Protocol, start: State, steps: list[str]) -> set[State]:
    """Return where these steps may lead: one text may stand for several steps of the model."""
    states = {start}
    for number, text in enumerate(steps, 1):
        states = {after for state in states for step, after in protocol.steps(state) if step == text}
        assert states, f"step {number} cannot be taken: {text}"
    return states


def _outcome(state: State) -> str:
    return f"-> in the target: {', '.join(state.target) or 'nothing'}; prepared: {len(state.prepared)}"
