"""Of a replay: what becomes of dead letters in the transaction that writes their rows. Executor side.

The letters' own rows are the fence: a letter comes home only while it belongs to the replay, and together with its row
in the target. Whoever took it away in between makes the whole micro-batch roll back.
"""

from __future__ import annotations

from dataclasses import dataclass

from spark_jobs.contracts.errors import DeadLettersTakenError
from spark_jobs.sinks.cursor import Cursor


@dataclass(frozen=True, slots=True)
class Settling:
    """The letters of one micro-batch of a replay, by statements that the driver rendered.

    :param letters: how many they are. :param take: of a dry run: marks them as this transaction's.
    :param home: brings those home that did not fail again, and answers how many.
    :param all_home: answers, as JSON, what became of all of them when none failed again.
    :param outcome: answers it in any case.
    :param unmark: of a redrive: forgets that its records may have been sent without their letters knowing it.
    """

    letters: int
    take: tuple[str, ...]
    home: str
    all_home: str
    outcome: str
    dry_run: bool
    unmark: str = ""


def take_letters(cursor: Cursor, settling: Settling) -> None:
    """Begin: a dry run takes its letters in the transaction that it will roll back, another has them already."""
    if settling.dry_run:
        for statement in settling.take:
            cursor.run(statement)


def settle_letters(cursor: Cursor, settling: Settling, *, failed: int) -> str:
    """Bring the letters home whose rows are written; return what became of all, as JSON.

    :param failed: how many failed again; they were given back before.
    :raises DeadLettersTakenError: not all of the others are this replay's any more; nothing is to be committed.
    """
    home = int(cursor.scalar(settling.home))
    if home != settling.letters - failed:
        raise DeadLettersTakenError(
            "Dead letters were taken from the replay while it ran",
            found=f"{home} of {settling.letters - failed} letters still belong to it",
            expected="all of them: they come home with their rows, or not at all",
            cure="Nothing of the micro-batch was written. Another replay, a discard or a release has taken them; "
            "look at `etl-pipeline dead-letters list`, and replay what is still pending",
        )
    if settling.unmark:
        cursor.run(settling.unmark)
    return str(cursor.scalar(settling.outcome if failed else settling.all_home))
