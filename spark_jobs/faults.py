"""Named points of a batch's life where a test can let the process die, stop or fail. Standard library only.

Compiled in, but inert: without the environment variable ``ETL_FAULTS_FILE`` a point is one look into the environment.
With it, and while that file exists, a line ``<point>[@<nth>] <action>`` in it fires when the point is reached (for the
nth time in this process):

- ``kill``: SIGKILL to this process;
- ``kill-driver``: SIGKILL to the driver's process group, its JVM among them, and to this process's own (Spark's Python
  workers have one);
- ``stop``: SIGSTOP to this process;
- ``stop-driver``: SIGSTOP to what ``kill-driver`` kills;
- ``fail``: raise an :class:`OSError`.

The file is read at each point, so that a process that runs already can be told. A fault fires once: what fired stands
in the file ``<file>.fired``, which a test can wait for.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

VARIABLE: Final = "ETL_FAULTS_FILE"
DRIVER_VARIABLE: Final = "ETL_FAULTS_DRIVER"
"""The driver's process group, for faults in the processes that it starts."""

POINTS: Final[Mapping[str, str]] = {
    "run.before_claim": "the driver has started, and has asked nobody for the right to commit",
    "run.after_claim": "the driver has its epoch, and has not looked for what older drivers left",
    "run.after_recovery": "what older drivers left is finished or undone, Spark is not asked yet",
    "run.before_end": "all batches are committed, the run's end is not recorded",
    "reprocess.before_first": "the micro-batches are chosen and their source is there, none is done again",
    "reprocess.before_batch": "a micro-batch that is done again has not begun",
    "reprocess.after_removing": "what stood of the micro-batch is removed in its transaction, nothing is written",
    "reprocess.after_batch": "a micro-batch that is done again is committed, the next one has not begun",
    "batch.before_fence": "foreachBatch was called, nothing was asked",
    "batch.after_identity": "the batch is known and not in the ledger, nothing was written",
    "batch.before_second_look": "the server refused rows and all was rolled back; the batch is not begun again",
    "batch.after_commit": "the database has committed, Spark's checkpoint does not know it",
    "single.before_copy": "the transaction is open and empty",
    "single.in_copy": "rows were copied, nothing was committed",
    "single.before_ledger": "all rows are written, the ledger row is not",
    "single.before_commit": "everything is written and the fence's row is locked, COMMIT was not sent",
    "single.after_commit": "COMMIT was answered, the driver does not know it",
    "staged.after_create": "the staging tables exist and are empty",
    "staged.in_copy": "rows were copied into the staging table, the part is not committed",
    "staged.before_part_commit": "the part is complete and not committed",
    "staged.after_part_commit": "the part is committed, the driver does not know it",
    "staged.before_merge": "all parts are staged, the merge has not begun",
    "staged.before_ledger": "the rows are merged, the ledger row is not written",
    "staged.before_commit": "everything is written and the fence's row is locked, COMMIT was not sent",
    "staged.after_commit": "the batch is committed, its staging tables are there",
    "staged.after_drop": "the staging tables are dropped",
    "letters.after_publish": "the dead letters are written elsewhere, the batch that has them is not committed",
    "two_phase.in_copy": "rows were copied into the target, the part is not prepared",
    "two_phase.before_prepare": "the part is complete and not prepared",
    "two_phase.after_prepare": "the part is prepared, its task has not asked whether it lost",
    "two_phase.before_letters_prepare": "the dead letters of an aggregation's batch are written, not prepared",
    "two_phase.after_letters_prepare": "they are prepared as well, and nothing is decided",
    "two_phase.before_decision": "all parts are prepared, nothing is decided",
    "two_phase.before_decision_commit": "the decision is written and the fence's row is locked, COMMIT was not sent",
    "two_phase.after_decision": "the batch is decided, no part is committed",
    "two_phase.between_commits": "some parts are committed",
    "two_phase.before_finish": "all parts are committed, the ledger row is not written",
    "two_phase.before_finish_commit": "the ledger row is written and the fence's row is locked, COMMIT was not sent",
    "two_phase.after_finish": "the batch is committed, Spark does not know it",
    "replay.after_taking": "the replay's letters are its own, none is replayed",
    "replay.before_batch": "a micro-batch of the replay begins, nothing of it is written",
    "replay.after_batch": "its rows and its letters are committed, the driver goes on",
    "redrive.after_mark": "where the topics end is recorded, no record was sent",
    "redrive.after_send": "the records are sent, their letters do not know it",
    "recovery.before_finish": "the next run has committed a decided batch's parts, the ledger row is not written",
    "recovery.before_rollback": "the next run has found parts that nobody decided on",
}
"""Every point, and what is true when it is reached."""

_SIGNALS: Final = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
_reached: Counter[str] = Counter()


def reach(point: str) -> None:
    """Say that a point is reached; does nothing unless a test has asked for a fault there.

    :raises OSError: the fault ``fail``. :raises KeyError: faults are on, and there is no such point.
    """
    file = os.environ.get(VARIABLE)
    if file is not None:
        _reach(point, Path(file))


def _reach(point: str, file: Path) -> None:
    if point not in POINTS:
        raise KeyError(f"no such fault point: {point}")
    _reached[point] += 1
    try:
        lines = file.read_text().split("\n")
    except FileNotFoundError:
        return
    for line in lines:
        where, _, action = line.strip().partition(" ")
        name, _, nth = where.partition("@")
        if name == point and _reached[point] == int(nth or 1) and _first(file, line.strip()):
            _act(action.strip(), point)


def _first(file: Path, line: str) -> bool:
    # Exclusive creation: of two tasks that come here at once one fires.
    try:
        os.close(os.open(f"{file}.{line.replace(' ', '.')}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    with Path(f"{file}.fired").open("a") as fired:
        fired.write(f"{line}\n")
    return True


def _act(action: str, point: str) -> None:
    if action == "fail":
        raise OSError(f"fault at {point}")
    number = _SIGNALS.get(action.removesuffix("-driver"))
    if number is None:
        raise ValueError(f"no such fault: {action!r}")
    if action.endswith("-driver"):
        _signal_driver(number)
    else:
        os.kill(os.getpid(), number)
    # Another thread may be the one that takes the signal: this one must not run on until it has.
    time.sleep(1)


def _signal_driver(number: signal.Signals) -> None:
    own = os.getpgid(0)
    driver = int(os.environ.get(DRIVER_VARIABLE, own))
    if driver != own:
        os.killpg(driver, number)
    os.killpg(own, number)
