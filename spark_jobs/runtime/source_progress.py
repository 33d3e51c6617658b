"""Tells a source how far the database is, where the source wants to make that known outside (Kafka: a consumer group).

Never before the database's commit, and never at its cost: what goes wrong is a warning, and owed until it has worked.
"""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Self

from spark_jobs.contracts.errors import EtlError
from spark_jobs.logs.events import log_event
from spark_jobs.sinks.ledger import Ledger
from spark_jobs.sources.base import Committer, OffsetRange, Source

log = logging.getLogger("etl.batch")


class SourceProgress:
    """One run's news to its source: of what earlier runs had committed, of each micro-batch, of what is still owed."""

    def __init__(self, source: Source, ledger: Ledger, query_id: str) -> None:
        self._source = source
        self._ledger = ledger
        self._query_id = query_id
        self._committer = Committer(ledger.pipeline_id, query_id, ledger.check_fence)
        self._owed: OffsetRange | None = None
        self._told: OffsetRange | None = None

    def __enter__(self) -> Self:
        if self._source.follows_commits:
            # A run that ended between the two commits, or could not reach the source, may have no batch to do again.
            known = self._ledger.end_offsets(self._query_id)
            if known is not None:
                self.committed(OffsetRange(None, known))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._owed is not None:
            self.committed(self._owed)
        if self._told is not None:
            log_event(log, logging.INFO, "offsets_committed", end=self._told.end, behind=self._owed is not None)
        self._source.close()

    def committed(self, offsets: OffsetRange) -> None:
        """Tell of a range whose rows and ledger row are committed. Raises nothing that the source can meet."""
        if not self._source.follows_commits:
            return
        try:
            self._source.after_commit(offsets, self._committer)
        except Exception as error:  # noqa: BLE001 - the rows are committed: nothing here may undo that
            self._owed = offsets
            reason = str(error) if isinstance(error, EtlError) else f"{type(error).__name__}: {error}"
            log_event(log, logging.WARNING, "offsets_not_committed", end=offsets.end, reason=reason)
        else:
            self._owed, self._told = None, offsets
