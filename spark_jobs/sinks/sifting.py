"""Numbered rows of a table are brought on by a function of the server, which tells the refused ones. Executor side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from spark_jobs.sinks.copying import sqlstate
from spark_jobs.sinks.cursor import Cursor
from spark_jobs.sinks.refused import Refusal, refusal_of

_SAVEPOINT = "etl_sift"
# Insufficient privilege (no TEMP, no plpgsql), no such language, a feature that a pooler or a standby does not have, a
# table with as many columns as one may have, an event trigger that lets nobody make functions.
_NOT_ALLOWED = ("42501", "42704", "0A000", "54011", "P0001")

Refuse = Callable[[Sequence[tuple[int, Refusal]]], None]
"""Takes the numbers of some refused rows, and what the server said of each."""


@dataclass(frozen=True, slots=True)
class SiftText:
    """The statements, rendered (:mod:`spark_jobs.sinks.sift_text`).

    :param create: make the function, and what it needs. :param drop: remove them.
    :param sift: brings the rows on; its parameters are the number to begin with, the last one, and how many to try at
        once. Answers the refused rows, and at the end, without a SQLSTATE, the next number to begin with or NULL, how
        many rows have landed, and how many to try at once.
    """

    create: tuple[str, ...]
    sift: str
    drop: tuple[str, ...]


def made(cursor: Cursor, statements: Sequence[str]) -> bool:
    """Make what sifting needs; return whether this session may."""

    def make() -> None:
        for statement in statements:
            cursor.run(statement)

    error = cursor.tried(_SAVEPOINT, make)
    if error is not None and sqlstate(error) not in _NOT_ALLOWED:
        raise error
    return error is None


def sifted(cursor: Cursor, statement: str, last: int, refuse: Refuse, *, at_once: int | None = None) -> int:
    """Bring the rows on; return how many landed.

    :param statement: see :attr:`SiftText.sift`. :param last: the highest number.
    :param at_once: how many to try at once first; all by default.
    """
    begin, step, landed = "1", str(at_once or last), 0
    while begin:
        *answers, end = cursor.execute(statement, (begin, str(last), step))
        if answers:
            refuse([(int(line), refusal_of(*said)) for line, *said in answers])
        begin, landed, step = str(end[0] or ""), landed + int(end[2]), str(end[3])
    return landed
