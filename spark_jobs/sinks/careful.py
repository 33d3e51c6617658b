"""COPY that goes through refused rows: each becomes a dead letter, the others land, in one transaction.

Rows are buffered up to a bound and copied under a savepoint. Where the server names the line, the rows are split there;
where it does not (foreign keys), the range is halved. After a refused row the ranges start small and double, so that k
refused rows in n cost about k·log n statements, and each row is sent a bounded number of times. Where there are more
than a few, the rows go through a sieve (:mod:`spark_jobs.sinks.sieve`), if the session may have one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute

from spark_jobs.faults import reach
from spark_jobs.sinks.arrow_values import value_of
from spark_jobs.sinks.copying import chunks, copy_once
from spark_jobs.sinks.cursor import Cursor
from spark_jobs.sinks.origins import Origin, carried_origin, origin_arrays
from spark_jobs.sinks.refused import Refusal, RefusedRows, has_odd_document, refusal, row_text
from spark_jobs.sinks.sieve import Sieve
from spark_jobs.sinks.sorting import ALONG, EVENT_TIME, RAW, SOURCE

# pyarrow makes these functions when it is imported; no stub knows them.
pc: Any = pyarrow.compute

_SMALLEST = 64
_SAVEPOINT = "etl_rows"
# While the server looks for refused rows in as much, Spark can make as much (reading_ahead).
_CHUNK_BYTES = 8 << 20
# So many refused rows are found by COPY: a sieve costs as much to make.
_FEW = 4
# A key that another row has, or a range that overlaps its: unique and exclusion constraints.
_OF_TWO_ROWS = ("23505", "23P01")


@dataclass(slots=True)
class CarefulCopy:
    """Copies into one table.

    :param bases: the PostgreSQL types of the columns, for the letters.
    :param keep_source: whether the row's origin goes into the table as well.
    :param sieve: how to find many refused rows; None where only COPY can.
    """

    cursor: Cursor
    schema: str
    table: str
    bases: Mapping[str, str]
    refused: RefusedRows
    keep_source: bool = False
    point: str = ""
    sieve: Sieve | None = None
    _before: int = field(default=0)
    _blind: bool = field(default=False)
    _asks: bool = field(default=True)

    def copy(self, batches: Iterable[pa.RecordBatch]) -> int:
        """Copy all rows but the refused ones; return how many landed."""
        landed = 0
        for chunk in chunks(batches, _CHUNK_BYTES):
            rows = pa.Table.from_batches(list(chunk))
            self.refused.see(rows.num_rows)
            count = self.refused.count
            landed += self._rows(rows, (self.schema, self.table), sifts=self.sieve is not None)
            # Where one chunk had many, the next one is expected to.
            self._before = count
            if self.point:
                reach(self.point)
        if self.sieve is not None:
            self.sieve.close()
        return landed

    def _rows(self, rows: pa.Table, into: tuple[str, str], *, sifts: bool) -> int:
        landed, start, step = 0, 0, rows.num_rows
        while start < rows.num_rows:
            if sifts and self._has_sieve():
                return landed + self._sifted(rows.slice(start))
            span = rows.slice(start, step)
            said = self._try(span, into)
            self._blind = said is not None and said.line is None
            if said is None:
                landed += span.num_rows
                start += span.num_rows
                step *= 2
            elif said.line is not None and 0 < said.line <= span.num_rows:
                count = self.refused.count
                landed += self._rows(span.slice(0, said.line - 1), into, sifts=sifts)
                if said.sqlstate in _OF_TWO_ROWS and self.refused.count > count:
                    # The other row of the two may be among the refused ones.
                    start, step = start + said.line - 1, 1
                    continue
                self._refuse(span, said.line - 1, said)
                start += said.line
                step = max(_SMALLEST, said.line * 2)
            elif span.num_rows > 1:
                step = span.num_rows // 2
            else:
                self._refuse(span, 0, said)
                start += 1
                step = _SMALLEST
        return landed

    def _has_sieve(self) -> bool:
        few = self.refused.count - self._before < _FEW
        if self.sieve is None or (few and not self._blind):
            return False
        if not self.sieve.open():
            self.sieve = None
        return self.sieve is not None

    def _sifted(self, rows: pa.Table) -> int:
        sieve = self.sieve
        assert sieve is not None  # noqa: S101 - for the type checker
        doubted = sieve.doubted(rows)
        landed = 0
        if self._asks and sieve.text.asks:
            others = rows.filter(pc.invert(doubted))
            said = self._try(others, (self.schema, self.table)) if others.num_rows else None
            # There is more to be refused for than can be asked.
            self._asks = said is None
            if said is None:
                landed, rows = others.num_rows, rows.filter(doubted)
                doubted = doubted.filter(doubted)
        if not rows.num_rows:
            return landed
        # What no column of such a type can hold is refused here already.
        self._rows(sieve.numbered(rows, doubted), (sieve.text.schema, sieve.text.table), sifts=False)

        def refuse(answers: Sequence[tuple[int, Refusal]]) -> None:
            for line, said in answers:
                self._refuse(rows, line - 1, said)

        return landed + sieve.sift(rows.num_rows, refuse)

    def _try(self, rows: pa.Table, into: tuple[str, str]) -> Refusal | None:
        sent = iter(self._sent(rows).to_batches())
        error = self.cursor.tried(_SAVEPOINT, lambda: copy_once(self.cursor, *into, sent))
        if error is None:
            return None
        said = refusal(error)
        if said is None:
            raise error
        return said

    def _sent(self, rows: pa.Table) -> pa.Table:
        dropped = [name for name in ALONG if name in rows.column_names]
        if not self.keep_source or SOURCE not in dropped:
            return rows.drop_columns(dropped) if dropped else rows
        rest = rows.drop_columns(dropped)
        for name, column in origin_arrays(rows).items():
            rest = rest.append_column(name, column)
        return rest

    def _refuse(self, rows: pa.Table, index: int, said: Refusal) -> None:
        values = _values(rows, index)
        source, raw, event_time = (values.pop(name, None) for name in (SOURCE, RAW, EVENT_TIME))
        origin: Origin = {} if source is None else carried_origin(source, raw)
        data = {name: value for name, value in values.items() if name in self.bases}
        text = None if event_time is None else str(event_time)
        row, odd = row_text(data, self.bases), has_odd_document(data, self.bases)
        self.refused.add(said, row, origin, text, keep_raw=odd)


def _values(rows: pa.Table, index: int) -> dict[str, Any]:
    return {name: value_of(rows.column(name)[index]) for name in rows.column_names}
