"""Find the rows of a merge that PostgreSQL refuses: each becomes a dead letter, the others land. Executor side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spark_jobs.sinks.copying import sqlstate
from spark_jobs.sinks.cursor import Cursor
from spark_jobs.sinks.origins import event_time_text, staged_origin
from spark_jobs.sinks.refused import ABOUT_THE_QUESTION, Refusal, RefusedRows, refusal
from spark_jobs.sinks.sifting import SiftText, made, sifted

_SAVEPOINT = "etl_merge"


@dataclass(frozen=True, slots=True)
class RowsText:
    """The statements, rendered.

    :param aside: turn the sign of the numbers of staged rows that are likely to be refused; empty where that cannot be
        asked of staged rows. :param rest: brings in the others.
    :param order_aside: make ``etl_ordered`` of the rows that were set aside: numbered below 0.
    :param order: make it of all rows that the merge would write: numbered from 1, below 0 those that were set aside.
    :param doubts: turn the sign of the numbers of rows there that are likely to be refused.
    :param count: asks how many rows there are, and how many with numbers below 0.
    :param part: merges a span between the ordinals ``{first}`` and ``{last}``.
    :param answers: whether it answers the number of rows it wrote; else it is the number of rows it affected.
    :param doubted: asks for the next of the numbers below ``{after}``.
    :param row: ordinal, data columns as JSON, and origin, of the rows ``{ordinals}``.
    :param sift: brings all of them on within the server; None where their number is only answered.
    """

    aside: tuple[str, ...]
    rest: str
    order_aside: tuple[str, ...]
    order: tuple[str, ...]
    doubts: tuple[str, ...]
    count: str
    part: str
    answers: bool
    doubted: str
    row: str
    sift: SiftText | None


@dataclass(slots=True)
class RowsMerge:
    """Merges the rows that there are in the open transaction of ``cursor``; refused ones go to ``refused``."""

    cursor: Cursor
    text: RowsText
    refused: RefusedRows

    def apply(self, *, failed: bool) -> int:
        """Return how many rows were written.

        :param failed: whether it has failed as a whole.
        """
        if sum([self._doubt(statement) for statement in self.text.aside]):
            # Without what is set aside the others may well be taken as a whole.
            said, written = self.attempt(self.text.rest)
            if said is None:
                self.refused.see(written)
                return written + self._in_order(self.text.order_aside, failed=False)
        return self._in_order(self.text.order, failed=failed)

    def attempt(self, statement: str) -> tuple[Refusal | None, int]:
        """Run a statement of the merge; return what is said of a row, or how many were written."""
        written = 0

        def write() -> None:
            nonlocal written
            written = int(self.cursor.scalar(statement)) if self.text.answers else self.cursor.run(statement)

        error = self.cursor.tried(_SAVEPOINT, write)
        if error is None:
            return None, written
        said = refusal(error)
        if said is None:
            raise error
        return said, 0

    def _in_order(self, order: Sequence[str], *, failed: bool) -> int:
        for statement in order:
            self.cursor.run(statement)
        [(count, aside)] = self.cursor.execute(self.text.count)
        self.refused.see(count)
        if not count:
            return 0
        aside += sum([self._doubt(statement) for statement in self.text.doubts])
        as_whole = aside or not failed
        if self.text.sift is not None and made(self.cursor, self.text.sift.create):
            at_once = count if as_whole else (count + 1) // 2
            written = sifted(self.cursor, self.text.sift.sift, count, self._refuse, at_once=at_once)
            for statement in self.text.sift.drop:
                self.cursor.run(statement)
            return written
        return (self._span(1, count) if as_whole else self._halves(1, count)) + (self._alone() if aside else 0)

    def _doubt(self, statement: str) -> int:
        doubted = 0

        def ask() -> None:
            nonlocal doubted
            doubted = self.cursor.run(statement)

        error = self.cursor.tried(_SAVEPOINT, ask)
        # Not allowed to look there, or types that do not compare: the rows are found without.
        if error is not None and sqlstate(error)[:2] not in ABOUT_THE_QUESTION:
            raise error
        return doubted

    def _alone(self) -> int:
        """Try each row that was set aside."""
        written, after = 0, 0
        while ordinals := [int(one) for (one,) in self.cursor.execute(self.text.doubted.format(after=after))]:
            written += sum(self._span(ordinal, ordinal) for ordinal in ordinals)
            after = ordinals[-1]
        return written

    def _span(self, first: int, last: int) -> int:
        said, written = self.attempt(self.text.part.format(first=first, last=last))
        if said is None:
            return written
        if first == last:
            self._refuse([(abs(first), said)])
            return 0
        return self._halves(first, last)

    def _halves(self, first: int, last: int) -> int:
        # The span as a whole has failed, or is the whole batch, which has.
        if first == last:
            return self._span(first, last)
        middle = (first + last) // 2
        return self._span(first, middle) + self._span(middle + 1, last)

    def _refuse(self, answers: Sequence[tuple[int, Refusal]]) -> None:
        said = dict(answers)
        ordinals = ", ".join(f"{line}, -{line}" for line in said)
        for ordinal, row, source, event_time, *raw in self.cursor.execute(self.text.row.format(ordinals=ordinals)):
            origin = staged_origin(source, raw)
            self.refused.add(said[ordinal], str(row), origin, event_time_text(event_time))
