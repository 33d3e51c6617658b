"""Bring staged rows into the target: one statement for a healthy batch, row by row where PostgreSQL refuses some."""

from __future__ import annotations

from dataclasses import dataclass

from spark_jobs.sinks.by_rows import RowsMerge, RowsText
from spark_jobs.sinks.cursor import Cursor
from spark_jobs.sinks.refused import RefusedRows


@dataclass(frozen=True, slots=True)
class MergeText:
    """The statements of one merge, rendered.

    :param lock: what is asked for before; empty when nothing is.
    :param whole: one statement for a healthy batch.
    :param answers: whether it answers the number of rows it wrote; else it is the number of rows it affected.
    :param rows: finds the rows that are refused.
    :param audit: the question how many rows were left out that may not be (:mod:`spark_jobs.sinks.merge_audit`). Empty
        where nothing suppresses rows; None where no row at all may be left out. :param present: the question before it.
    """

    whole: str
    answers: bool
    rows: RowsText
    audit: str | None
    lock: str = ""
    present: str = ""


@dataclass(frozen=True, slots=True)
class Merger:
    """Applies one merge in the open transaction of ``cursor``.

    :param refused: where refused rows go; None lets the first one fail the merge.
    :param refuses: whether it is known to refuse some: then it is not tried as a whole first.
    """

    cursor: Cursor
    merge: MergeText
    refused: RefusedRows | None
    refuses: bool = False

    def begin(self) -> int:
        """Take the lock; return how many keys are there already, where that will be asked."""
        if self.merge.lock:
            self.cursor.run(self.merge.lock)
        return int(self.cursor.scalar(self.merge.present)) if self.merge.present else 0

    def apply(self) -> int:
        """Return how many rows were written."""
        if self.refused is None:
            whole = self.merge.whole
            return int(self.cursor.scalar(whole)) if self.merge.answers else self.cursor.run(whole)
        rows = RowsMerge(self.cursor, self.merge.rows, self.refused)
        if not self.refuses:
            said, written = rows.attempt(self.merge.whole)
            if said is None:
                return written
        return rows.apply(failed=not self.refuses)

    def suppressed(self, left: int, written: int, refused: int, present: int) -> int:
        """Return how many of the ``left`` rows, which were neither written nor refused, may not be left out.

        :param present: what :meth:`begin` answered.
        """
        if self.merge.audit is None or not left:
            return left
        if not self.merge.audit:
            return 0
        return max(int(self.cursor.scalar(self.merge.audit.format(written=written, present=present))) - refused, 0)
