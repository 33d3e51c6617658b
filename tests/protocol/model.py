"""The two-phase protocol as a small explicit-state model: every step that a database, a task or a driver can take next.

One batch of two rows, ``a`` and ``b``, in two parts. Evaluated again, the batch need not be cut the same way: an odd
attempt has ``a`` in part 0 and ``b`` in part 1, an even one the other way round; parts of two evaluations mixed show as
a row lost and a row twice. Run 1 may freeze or die anywhere, be started again by its cluster, and wake up at any time;
run 2 is registered at any time and does not die. Tasks may be attempted twice, die, or be late.

What a real step does in one transaction is one step here; a commit that holds the fence's lock is two, because its
driver may freeze in between. The names follow design.md and ``spark_jobs.contracts.tracker``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T", bound=Any)
PARTS = (0, 1)

SAFEGUARDS = {
    "fence in the decision": "safety",
    "winners are prepared": "safety",
    "decision before commits": "safety",
    "part rows before committed": "safety",
    "names are used once": "safety",
    "decided is finished first": "liveness",
    "a late part asks whether it lost": "liveness",
    "older parts are rolled back": "liveness",
    "no lock in the task": "liveness",
    "no unique keys": "liveness",
    "older sessions are ended": "liveness",
    "finished from decided only": "liveness",
}
"""Each safeguard, and what goes wrong without it."""

COURTESIES = {"fence at the end"}
"""Steps without which nothing goes wrong: this one lets an older run say that it was taken over."""

Name = tuple[int, int, int, int]
"""Of a prepared transaction: epoch, the driver's attempt, part, the task's attempt."""


class Part(NamedTuple):
    """A transaction of a task. ``number`` counts the evaluations of the batch."""

    name: Name
    part: int
    number: int
    locks_fence: bool = False


class Task(NamedTuple):
    """An attempt at a part: ``open`` (its transaction has seen its own epoch), ``prepared`` or ``done``.

    One that died is not there any more; nor is one whose report nobody waits for.
    """

    run: int
    epoch: int
    attempt: int
    part: int
    try_number: int
    step: str = "open"


class Driver(NamedTuple):
    """A driver of a run. ``step`` says what comes next."""

    step: str = "claim"
    epoch: int = 0
    attempt: int = 0
    winners: tuple[Part, ...] = ()
    to_roll_back: frozenset[Part] = frozenset()


class State(NamedTuple):
    """Everything that there is."""

    newest: int = 1
    epoch: int = 0
    prepared: frozenset[Part] = frozenset()
    target: tuple[str, ...] = ()
    part_rows: frozenset[Name] = frozenset()
    decision: tuple[Part, ...] | None = None
    committed: bool = False
    drivers: tuple[Driver, Driver] = (Driver(), Driver(step="away"))
    tasks: frozenset[Task] = frozenset()
    tries: int = 1
    deaths: int = 0
    again: int = 0
    restarts: int = 0
    by_hand: int = 0
    rolled_back_by_hand: bool = False
    resolves: int = 0
    resolving: tuple[Part, ...] | None = None
    died_prepared: bool = False
    stopped: bool = False


SCENARIOS = {
    "a part is attempted twice": State(tries=2),
    "a task may die after PREPARE": State(tries=2, deaths=1),
    "a batch may be done again": State(again=1),
    "the cluster may start the driver again": State(restarts=1),
    "somebody may roll back a part by hand": State(by_hand=1),
    "somebody may finish the batch by command": State(resolves=1),
}
"""What may happen once beside everything that may happen always; explored one after the other, to keep each small."""


def replace(value: T, **changes: Any) -> T:
    """Return the same with changes."""
    changed: T = value._replace(**changes)
    return changed


def row_of(part: int, number: int) -> str:
    """Return which row a part holds in an evaluation of the batch."""
    return "ab"[(part + number) % 2]


@dataclass(frozen=True)
class Protocol:
    """The protocol with all of its safeguards but those in ``without``."""

    without: frozenset[str] = field(default_factory=frozenset)

    def has(self, safeguard: str) -> bool:
        assert safeguard in SAFEGUARDS.keys() | COURTESIES, safeguard
        return safeguard not in self.without

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        """Return every next state with the step that leads there."""
        for number in (1, 2):
            yield from self._driver(state, number)
        for task in state.tasks:
            yield from self._task(state, task)
        yield from self._surroundings(state)

    # -- the surroundings ----------------------------------------------------------------------------------------------

    def _surroundings(self, state: State) -> Iterator[tuple[str, State]]:
        first, second = state.drivers
        holds = first.step in ("holds fence", "frozen")
        if second.step == "away" and not holds:
            yield "run 2 is registered", replace(state, newest=2, drivers=(first, Driver()))
        if second.step == "away" and holds and self.has("older sessions are ended"):
            ended = Driver("dead")
            yield "run 2 ends run 1's session and is registered", replace(state, newest=2, drivers=(ended, Driver()))
        if first.step == "holds fence":
            yield "driver 1 freezes for ever", self._with(state, 1, replace(first, step="frozen"))
        if first.step not in ("dead", "done", "holds fence", "frozen"):
            yield "driver 1 dies", self._with(state, 1, Driver("dead"))
        if first.step == "dead" and state.restarts and state.newest == 1:
            yield "the cluster starts run 1 again", replace(self._with(state, 1, Driver()), restarts=0)
        if second.step == "done" and state.died_prepared and state.prepared:
            # Nobody was left to find it: it waits for the pipeline's next run, which is always one with a newer epoch.
            left_over = self._left_over(state, state.epoch + 1, own=False)
            yield "the run after these rolls older parts back", replace(state, prepared=state.prepared - left_over)
        if state.by_hand:
            for part in state.prepared:
                # Between the decision's look at the parts and its COMMIT it is as good as decided.
                decided = any(part in winners for winners in (state.decision or (), *self._deciding(state)))
                gone = replace(state, prepared=state.prepared - {part}, by_hand=0, rolled_back_by_hand=decided)
                yield f"somebody rolls back part {part.part}, {'decided' if decided else 'undecided'}", gone
        for step, after in self._resolve(state):
            yield f"the command {step}", after

    def _resolve(self, state: State) -> Iterator[tuple[str, State]]:
        """Finish a decided batch as `etl-pipeline prepared resolve` does it: without the fence, which it needs not."""
        if state.resolving is None:
            if state.resolves and state.decision is not None:
                yield "finds the batch decided", replace(state, resolves=0, resolving=state.decision)
            return
        waiting = [part for part in state.resolving if part in state.prepared]
        if waiting:
            yield f"commits part {waiting[0].part}", self._commit_part(state, waiting[0])
        else:
            step, after = self._finished(state, state.resolving)
            yield step, replace(after, resolving=None)

    @staticmethod
    def _deciding(state: State) -> list[tuple[Part, ...]]:
        return [driver.winners for driver in state.drivers if driver.step in ("holds fence", "frozen")]

    # -- a task: clause 1 ----------------------------------------------------------------------------------------------

    def _task(self, state: State, task: Task) -> Iterator[tuple[str, State]]:
        told = f"task {task.part}.{task.try_number} of driver {task.run} (attempt {task.attempt})"
        if (task.step == "open" and task.run == 1) or (task.step == "prepared" and state.deaths):
            died = task.step == "prepared"
            yield (
                f"{told} dies",
                replace(
                    state,
                    tasks=state.tasks - {task},
                    deaths=state.deaths - died,
                    died_prepared=state.died_prepared or died,
                ),
            )
        if task.step == "open":
            part = self._part(task)
            if part.name in {other.name for other in state.prepared} or not self._key_is_free(state, part):
                return
            yield f"{told} prepares", replace(self._becomes(state, task, "prepared"), prepared=state.prepared | {part})
        elif task.step == "prepared":
            part = self._part(task)
            if self.has("a late part asks whether it lost") and self._has_lost(state, task, part):
                gone = replace(state, tasks=state.tasks - {task}, prepared=state.prepared - {part})
                yield f"{told} finds that it lost and rolls itself back", gone
            elif self._is_waited_for(state, task):
                yield f"{told} reports", self._becomes(state, task, "done")
            else:
                yield f"{told} ends", replace(state, tasks=state.tasks - {task})

    @staticmethod
    def _is_waited_for(state: State, task: Task) -> bool:
        driver = state.drivers[task.run - 1]
        return driver.step == "wait" and (driver.epoch, driver.attempt) == (task.epoch, task.attempt)

    def _part(self, task: Task) -> Part:
        # Evaluations are numbered by driver and attempt: they need not cut the batch the same way.
        number = task.epoch + task.attempt
        once = self.has("names are used once")
        name = (task.epoch, task.attempt if once else 0, task.part, task.try_number if once else 0)
        return Part(name, task.part, number, locks_fence=not self.has("no lock in the task"))

    def _key_is_free(self, state: State, part: Part) -> bool:
        if self.has("no unique keys"):
            return True
        row = row_of(part.part, part.number)
        return all(row_of(other.part, other.number) != row for other in state.prepared)

    @staticmethod
    def _mine(state: State, task: Task) -> bool:
        return state.newest == task.run and state.epoch == task.epoch

    def _has_lost(self, state: State, task: Task, part: Part) -> bool:
        if state.committed:
            return True
        if state.decision is not None:
            return part not in state.decision
        return not self._mine(state, task)

    # -- a driver: clauses 2 to 5 --------------------------------------------------------------------------------------

    def _driver(self, state: State, number: int) -> Iterator[tuple[str, State]]:
        driver = state.drivers[number - 1]
        for step, after in self._driver_step(state, number, driver):
            yield f"driver {number} {step}", after

    def _driver_step(  # noqa: PLR0912 - a step of the driver each
        self, state: State, number: int, me: Driver
    ) -> Iterator[tuple[str, State]]:
        fenced = state.newest != number or (me.epoch and state.epoch != me.epoch)
        if me.step == "claim":
            yield from self._claim(state, number)
        elif me.step == "recover":
            yield from self._recover(state, number, me)
        elif me.step == "roll back":
            swept = replace(state, prepared=state.prepared - me.to_roll_back)
            after = replace(me, step="look", to_roll_back=frozenset())
            yield "rolls older parts back", self._with(swept, number, after)
        elif me.step == "look":
            there = state.committed or (not self.has("decided is finished first") and state.decision is not None)
            if state.decision is not None and self.has("decided is finished first"):
                yield "finds the batch decided", self._with(state, number, replace(me, step="recover"))
            elif there:
                yield "finds the batch there", self._with(state, number, replace(me, step="sweep at end"))
            elif fenced:
                yield "is fenced", self._with(state, number, Driver("done"))
            else:
                yield "starts the tasks", self._start_tasks(state, number, me)
        elif me.step == "wait":
            yield from self._collect(state, number, me)
        elif me.step == "decide":
            yield from self._decide(state, number, me)
        elif me.step == "holds fence":
            decided = replace(state, decision=me.winners)
            yield "commits its decision", self._with(decided, number, replace(me, step="commit parts"))
        elif me.step == "commit parts":
            yield from self._commit_parts(state, number, me)
        elif me.step == "finish":
            yield from self._finish(state, number, me)
        elif me.step == "sweep at end":
            left_over = self._left_over(state, me.epoch, own=True)
            swept = replace(state, prepared=state.prepared - left_over)
            yield "sweeps", self._with(swept, number, Driver("done"))

    def _claim(self, state: State, number: int) -> Iterator[tuple[str, State]]:
        if state.newest != number:
            yield "is fenced before it begins", self._with(state, number, Driver(step="done"))
        elif not any(part.locks_fence for part in state.prepared):
            claimed = replace(state, epoch=state.epoch + 1)
            yield "claims the epoch", self._with(claimed, number, Driver("recover", claimed.epoch))

    def _recover(self, state: State, number: int, me: Driver) -> Iterator[tuple[str, State]]:
        if state.decision is not None and self.has("decided is finished first"):
            yield "finds a decided batch", self._with(state, number, replace(me, step="commit parts", winners=()))
            return
        found = self._left_over(state, me.epoch, own=False)
        yield "looks for older parts", self._with(state, number, replace(me, step="roll back", to_roll_back=found))

    def _left_over(self, state: State, epoch: int, *, own: bool) -> frozenset[Part]:
        if not self.has("older parts are rolled back"):
            return frozenset()
        last = epoch if own else epoch - 1
        return frozenset(p for p in state.prepared if p.name[0] <= last and p not in (state.decision or ()))

    def _start_tasks(self, state: State, number: int, me: Driver) -> State:
        attempt = me.attempt + 1
        # The second attempt at a part is Spark's: a repetition, or speculation. Run 1 has it, and all that it leads to.
        tries = state.tries if number == 1 or not self.has("no unique keys") else 1
        tasks = {Task(number, me.epoch, attempt, 0, k) for k in range(1, tries + 1)}
        tasks.add(Task(number, me.epoch, attempt, 1, 1))
        left_over = self._left_over(state, me.epoch, own=True)
        started = replace(state, prepared=state.prepared - left_over, tasks=state.tasks | tasks)
        return self._with(started, number, replace(me, step="wait", attempt=attempt, winners=()))

    def _collect(self, state: State, number: int, me: Driver) -> Iterator[tuple[str, State]]:
        mine = [t for t in state.tasks if (t.run, t.epoch, t.attempt) == (number, me.epoch, me.attempt)]
        done = {part: [t for t in mine if t.part == part and t.step == "done"] for part in PARTS}
        forgotten = replace(state, tasks=frozenset(t for t in state.tasks if t not in mine or t.step != "done"))
        if all(done.values()):
            for task in done[0]:
                winners = (self._part(task), self._part(done[1][0]))
                yield (
                    f"takes {task.part}.{task.try_number}",
                    self._with(forgotten, number, replace(me, step="decide", winners=winners)),
                )
        elif any(not [t for t in mine if t.part == part] for part in PARTS):
            yield "has lost a part", self._again(forgotten, number, me)

    def _again(self, state: State, number: int, me: Driver) -> State:
        # Run 2 is the one that nothing stops: it does the batch until it is done.
        if number == 2:
            return self._with(state, number, replace(me, step="look"))
        if not state.again:
            return self._with(state, number, Driver("done"))
        return self._with(replace(state, again=0), number, replace(me, step="look"))

    def _decide(self, state: State, number: int, me: Driver) -> Iterator[tuple[str, State]]:
        fenced = state.newest != number or state.epoch != me.epoch
        missing = self.has("winners are prepared") and not set(me.winners) <= state.prepared
        if fenced and self.has("fence in the decision"):
            yield "is fenced at its decision", self._with(state, number, Driver("done"))
        elif missing:
            yield "misses a winner", self._again(state, number, me)
        elif not self.has("decision before commits"):
            yield "decides nothing and commits", self._with(state, number, replace(me, step="commit parts"))
        elif state.decision is None and not state.committed:
            yield "locks the fence, with its decision", self._with(state, number, replace(me, step="holds fence"))

    def _commit_parts(self, state: State, number: int, me: Driver) -> Iterator[tuple[str, State]]:
        winners = state.decision if state.decision is not None else me.winners
        for part in winners:
            if part in state.prepared:
                yield f"commits part {part.part}", self._commit_part(state, part)
                return
        yield "has committed the parts", self._with(state, number, replace(me, step="finish"))

    def _finish(self, state: State, number: int, me: Driver) -> Iterator[tuple[str, State]]:
        fenced = state.newest != number or state.epoch != me.epoch
        step, after = self._finished(state, me.winners)
        if fenced and step == "finishes the batch" and self.has("fence at the end"):
            yield "is fenced at the end", self._with(state, number, Driver("done"))
        else:
            yield step, self._with(after, number, replace(me, step="look"))

    def _finished(self, state: State, known: tuple[Part, ...]) -> tuple[str, State]:
        """Clause 4: what its one transaction does, whoever runs it."""
        winners = state.decision if state.decision is not None else known
        only_decided = self.has("decision before commits") and self.has("finished from decided only")
        if state.decision is None and only_decided:
            return "finds it finished", state
        if self.has("part rows before committed") and not {part.name for part in winners} <= state.part_rows:
            return "stops: a part is gone", replace(state, stopped=True)
        return "finishes the batch", replace(state, committed=True, decision=None, part_rows=frozenset())

    # -- small things --------------------------------------------------------------------------------------------------

    @staticmethod
    def _commit_part(state: State, part: Part) -> State:
        return replace(
            state,
            prepared=state.prepared - {part},
            target=tuple(sorted((*state.target, row_of(part.part, part.number)))),
            part_rows=state.part_rows | {part.name},
        )

    @staticmethod
    def _with(state: State, number: int, driver: Driver) -> State:
        first, second = state.drivers
        return replace(state, drivers=(driver, second) if number == 1 else (first, driver))

    @staticmethod
    def _becomes(state: State, task: Task, step: str) -> State:
        return replace(state, tasks=state.tasks - {task} | {replace(task, step=step)})
