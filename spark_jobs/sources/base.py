"""What every source does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyspark.sql import DataFrame

from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.tracker.records import SourceFile


@dataclass(frozen=True, slots=True)
class OffsetRange:
    """The part of a source that one micro-batch reads: from ``start`` (exclusive end of the last batch) to ``end``.

    :param start: the source's own offset as parsed JSON; None before the first batch.
    :param end: the source's own offset as parsed JSON.
    :param files: for file sources the very files of the batch, as the checkpoint's source log names them.
    """

    start: Any
    end: Any
    files: tuple[SourceFile, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class BatchSize:
    """How much a micro-batch reads, judged from offsets or file sizes. None where nobody can tell.

    :param rows: an upper bound of its rows, exact where nothing is missing in the source.
    :param partitions: how many tasks can read it at once; None where Spark cuts the input as it likes.
    """

    rows: int | None = None
    data_bytes: int | None = None
    partitions: int | None = None


@dataclass(frozen=True, slots=True)
class Committer:
    """Who has committed a micro-batch.

    :param check_fence: raises :class:`FencedError` when a newer run of the pipeline exists.
    """

    pipeline_id: str
    query_id: str
    check_fence: Callable[[], None]


class Source(ABC):
    """A source of rows: as a stream, and any past offset range again as a batch.

    Both give the same columns: the schema's, the source's own (``_file``, ``_offset``, …) and the carried ones of
    :mod:`spark_jobs.rows`, ``__raw`` among them where a row is made of one record. A value that does not fit the schema
    is a row with the outcome ``DEAD_LETTER``, never an exception and never a row of nulls.
    """

    #: The coordinates of a row in its source, kept with dead letters and named in errors.
    coordinates: tuple[str, ...] = ()
    #: Columns that every row has beside its schema's: to be used in expressions, not written unless selected.
    own_columns: tuple[str, ...] = ()
    #: Whether :meth:`read_letters` does without what the source's own columns are made of, where nobody asks for them.
    own_columns_on_demand: bool = False
    #: Whether a row may fail to be read. False only where every row that the source gives fits the schema.
    makes_dead_letters: bool = True
    #: Whether every dead letter holds the record as it came, so that a replay can read it again.
    keeps_raw: bool = False
    #: Whether :meth:`after_commit` does anything: otherwise nobody asks the ledger how far it is.
    follows_commits: bool = False

    @abstractmethod
    def check(self) -> None:
        """Raise :class:`SourceUnreachableError` or :class:`ConfigError` when the source cannot be read."""

    @abstractmethod
    def stream(self) -> DataFrame:
        """Return the streaming DataFrame."""

    @abstractmethod
    def read_range(self, offsets: OffsetRange) -> DataFrame:
        """Return exactly the rows of ``offsets``, as a batch DataFrame."""

    def read_letters(self, letters: DataFrame) -> DataFrame:
        """Return the records of dead letters, read as :meth:`stream` would read them now; each letter is one row.

        What fails again has an envelope with the new reason only (:func:`~spark_jobs.rows.letter_again`).

        :param letters: columns ``__letter_id`` STRING, which is kept, ``raw_key`` BINARY, ``raw_value`` BINARY,
            ``raw_headers`` STRING (JSON) and ``source`` STRING (JSON). With :attr:`own_columns_on_demand` all but
            ``raw_value`` may be missing: then the rows have none of the source's own columns.
        :raises ConfigError: this source has no records that could not be read.
        """
        raise ConfigError(
            f"Dead letters of {type(self).__name__} cannot be read again from a raw record",
            found=f"letters with columns {', '.join(letters.columns)}",
            expected="rows of the source or of the target, as JSON",
        )

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return what must not change under an existing checkpoint."""

    @abstractmethod
    def size(self, offsets: OffsetRange) -> BatchSize:
        """Return how much there is in ``offsets``, judged without reading it."""

    def gone(self, ranges: Sequence[OffsetRange]) -> list[str]:
        """Return for each past range what of it cannot be read any more, in words; empty where nobody misses anything.

        A source that cannot tell says nothing: whoever reads the range compares the numbers of rows.
        """
        return [""] * len(ranges)

    def after_commit(self, offsets: OffsetRange, committer: Committer) -> None:  # noqa: ARG002 - for those that follow
        """Make known outside how far the database is; called only for what it has committed, and again for the same.

        May raise anything: the caller warns and goes on, and what was not made known is owed until it has worked. Must
        not take longer than a few seconds.
        """
        return

    def close(self) -> None:
        """Let go of what the source holds open; called once, at the run's end."""
        return
