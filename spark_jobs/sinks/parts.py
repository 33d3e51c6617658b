"""What a part of a batch reports to the driver: one small row per partition, whatever the number of its rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, fields

import pyarrow as pa
from pyspark.sql.types import LongType, StringType, StructField, StructType

from spark_jobs.contracts.errors import EtlError
from spark_jobs.sinks.acknowledging import acknowledged
from spark_jobs.sinks.gathering import gathered
from spark_jobs.sinks.plain_arrow import longs, texts
from spark_jobs.sinks.reading_ahead import read_ahead
from spark_jobs.sinks.sorting import TALLY_FIELDS, Tally
from spark_jobs.sinks.unread import held_back
from spark_jobs.sinks.whole_input import whole, worker_input

COMMITTED = "committed"
ALREADY_THERE = "already_there"
STAGED = "staged"
FAILED = "failed"
UNKNOWN = "unknown"
"""The connection was lost at COMMIT: only the ledger knows."""

ROWS = "rows"
MERGE = "merge"
PREPARE = "prepare"
"""What an attempt was doing when it failed: copying rows, merging them, or preparing its transaction."""


@dataclass(slots=True)
class PartReport:
    """One attempt at one part.

    :param state: one of the constants above. :param sqlstate: of the error that PostgreSQL gave, empty without one.
    :param doing: what it was doing; see :data:`ROWS`. :param name: of its prepared transaction, where there is one.
    :param refused: rows that PostgreSQL refused, kept as dead letters.
    """

    part: int
    attempt: int
    state: str = STAGED
    sqlstate: str = ""
    message: str = ""
    doing: str = ""
    name: str = ""
    written: int = 0
    refused: int = 0
    deduplicated: int = 0
    tally: Tally = field(default_factory=Tally)

    def fail(self, sqlstate: str, message: str) -> None:
        """Note the error that ended the attempt."""
        self.state, self.sqlstate, self.message = FAILED, sqlstate, message

    @classmethod
    def total(cls, reports: Iterable[PartReport]) -> PartReport:
        """Return the sum of all parts of a batch."""
        result = cls(part=0, attempt=0)
        for report in reports:
            result.written += report.written
            result.refused += report.refused
            result.tally.add(report.tally)
        return result

    def to_batch(self) -> pa.RecordBatch:
        """Return the report as one Arrow row of :data:`REPORT_SCHEMA`."""
        own = [(texts if name in _TEXT else longs)([getattr(self, name)]) for name in _OWN]
        counts = [longs([getattr(self.tally, name)]) for name in TALLY_FIELDS]
        return pa.RecordBatch.from_arrays([*own, *counts], schema=_ARROW_SCHEMA)

    @classmethod
    def read(cls, rows: Iterable[dict[str, object]]) -> list[PartReport]:
        """Read collected rows of :data:`REPORT_SCHEMA`."""
        return list(_read(cls, rows))


def _read(kind: type[PartReport], rows: Iterable[dict[str, object]]) -> Iterator[PartReport]:
    for row in rows:
        own = {name: row[name] for name in _OWN}
        yield kind(**own, tally=Tally(**{name: row[name] for name in TALLY_FIELDS}))  # type: ignore[arg-type]


_OWN = tuple(f.name for f in fields(PartReport) if f.name != "tally")
_TEXT = ("state", "sqlstate", "message", "doing", "name")
_ARROW_SCHEMA = pa.schema(
    [pa.field(name, pa.string() if name in _TEXT else pa.int64()) for name in (*_OWN, *TALLY_FIELDS)]
)
REPORT_SCHEMA = StructType(
    [StructField(name, StringType() if name in _TEXT else LongType()) for name in (*_OWN, *TALLY_FIELDS)]
)
"""A report as Spark has it. Not as DDL text, which Spark would parse for every batch."""


def in_task(
    work: Callable[[Iterator[pa.RecordBatch], int, int], PartReport],
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return ``work(batches, part, attempt)`` as a function for ``mapInArrow``: one report per partition.

    An :class:`EtlError` of the task comes back by its name, in the place of the SQLSTATE, with its text as JSON.
    """

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from pyspark import TaskContext  # noqa: PLC0415 - only in a task

        context = TaskContext.get()
        part = context.partitionId() if context else 0
        attempt = context.taskAttemptId() if context else 0
        try:
            given = held_back(whole(batches, worker_input())) if context else nullcontext(batches)
            with given as left, read_ahead(acknowledged(left), through=gathered) as rows:
                report = work(rows, part, attempt)
        except EtlError as error:
            report = PartReport(part, attempt)
            report.fail(type(error).__name__, json.dumps(error.to_json()))
        yield report.to_batch()

    return run
