"""What a batch's write is told once its rows were evaluated, and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pyspark.sql import DataFrame

from spark_jobs.contracts.tracker.records import BatchRecord, Books
from spark_jobs.sinks.committing import BooksOf
from spark_jobs.sinks.sorting import Tally
from spark_jobs.sinks.staging import Staged


@dataclass(frozen=True, slots=True)
class Looked:
    """What a batch's record and books are, once its rows were evaluated.

    :param letters: dead letters that a second look staged; None when it was not needed.
    """

    record: BatchRecord
    books_of: BooksOf
    letters: Staged | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """How a batch's write ended: ``state`` is ``committed`` or ``already_there``.

    :param event_time_max: of the written rows, microseconds since 1970, where their writers have seen it.
    :param outcome: of a replay's batch: what became of its letters, as JSON.
    """

    state: str
    books: Books
    event_time_max: int | None = None
    outcome: str = ""


BatchRows = Callable[[bool], DataFrame]
"""Gives the batch's rows: as the query gave them, or (True) as the careful way needs them, perhaps read again."""


SecondLook = Callable[[Tally | None], Looked]
"""Asked once the batch's one action has run, with what the tasks counted (None for a handed-over batch)."""
