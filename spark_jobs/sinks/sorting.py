"""Executor side: split Arrow batches by outcome, and count. Imports nothing but pyarrow, so that any executor can."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute

from spark_jobs.contracts.errors import DeadLetterRefusedError
from spark_jobs.sinks.plain_arrow import tiny

# pyarrow makes these functions when it is imported; no stub knows them.
pc: Any = pyarrow.compute

# The names of spark_jobs.rows, which imports pyspark and therefore stays out of here.
OUTCOME = "__outcome"
LETTER = "__letter"
EVENT_TIME = "__event_time"
SOURCE = "__source"
RAW = "__raw"
ALONG = (SOURCE, RAW, EVENT_TIME)
"""What comes along with a row, for its dead letter."""
_PASSED, _DEAD, _FILTERED, _LATE = range(4)
_MEMORY_BYTES = 8 << 20
LETTERS_PER_BATCH = 1000
_EXCERPT = 100


@dataclass(slots=True)
class Tally:
    """Rows by what became of them. Event times are microseconds since 1970, None where there were none."""

    source: int = 0
    passed: int = 0
    dead_lettered: int = 0
    filtered: int = 0
    late: int = 0
    event_time_min: int | None = None
    event_time_max: int | None = None

    def add(self, other: Tally) -> None:
        """Add the counts of another part."""
        for name in ("source", "passed", "dead_lettered", "filtered", "late"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.widen(other.event_time_min, other.event_time_max)

    def widen(self, low: int | None, high: int | None) -> None:
        """Take a range of event times into this one."""
        if low is not None:
            self.event_time_min = low if self.event_time_min is None else min(self.event_time_min, low)
        if high is not None:
            self.event_time_max = high if self.event_time_max is None else max(self.event_time_max, high)


TALLY_FIELDS = tuple(field.name for field in fields(Tally))


class LetterSpool:
    """Dead letters of one part, kept on the executor's disk until the part's rows are written. Memory stays flat.

    :param fail_fast: whether the first letter ends the part.
    """

    def __init__(self, *, fail_fast: bool = False) -> None:
        self._fail_fast = fail_fast
        self._file: IO[str] = tempfile.SpooledTemporaryFile(  # noqa: SIM115
            max_size=_MEMORY_BYTES, mode="w+", encoding="utf-8", newline="\n"
        )
        self.count = 0

    def add(self, letters: pa.Array) -> None:
        """Keep letters, each one JSON text.

        :raises DeadLetterRefusedError: none may be kept.
        """
        if self._fail_fast and len(letters):
            raise refused_letter(letters[0].as_py())
        for text in letters.to_pylist():
            self._file.write(_clean(text) + "\n")
        self.count += len(letters)

    def batches(self) -> Iterator[list[str]]:
        """Give the letters back, some at a time."""
        self._file.seek(0)
        chunk: list[str] = []
        size = 0
        for line in self._file:
            chunk.append(line.rstrip("\n"))
            size += len(line)
            if len(chunk) == LETTERS_PER_BATCH or size > _MEMORY_BYTES:
                yield chunk
                chunk, size = [], 0
        if chunk:
            yield chunk

    def clear(self) -> None:
        """Forget the letters: they are somewhere else."""
        self._file.seek(0)
        self._file.truncate()
        self.count = 0

    def close(self) -> None:
        """Remove the file."""
        self._file.close()


def refused_letter(envelope: str) -> DeadLetterRefusedError:
    """Return the error of a run that may have no dead letters, for the first that it has."""
    said = json.loads(envelope)
    where = str(said["source"])
    located = {"offset", "row"} & json.loads(where).keys()
    if not located:
        # Without a number of its own in the source, a row is known by what it holds.
        raw = base64.b64decode(said.get("raw_value") or "").decode(errors="replace")
        row = said.get("parsed_row") or raw
        where += f", {row[:_EXCERPT]!r}{' …' if len(row) > _EXCERPT else ''}"
    state = f" ({said['sqlstate']})" if said.get("sqlstate") else ""
    return DeadLetterRefusedError(
        "A row of the micro-batch became a dead letter, and errorHandlingConfig.failFast is true",
        found=f"stage {said['stage']}, {said['error_class']}{state}: {said['message']}; the row: {where}",
        expected="rows that can be read and written, all of them",
        cure="Nothing of the micro-batch was written. Correct the row where it comes from, or the pipeline; or set "
        "failFast to false: bad rows are kept in the table dead_letter, and the others land",
    )


def _clean(text: str) -> str:
    # PostgreSQL's text cannot hold U+0000. The raw bytes travel in base64, so nothing of them is changed.
    if "\\u0000" not in text:
        return text
    return json.dumps({key: _without_nul(value) for key, value in json.loads(text).items()})


def _without_nul(value: Any) -> Any:
    return value.replace("\0", "\ufffd").replace("\\u0000", "\\ufffd") if isinstance(value, str) else value


def passed_rows(
    batches: Iterable[pa.RecordBatch],
    columns: list[str],
    tally: Tally,
    letters: LetterSpool,
    kept: tuple[str, ...] = (),
) -> Iterator[pa.RecordBatch]:
    """Yield the data columns of the rows that passed, and ``kept`` where there; count all, spool the dead letters."""
    for batch in batches:
        tally.source += batch.num_rows
        rows = _sorted_out(batch, tally, letters)
        _see_event_times(rows, tally)
        tally.passed += rows.num_rows
        if rows.num_rows:
            yield rows.select([*columns, *[name for name in kept if name in rows.schema.names]])


def _sorted_out(batch: pa.RecordBatch, tally: Tally, letters: LetterSpool) -> pa.RecordBatch:
    if OUTCOME not in batch.schema.names:
        return batch
    outcomes = batch.column(OUTCOME)
    if pc.max(outcomes).as_py() in (None, _PASSED):
        return batch
    dead = pc.equal(outcomes, tiny(_DEAD))
    letters.add(batch.column(LETTER).filter(dead))
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(outcomes).to_pylist()}
    tally.dead_lettered += counts.get(_DEAD, 0)
    tally.filtered += counts.get(_FILTERED, 0)
    tally.late += counts.get(_LATE, 0)
    return batch.filter(pc.equal(outcomes, tiny(_PASSED)))


def _see_event_times(rows: pa.RecordBatch, tally: Tally) -> None:
    if EVENT_TIME not in rows.schema.names or not rows.num_rows:
        return
    span = pc.min_max(rows.column(EVENT_TIME).cast(pa.timestamp("us", "UTC")).cast(pa.int64())).as_py()
    tally.widen(span["min"], span["max"])


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# In every zone still a year that Python has: the ledger is read by sessions of any.
_FIRST = datetime(1, 1, 2, tzinfo=UTC)
_LAST = datetime(9999, 12, 30, tzinfo=UTC)


def moment(microseconds: int | None) -> datetime | None:
    """Return the :func:`readable` instant that many microseconds after 1970."""
    if microseconds is None:
        return None
    try:
        found = _EPOCH + timedelta(microseconds=microseconds)
    except OverflowError:
        # Spark's timestamps reach further than year 9999: one odd event time must not stop the run at each try.
        found = _LAST if microseconds > 0 else _FIRST
    return readable(found)


def readable(instant: datetime) -> datetime:
    """Return the instant; near the ends of Python's calendar the nearest that is within it in every zone."""
    return min(max(instant, _FIRST), _LAST)
