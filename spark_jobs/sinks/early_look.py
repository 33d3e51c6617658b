"""A merge that would fail fails soon: a large part's first rows are looked at before the others are staged.

A foreign key fails a merge when all rows are written, and they were all staged before: what is bad in all places would
take two thirds of a batch's time to be seen. The part asks which of its first rows the target's keys will probably
refuse, and tries one of them: what the server says then fails the part, as it would have failed the merge. Where it
takes the row, or nothing can be asked, the part goes on as if nothing had been. Executor side.
"""

from __future__ import annotations

from dataclasses import dataclass

from spark_jobs.sinks.copying import sqlstate
from spark_jobs.sinks.cursor import Cursor
from spark_jobs.sinks.parts import MERGE, ROWS, PartReport
from spark_jobs.sinks.refused import ABOUT_THE_QUESTION

_LOOK = "etl_look"
_QUESTION = "etl_question"


@dataclass(frozen=True, slots=True)
class EarlyLook:
    """The statements, rendered.

    :param aside: turn the sign of the numbers of staged rows that are likely to be refused.
    :param one: writes one of these to the target.
    """

    aside: tuple[str, ...]
    one: str

    def __call__(self, cursor: Cursor, report: PartReport) -> None:
        """Return if no row that is staged now is known to be refused; all is as it was then.

        :raises Error: what the server says of a row; the report says that it is the merge's fault.
        """
        cursor.run(f"SAVEPOINT {_LOOK}")
        if self._doubts(cursor):
            report.doing = MERGE
            cursor.run(self.one)
            report.doing = ROWS
        cursor.run(f"ROLLBACK TO SAVEPOINT {_LOOK}")
        cursor.run(f"RELEASE SAVEPOINT {_LOOK}")

    def _doubts(self, cursor: Cursor) -> bool:
        found = 0

        def ask() -> None:
            nonlocal found
            found = sum([cursor.run(statement) for statement in self.aside])

        error = cursor.tried(_QUESTION, ask)
        # Not allowed to look there, or types that do not compare.
        if error is not None and sqlstate(error)[:2] not in ABOUT_THE_QUESTION:
            raise error
        return error is None and found > 0
