"""Which rows the server will probably refuse: asked before they are sent, by the few columns that it depends on.

These columns go into a table of their own, where checks and keys are one question about all rows. What is not in doubt
is copied into the target at once then; only what the server says of the others counts. Executor side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pyarrow as pa

from spark_jobs.sinks.copying import copy_once, sqlstate
from spark_jobs.sinks.cursor import Cursor, Error
from spark_jobs.sinks.plain_arrow import longs
from spark_jobs.sinks.refused import ABOUT_THE_QUESTION, refusal

_SAVEPOINT = "etl_probe"


@dataclass(frozen=True, slots=True)
class ProbeText:
    """The statements of a probe, rendered.

    :param schema: as the sieve's. :param table: there: ``columns`` of the target, which demand nothing, and ``line``.
    :param create: makes it. :param doubts: turn the sign of the lines that are likely to be refused.
    :param doubted: asks for these. :param empty: removes all rows.
    """

    schema: str
    table: str
    line: str
    columns: tuple[str, ...]
    create: str
    doubts: tuple[str, ...]
    doubted: str
    empty: str

    def renamed(self, own: Callable[[str], str]) -> ProbeText:
        """Return the statements with other names in them."""
        return replace(
            self,
            table=own(self.table),
            create=own(self.create),
            doubts=tuple(map(own, self.doubts)),
            doubted=own(self.doubted),
            empty=own(self.empty),
        )


@dataclass(slots=True)
class Probe:
    """The probe of one transaction; its table is there."""

    cursor: Cursor
    text: ProbeText
    _in_vain: set[str] = field(default_factory=set)

    def lines(self, rows: pa.Table) -> list[int]:
        """Return the lines of the rows in doubt, in order; the first row's is 1."""
        asked = [doubt for doubt in self.text.doubts if doubt not in self._in_vain]
        if not asked or not self._filled(rows):
            return []
        for doubt in asked:
            self._ask(doubt)
        found = [int(line) for (line,) in self.cursor.execute(self.text.doubted)]
        self.cursor.run(self.text.empty)
        return found

    def _filled(self, rows: pa.Table) -> bool:
        numbers = longs(range(1, rows.num_rows + 1))
        asked = rows.select(list(self.text.columns)).append_column(self.text.line, numbers)
        error = self.cursor.tried(
            _SAVEPOINT, lambda: copy_once(self.cursor, self.text.schema, self.text.table, iter(asked.to_batches()))
        )
        # What no column of such a type can hold is found with the whole row.
        if error is not None and refusal(error) is None:
            raise error
        return error is None

    def _ask(self, doubt: str) -> None:
        error: Error | None = self.cursor.tried(_SAVEPOINT, lambda: self.cursor.run(doubt))
        if error is None:
            return
        # A check that means the whole row, or fails on one; a table that this role may not read: such rows are found
        # without.
        if sqlstate(error)[:2] not in ABOUT_THE_QUESTION:
            raise error
        self._in_vain.add(doubt)
