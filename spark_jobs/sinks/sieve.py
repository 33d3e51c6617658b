"""Refused rows are found inside the server: rows wait in a table of their own, and a function there brings them on.

A row that the target refuses costs no COPY of its own then, but some microseconds of the server; how they are found
says :mod:`spark_jobs.sinks.sieve_text`. Table and function are temporary, or made and dropped by the transaction that
writes, where it will be prepared: nobody else ever sees them. A role may not be allowed to make them. Executor side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pyarrow as pa

from spark_jobs.sinks.copying import sqlstate
from spark_jobs.sinks.cursor import Cursor, Error
from spark_jobs.sinks.plain_arrow import longs
from spark_jobs.sinks.refused import ABOUT_THE_QUESTION, Refusal, refusal_of

_SAVEPOINT = "etl_sieve"
# Insufficient privilege (no TEMP, no plpgsql), no such language, a feature that a pooler or a standby does not have, a
# table with as many columns as one may have, an event trigger that lets nobody make functions.
_NOT_ALLOWED = ("42501", "42704", "0A000", "54011", "P0001")


@dataclass(frozen=True, slots=True)
class SieveText:
    """The statements of a sieve, rendered.

    :param schema: ``pg_temp``, or a lasting one. :param table: there: the target's columns, which demand nothing, and
        ``line``. :param line: its number.
    :param create: makes table and function. :param doubts: turn the sign of the lines that are likely to be refused.
    :param analyze: tells the server that the lines are in order.
    :param sift: brings the rows on; its parameters are the line to begin with, the last one, and how many to try at
        once. Answers the refused rows, and at the end, without a SQLSTATE, the next line to begin with or NULL, how
        many rows have landed, and how many to try at once.
    :param empty: removes all rows. :param drop: removes what would outlive the transaction.
    :param mark: what each part replaces by a name of its own (:meth:`of`), where names are everybody's.
    """

    schema: str
    table: str
    line: str
    create: tuple[str, ...]
    doubts: tuple[str, ...]
    analyze: str
    sift: str
    empty: str
    drop: tuple[str, ...]
    mark: str = ""

    def of(self, part: int, attempt: int) -> SieveText:
        """Return the statements of one attempt at a part: no two transactions may wait for each other's names."""
        if not self.mark:
            return self

        def own(text: str) -> str:
            return text.replace(self.mark, f"{self.mark}_{part}_{attempt}")

        return replace(
            self,
            table=own(self.table),
            create=tuple(map(own, self.create)),
            doubts=tuple(map(own, self.doubts)),
            analyze=own(self.analyze),
            sift=own(self.sift),
            empty=own(self.empty),
            drop=tuple(map(own, self.drop)),
            mark="",
        )


@dataclass(slots=True)
class Sieve:
    """The sieve of one transaction."""

    cursor: Cursor
    text: SieveText
    _is_open: bool = field(default=False)
    _is_new: bool = field(default=True)
    _in_vain: set[str] = field(default_factory=set)

    def open(self) -> bool:
        """Make it, if it is not there; return whether this session may have one."""
        if self._is_open:
            return True
        error = self._tried(*self.text.create)
        if error is None:
            self._is_open = True
        elif sqlstate(error) not in _NOT_ALLOWED:
            raise error
        return self._is_open

    def numbered(self, rows: pa.Table) -> pa.Table:
        """Return the rows as the sieve takes them: with their lines, from 1."""
        return rows.append_column(self.text.line, longs(range(1, rows.num_rows + 1)))

    def sift(self, last: int, refuse: Callable[[int, Refusal], None]) -> int:
        """Bring the rows in the sieve on, and empty it; return how many landed.

        :param last: the last row's line. :param refuse: is called with each refused row's line.
        """
        if self._is_new:
            # Else the server might sort the rest of the rows for each that it refuses.
            self.cursor.run(self.text.analyze)
            self._is_new = False
        for doubt in self.text.doubts:
            self._doubt(doubt)
        begin, step, landed = "1", str(last), 0
        while begin:
            *answers, end = self.cursor.execute(self.text.sift, (begin, str(last), step))
            for line, *said in answers:
                refuse(int(line), refusal_of(*said))
            begin, landed, step = str(end[0] or ""), landed + int(end[2]), str(end[3])
        self.cursor.run(self.text.empty)
        return landed

    def _doubt(self, doubt: str) -> None:
        if doubt in self._in_vain:
            return
        error = self._tried(doubt)
        if error is None:
            return
        # A check that means the whole row, or fails on one; a table that this role may not read: the function finds
        # the rows without.
        if sqlstate(error)[:2] not in ABOUT_THE_QUESTION:
            raise error
        self._in_vain.add(doubt)

    def _tried(self, *statements: str) -> Error | None:
        self.cursor.run(f"SAVEPOINT {_SAVEPOINT}")
        try:
            for statement in statements:
                self.cursor.run(statement)
        except Error as error:
            if not sqlstate(error):
                raise
            self.cursor.run(f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}")
            return error
        self.cursor.run(f"RELEASE SAVEPOINT {_SAVEPOINT}")
        return None

    def close(self) -> None:
        """Remove what would outlive the transaction: behind a pooler the session does."""
        if self._is_open:
            for statement in self.text.drop:
                self.cursor.run(statement)
            self._is_open = False
