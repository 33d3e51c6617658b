"""Bring staged rows into the target: one statement for a healthy batch, halving where PostgreSQL refuses rows."""

from __future__ import annotations

from dataclasses import dataclass

from spark_jobs.sinks.copying import sqlstate
from spark_jobs.sinks.cursor import Cursor, Error
from spark_jobs.sinks.origins import stored_origin
from spark_jobs.sinks.refused import ABOUT_THE_QUESTION, Refusal, RefusedRows, refusal

_SAVEPOINT = "etl_merge"


@dataclass(frozen=True, slots=True)
class MergeText:
    """The statements of one merge, rendered.

    :param lock: what is asked for before; empty when nothing is.
    :param whole: one statement for a healthy batch. :param part: the same for a span of ``etl_ordered``, between the
        ordinals ``{first}`` and ``{last}``.
    :param answers: whether these answer the number of rows they wrote; else it is the number of rows they affected.
    :param order: make ``etl_ordered``: the rows that ``whole`` would write, numbered from 1.
    :param doubts: turn the sign of the numbers of rows that are likely to be refused. :param doubted: asks for the next
        of these numbers below ``{after}``.
    :param row: data columns as JSON, and origin, of the row ``{first}``.
    :param audit: the question how many rows were left out that may not be (:mod:`spark_jobs.sinks.merge_audit`). Empty
        where nothing suppresses rows; None where no row at all may be left out. :param present: the question before it.
    """

    whole: str
    part: str
    answers: bool
    order: tuple[str, ...]
    doubts: tuple[str, ...]
    count: str
    row: str
    audit: str | None
    lock: str = ""
    present: str = ""
    doubted: str = ""


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
            return self._answer(self.merge.whole)
        if not self.refuses:
            said, written = self._try(self.merge.whole)
            if said is None:
                return written
        for statement in self.merge.order:
            self.cursor.run(statement)
        count = int(self.cursor.scalar(self.merge.count))
        self.refused.see(count)
        if not count:
            return 0
        doubted = sum([self._doubt(statement) for statement in self.merge.doubts])
        # Without what is set aside the others may well be taken as a whole.
        written = self._span(1, count) if doubted or self.refuses else self._halves(1, count)
        return written + (self._alone() if doubted else 0)

    def _doubt(self, statement: str) -> int:
        self.cursor.run(f"SAVEPOINT {_SAVEPOINT}")
        try:
            doubted = self.cursor.run(statement)
        except Error as error:
            # Not allowed to look there, or types that do not compare: the rows are found without.
            if sqlstate(error)[:2] not in ABOUT_THE_QUESTION:
                raise
            self.cursor.run(f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}")
            doubted = 0
        self.cursor.run(f"RELEASE SAVEPOINT {_SAVEPOINT}")
        return doubted

    def _alone(self) -> int:
        """Try each row that was set aside."""
        written, after = 0, 0
        while ordinals := [int(one) for (one,) in self.cursor.execute(self.merge.doubted.format(after=after))]:
            written += sum(self._span(ordinal, ordinal) for ordinal in ordinals)
            after = ordinals[-1]
        return written

    def suppressed(self, left: int, written: int, refused: int, present: int) -> int:
        """Return how many of the ``left`` rows, which were neither written nor refused, may not be left out.

        :param present: what :meth:`begin` answered.
        """
        if self.merge.audit is None or not left:
            return left
        if not self.merge.audit:
            return 0
        return max(int(self.cursor.scalar(self.merge.audit.format(written=written, present=present))) - refused, 0)

    def _span(self, first: int, last: int) -> int:
        said, written = self._try(self.merge.part.format(first=first, last=last))
        if said is None:
            return written
        if first == last:
            self._refuse(first, said)
            return 0
        return self._halves(first, last)

    def _halves(self, first: int, last: int) -> int:
        # The span as a whole has failed, or is the whole batch, which has.
        if first == last:
            return self._span(first, last)
        middle = (first + last) // 2
        return self._span(first, middle) + self._span(middle + 1, last)

    def _try(self, statement: str) -> tuple[Refusal | None, int]:
        self.cursor.run(f"SAVEPOINT {_SAVEPOINT}")
        try:
            written = self._answer(statement)
        except Error as error:
            said = refusal(error)
            if said is None:
                raise
            self.cursor.run(f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}")
            self.cursor.run(f"RELEASE SAVEPOINT {_SAVEPOINT}")
            return said, 0
        self.cursor.run(f"RELEASE SAVEPOINT {_SAVEPOINT}")
        return None, written

    def _answer(self, statement: str) -> int:
        return int(self.cursor.scalar(statement)) if self.merge.answers else self.cursor.run(statement)

    def _refuse(self, ordinal: int, said: Refusal) -> None:
        [(row, origin)] = self.cursor.execute(self.merge.row.format(first=ordinal))
        if self.refused is not None:
            self.refused.add(said, str(row), stored_origin(origin))
