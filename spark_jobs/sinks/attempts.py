"""A batch is written as closely as it needs: the quick way first, and again where a row is at fault. Driver side."""

from __future__ import annotations

import logging
from collections.abc import Callable

from spark_jobs.contracts.tracker.records import BatchRecord
from spark_jobs.faults import reach
from spark_jobs.logs.events import log_event
from spark_jobs.sinks.care import Care
from spark_jobs.sinks.committing import LettersFoundError
from spark_jobs.sinks.parts import PartReport
from spark_jobs.sinks.reports import RowsRefusedError
from spark_jobs.transforms.try_eval import expression_failed

log = logging.getLogger("etl.batch")

_GOING = {Care.ROWS: "row_by_row", Care.EACH: "merge_row_by_row"}


class Attempts:
    """Writes the batches of one run, one after the other.

    :param publishes: whether dead letters are written elsewhere as well, which tasks cannot do.
    """

    def __init__(self, *, publishes: bool) -> None:
        self._publishes = publishes
        self._care = Care.QUICK

    def write(self, write: Callable[[Care], PartReport], record: BatchRecord, *, in_tasks: bool = False) -> PartReport:
        """Write, and again with more care where rows were refused: three times at most, before another strategy.

        :param in_tasks: whether tasks store the dead letters.
        :raises LettersFoundError: there are some, which must be published first.
        """
        care = self._care
        while True:
            try:
                report = write(care)
                break
            except Exception as error:
                event, said, closer = _fault_of_a_row(error, care)
                if closer is None:
                    raise
                care = closer
                log_event(log, logging.WARNING, event, batch=record.identity.batch_id, going=_GOING[care], first=said)
                reach("batch.before_second_look")
                if in_tasks and self._publishes:
                    # By staged, which merges: whether that refuses what COPY into the target did is not known.
                    self._care = Care.MERGE
                    raise LettersFoundError("Rows have become dead letters", found=said) from error
        # Where there was one bad row the next batch may have some: the quick way would only be in vain.
        self._care = care if report.refused + report.tally.dead_lettered else Care.QUICK
        return report


def _fault_of_a_row(error: Exception, care: Care) -> tuple[str, str, Care | None]:
    """Return what happened, the words for it, and how to find the row; None where there is none, or no way."""
    if isinstance(error, RowsRefusedError):
        return "rows_refused", error.found or str(error), care.closer(in_merge=error.in_merge)
    said = "" if care else expression_failed(error) or ""
    return "expression_failed", said, Care.ROWS if said else None
