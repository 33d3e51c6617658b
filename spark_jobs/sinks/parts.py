"""What a part of a batch reports to the driver: one small row per partition, whatever the number of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields

import pyarrow as pa

from spark_jobs.sinks.sorting import TALLY_FIELDS, Tally

COMMITTED = "committed"
ALREADY_THERE = "already_there"
STAGED = "staged"
FAILED = "failed"
UNKNOWN = "unknown"
"""The connection was lost at COMMIT: only the ledger knows."""


@dataclass(slots=True)
class PartReport:
    """One attempt at one part.

    :param state: one of the constants above. :param sqlstate: of the error that PostgreSQL gave, empty without one.
    """

    part: int
    attempt: int
    state: str = STAGED
    sqlstate: str = ""
    message: str = ""
    written: int = 0
    deduplicated: int = 0
    tally: Tally = field(default_factory=Tally)

    def to_batch(self) -> pa.RecordBatch:
        """Return the report as one Arrow row of :data:`REPORT_SCHEMA`."""
        values = {name: getattr(self, name) for name in _OWN}
        values |= {name: getattr(self.tally, name) for name in TALLY_FIELDS}
        return pa.RecordBatch.from_pylist([values], schema=_ARROW_SCHEMA)

    @classmethod
    def read(cls, rows: Iterable[dict[str, object]]) -> list[PartReport]:
        """Read collected rows of :data:`REPORT_SCHEMA`."""
        return list(_read(cls, rows))


def _read(kind: type[PartReport], rows: Iterable[dict[str, object]]) -> Iterator[PartReport]:
    for row in rows:
        own = {name: row[name] for name in _OWN}
        yield kind(**own, tally=Tally(**{name: row[name] for name in TALLY_FIELDS}))  # type: ignore[arg-type]


_OWN = tuple(f.name for f in fields(PartReport) if f.name != "tally")
_TEXT = ("state", "sqlstate", "message")
_ARROW_SCHEMA = pa.schema(
    [pa.field(name, pa.string() if name in _TEXT else pa.int64()) for name in (*_OWN, *TALLY_FIELDS)]
)
REPORT_SCHEMA = ", ".join(f"{name} {'STRING' if name in _TEXT else 'BIGINT'}" for name in (*_OWN, *TALLY_FIELDS))
"""Spark DDL of a report."""
