"""Explores every state of the model, and finds the shortest way to a bad one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from model import Protocol, State


@dataclass
class Explored:
    """All reachable states. ``parents``: how each was first reached."""

    parents: dict[State, tuple[State, str] | None]
    backward: dict[State, list[State]]

    def trace(self, state: State) -> list[str]:
        """Return the steps of a shortest way to a state."""
        steps = []
        at = self.parents[state]
        while at is not None:
            before, step = at
            steps.append(step)
            at = self.parents[before]
        return steps[::-1]

    def first(self, bad: Callable[[State], bool]) -> State | None:
        """Return a nearest state that is bad."""
        return next((state for state in self.parents if bad(state)), None)

    def stuck(self, good: Callable[[State], bool]) -> State | None:
        """Return a nearest state from which no good one can be reached any more."""
        reaching = {state for state in self.parents if good(state)}
        todo = deque(reaching)
        while todo:
            for before in self.backward.get(todo.popleft(), ()):
                if before not in reaching:
                    reaching.add(before)
                    todo.append(before)
        return next((state for state in self.parents if state not in reaching), None)


def explore(protocol: Protocol, start: State, *, stop_at: Callable[[State], bool] | None = None) -> Explored:
    """Visit every state, breadth first; stop early at a state that is looked for."""
    found = Explored({start: None}, {})
    todo = deque([start])
    while todo:
        state = todo.popleft()
        if stop_at is not None and stop_at(state):
            break
        if state.stopped:
            continue
        for step, after in protocol.steps(state):
            found.backward.setdefault(after, []).append(state)
            if after not in found.parents:
                found.parents[after] = (state, step)
                todo.append(after)
    return found


def wrong_rows(state: State) -> bool:
    """A row is there twice, or is not there though the ledger says so, or can never come though it was decided."""
    twice = any(state.target.count(row) > 1 for row in "ab")
    missing = state.committed and state.target != ("a", "b")
    gone = not state.rolled_back_by_hand and any(
        part not in state.prepared and part.name not in state.part_rows for part in state.decision or ()
    )
    return twice or missing or gone


def well(state: State) -> bool:
    """The newer run is through: the batch is there once, nothing is prepared, nothing holds a lock.

    Or it has stopped, because somebody rolled back by hand what was decided, and only a person can say what now.
    """
    if state.stopped:
        return state.rolled_back_by_hand
    ended = state.drivers[1].step == "done" and all(task.step == "done" for task in state.tasks)
    return ended and state.committed and not state.prepared and state.decision is None
