"""What the tasks' reports say, as errors of the driver."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from spark_jobs.contracts.errors import (
    BooksDoNotBalanceError,
    CheckpointMismatchError,
    DataError,
    DeadLetterRefusedError,
    DeadLettersTakenError,
    EtlError,
    ExecutorsNotReadyError,
    FencedError,
    LedgerConflictError,
    ReprocessRefusedError,
    RowsSuppressedError,
    TargetAlteredError,
    TooManyDeadLettersError,
    TransientError,
    TwoPhaseUnavailableError,
)
from spark_jobs.contracts.tracker.connect import classify_state
from spark_jobs.sinks import parts
from spark_jobs.sinks.committing import LettersFoundError
from spark_jobs.sinks.parts import PartReport
from spark_jobs.sinks.single import refused_rows

# What a task found out by itself comes back by its name, in the place of the SQLSTATE.
_FROM_TASKS: tuple[type[EtlError], ...] = (
    BooksDoNotBalanceError,
    CheckpointMismatchError,
    DeadLettersTakenError,
    DeadLetterRefusedError,
    EtlError,
    ExecutorsNotReadyError,
    FencedError,
    LedgerConflictError,
    LettersFoundError,
    ReprocessRefusedError,
    RowsSuppressedError,
    TargetAlteredError,
    TooManyDeadLettersError,
    TransientError,
)
_BY_NAME = {kind.__name__: kind for kind in _FROM_TASKS}
_CANNOT_PREPARE = ("0A000", "55000")
_NO_SLOT = "53200"


class RowsRefusedError(DataError):
    """The target refused a row of a batch: it is written again with more care.

    :ivar in_merge: whether it was the merge that was refused, and not a COPY.
    """

    in_merge = False


def read_reports(rows: Iterable[Any]) -> list[PartReport]:
    """Read the collected reports of a batch's tasks."""
    return PartReport.read(row.asDict() for row in rows)


def raise_for(report: PartReport) -> None:
    """Raise the error that ended a part; return when there was none."""
    if report.state != parts.FAILED:
        return
    if report.sqlstate in _BY_NAME:
        told = json.loads(report.message)
        raise _BY_NAME[report.sqlstate](told["what"], found=told["found"], expected=told["expected"], cure=told["cure"])
    if refused_rows(report):
        error = RowsRefusedError(
            f"The target refused a row of part {report.part} of the micro-batch", found=report.message
        )
        error.in_merge = report.doing == parts.MERGE
        raise error
    if report.doing == parts.PREPARE:
        refused = cannot_prepare(report.sqlstate, f"Part {report.part} of the micro-batch", report.message)
        if refused is not None:
            raise refused
    raise classify_state(report.sqlstate, f"Writing part {report.part} of the micro-batch", report.message)


def cannot_prepare(state: str, what: str, found: str) -> EtlError | None:
    """Return the error of a transaction that the server would not prepare; None where the SQLSTATE says another thing.

    :param what: what was to be prepared.
    """
    if state in _CANNOT_PREPARE:
        return TwoPhaseUnavailableError(
            f"{what} could not be prepared",
            found=found,
            expected="a transaction that can be prepared: max_prepared_transactions above 0, and no trigger of the "
            "target that notifies, listens or uses temporary tables",
            cure="Use auto, single or staged as load.writeStrategy, which are exactly once as well",
        )
    if state == _NO_SLOT:
        return TransientError(
            f"{what} could not be prepared: no free slot",
            found=found,
            expected="max_prepared_transactions with room for each part of each batch under way",
            cure="Raise max_prepared_transactions, lower load.writeParallelism, or look at "
            "`etl-pipeline prepared list`",
        )
    return None
