"""Refused rows are found inside the server: rows wait in a table of their own, and a function there brings them on.

A row that the target refuses costs no COPY of its own then, but some microseconds of the server; how they are found
says :mod:`spark_jobs.sinks.sift_text`. Table and function are temporary, or made and dropped by the transaction that
writes, where it will be prepared: nobody else ever sees them. A role may not be allowed to make them. Executor side.

Before that a probe (:mod:`spark_jobs.sinks.probe`) tells which rows are in doubt: only they need the sieve, as long as
the others are all taken.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute

from spark_jobs.sinks.cursor import Cursor
from spark_jobs.sinks.plain_arrow import flags, longs
from spark_jobs.sinks.probe import Probe, ProbeText
from spark_jobs.sinks.sifting import Refuse, made, sifted

# pyarrow makes these functions when it is imported; no stub knows them.
pc: Any = pyarrow.compute


@dataclass(frozen=True, slots=True)
class SieveText:
    """The statements of a sieve, rendered.

    :param schema: ``pg_temp``, or a lasting one. :param table: there: the target's columns, which demand nothing, and
        ``line``. :param line: its number.
    :param create: makes table and function. :param analyze: tells the server that the lines are in order.
    :param not_null: columns in which NULL is in doubt. :param probe: asks for other rows in doubt, if there is a way.
    :param sift: brings the rows on (:class:`spark_jobs.sinks.sifting.SiftText`).
    :param empty: removes all rows. :param drop: removes what would outlive the transaction.
    :param mark: what each part replaces by a name of its own (:meth:`of`), where names are everybody's.
    """

    schema: str
    table: str
    line: str
    create: tuple[str, ...]
    analyze: str
    sift: str
    empty: str
    drop: tuple[str, ...]
    mark: str = ""
    not_null: tuple[str, ...] = ()
    probe: ProbeText | None = None

    @property
    def asks(self) -> bool:
        """Whether anything can be asked beforehand."""
        return bool(self.not_null or self.probe)

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
            analyze=own(self.analyze),
            sift=own(self.sift),
            empty=own(self.empty),
            drop=tuple(map(own, self.drop)),
            mark="",
            probe=self.probe.renamed(own) if self.probe else None,
        )


@dataclass(slots=True)
class Sieve:
    """The sieve of one transaction."""

    cursor: Cursor
    text: SieveText
    _is_open: bool = field(default=False)
    _is_new: bool = field(default=True)
    _probe: Probe | None = field(default=None)

    def open(self) -> bool:
        """Make it, if it is not there; return whether this session may have one."""
        if not self._is_open and made(self.cursor, self.text.create):
            self._is_open = True
            self._probe = Probe(self.cursor, self.text.probe) if self.text.probe else None
        return self._is_open

    def doubted(self, rows: pa.Table) -> pa.Array:
        """Return for each row whether it is likely to be refused."""
        lines = set(self._probe.lines(rows)) if self._probe else set[int]()
        for name in self.text.not_null:
            column = rows.column(name)
            if column.null_count:
                lines.update(number for number, empty in enumerate(column.is_null().to_pylist(), start=1) if empty)
        return flags(lines, rows.num_rows)

    def numbered(self, rows: pa.Table, doubted: pa.Array) -> pa.Table:
        """Return the rows as the sieve takes them: with their lines, from 1, of those in doubt below 0."""
        lines = longs(range(1, rows.num_rows + 1))
        return rows.append_column(self.text.line, pc.if_else(doubted, pc.negate(lines), lines))

    def sift(self, last: int, refuse: Refuse) -> int:
        """Bring the rows in the sieve on, and empty it; return how many landed.

        :param last: the last row's line. :param refuse: is called with the lines of refused rows.
        """
        if self._is_new:
            # Else the server might sort the rest of the rows for each that it refuses.
            self.cursor.run(self.text.analyze)
            self._is_new = False
        landed = sifted(self.cursor, self.text.sift, last, refuse)
        self.cursor.run(self.text.empty)
        return landed

    def close(self) -> None:
        """Remove what would outlive the transaction: behind a pooler the session does."""
        if self._is_open:
            for statement in self.text.drop:
                self.cursor.run(statement)
            self._is_open = False
