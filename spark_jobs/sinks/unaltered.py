"""That the target is still the table that the run has looked at: asked in each transaction that writes to it.

COPY sends bytes without their types, and the plan of a write rests on the table's columns and triggers. By the time of
the question the transaction has written to the table, and so keeps everybody from altering it until it ends; partitions
may still be attached. Executor side: without psycopg.
"""

from __future__ import annotations

from dataclasses import dataclass

from spark_jobs.contracts.errors import TargetAlteredError
from spark_jobs.sinks.cursor import Cursor


@dataclass(frozen=True, slots=True)
class TableState:
    """What a table was like, as a digest of the server's catalogue.

    :param question: the statement that answers the digest.
    """

    table: str
    question: str
    answer: str


def require_unaltered(cursor: Cursor, state: TableState) -> None:
    """Return if the table is what it was.

    :raises TargetAlteredError: it was altered, dropped or replaced since; the transaction must not commit.
    """
    if cursor.scalar(state.question) != state.answer:
        raise altered(state.table, "other columns, triggers or row-level security than at the run's start")


def altered(table: str, found: str) -> TargetAlteredError:
    """Return the error of a run whose target is not what it was."""
    return TargetAlteredError(
        f"The table {table} was altered while the run was writing to it",
        found=found,
        expected="the table that the run has looked at: COPY would put its bytes into columns of another type",
        cure="Nothing of the micro-batch was written. Run the pipeline again, which looks at the table anew",
    )
