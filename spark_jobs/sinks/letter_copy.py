"""What every copy of the dead letters does."""

from __future__ import annotations

from abc import ABC, abstractmethod

from pyspark.sql import DataFrame

from spark_jobs.sinks.letter_frames import LettersBatch


class LetterCopy(ABC):
    """A place where other readers find the dead letters. The ledger's table has them all, whatever becomes of it."""

    @property
    @abstractmethod
    def place(self) -> str:
        """What it is called in messages; no secrets."""

    @abstractmethod
    def check(self) -> None:
        """Raise :class:`LettersNotPublishedError` or :class:`ConfigError` when letters cannot be written there."""

    @abstractmethod
    def write(self, letters: DataFrame, batch: LettersBatch) -> None:
        """Write a batch's letters, all of them and for good, or raise whatever went wrong.

        Called before the batch commits, and again when it is done again.

        :param letters: see :func:`spark_jobs.sinks.letter_frames.letters_frame`.
        """

    def withdraw(self, batch: LettersBatch) -> None:  # noqa: B027 - where it can be done
        """Remove what an attempt at the batch has written that did not commit, where that is possible."""
