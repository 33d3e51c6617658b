"""What every copy of the dead letters does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import datetime

from pyspark.sql import DataFrame
from pyspark.sql.types import ArrayType, BinaryType, StringType, StructField, StructType

from spark_jobs.contracts.tracker.records import BatchIdentity
from spark_jobs.sinks.letter_rows import MakeRows

HEADERS = ArrayType(StructType([StructField("key", StringType()), StructField("value", BinaryType())]))


@dataclass(frozen=True, slots=True)
class LettersBatch:
    """The micro-batch that letters belong to.

    :param planned_at: when Spark planned it, which stays the same when it is done again.
    """

    identity: BatchIdentity
    planned_at: datetime


class LetterCopy(ABC):
    """A place where other readers find the dead letters. The ledger's table has them all, whatever becomes of it."""

    #: What is written there, and what makes it of letters: a function of a module, as executors call it.
    schema: StructType
    make_rows: MakeRows

    @property
    @abstractmethod
    def place(self) -> str:
        """What it is called in messages; no secrets."""

    @abstractmethod
    def check(self) -> None:
        """Raise :class:`LettersNotPublishedError` or :class:`ConfigError` when letters cannot be written there."""

    @abstractmethod
    def write(self, rows: DataFrame, batch: LettersBatch) -> None:
        """Write a batch's letters, all of them and for good, or raise whatever went wrong.

        Called before the batch commits, and again when it is done again.

        :param rows: of :attr:`schema`.
        """

    def withdraw(self, batch: LettersBatch) -> None:  # noqa: B027 - where it can be done
        """Remove what an attempt at the batch has written that did not commit, where that is possible."""
