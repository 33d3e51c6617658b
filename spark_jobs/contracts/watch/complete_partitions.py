"""Which hours or days of event time are complete in a target, and were not announced yet."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any, Final, NamedTuple

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.from_values import from_values
from spark_jobs.contracts.periods import Grain, Period, most, periods, zone_of
from spark_jobs.contracts.tracker.announcements import Announcements, Announcer
from spark_jobs.contracts.watch.condition import LedgerView, snapshot
from spark_jobs.contracts.watch.watermark import complete_through

# One row with a year before Christ must not end the look.
_FIRST_EVENT: Final = """
SELECT greatest(min(event_time_min), '1000-01-01Z'::timestamptz) FROM {schema}.batch_tracker
WHERE pipeline_id = %(pipeline)s AND query_id = ANY (%(queries)s)"""


class PartitionsRequest(BaseModel):
    """Which partitions are to be announced.

    :param since: none before the period that this time lies in. :param per_run: most at once.
    :param backlog: when more than so many were to be announced, it is an error.
    :param again: whether to announce anew what a target that was started over fills again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    pipeline: str = Field(min_length=1)
    grain: Grain = "hour"
    timezone: str = "UTC"
    since: AwareDatetime | None = None
    per_run: int = Field(500, ge=1, le=10_000)
    backlog: int = Field(10_000, ge=1, le=1_000_000)
    again: bool = False

    @classmethod
    def of(cls, **values: Any) -> PartitionsRequest:
        """Return the request.

        :raises ConfigError: naming every value that is not valid.
        """
        made = from_values(cls, values, "Complete partitions cannot be announced")
        zone_of(made.timezone)
        return made


class Pending(NamedTuple):
    """What is to be announced.

    :param periods: the oldest first. :param left: how many more there are. :param through: how far the target is
        complete; None when no event time was seen. :param began_with: the query with which the target began.
    :param nothing: without ``through``: why, in words.
    """

    periods: list[Period]
    left: int
    through: datetime | None
    began_with: str
    nothing: str = ""


def pending(
    view: LedgerView, request: PartitionsRequest, announcements: Announcements, over: Collection[Announcer]
) -> Pending:
    """Return the partitions that are complete, and not announced.

    They begin with the first event in the ledger, or where the announced ones end if a cleanup has removed the events
    from there on, and end with the watermark, or with the server's clock where that is behind. Periods without any
    event in between are complete as well: the ledger knows of a batch's first and last event, not of each hour.

    :param over: tasks that have ended without announcing what they have claimed.
    :raises ConfigError: the pipeline has never run, or has no watermark; or more are pending than ``backlog``.
    :raises ClocksDisagreeError: the pipeline saw events of the future.
    """
    with snapshot(view.conn):
        complete = complete_through(view, request.pipeline)
        if complete.through is None or complete.now is None:
            return Pending([], 0, None, "", complete.nothing)
        values = {"pipeline": request.pipeline, "queries": complete.queries}
        first = view.rows(_FIRST_EVENT, values, f"Looking for the first event of {request.pipeline!r}")[0][0]
        began_with = complete.queries[-1]
        reached = announcements.reached(began_with)
        begin = min((time for time in (first, reached) if time is not None), default=complete.through)
        begin = max(begin, request.since) if request.since is not None else begin
        taken = announcements.taken(begin, over, began_with=began_with, again=request.again)
    through = min(complete.through, complete.now)
    if (number := most(begin, through, request.grain) - len(taken)) > request.backlog:
        raise _too_many(request, number, begin)
    found = [
        period
        for period in periods(begin, through, request.grain, zone_of(request.timezone))
        if period.key not in taken
    ]
    now, left = found[: request.per_run], len(found[request.per_run :])
    return Pending(now, left, complete.through, began_with)


def _too_many(request: PartitionsRequest, number: int, begin: datetime) -> ConfigError:
    return ConfigError(
        f"Complete partitions of {request.pipeline!r} are not announced",
        found=f"about {number:,} {request.grain}s to announce, from {begin.isoformat()} on",
        expected=f"at most {request.backlog:,}, each of which starts a DAG run",
        cure="say with since= where partitions begin (one wrong time may lie far back), or raise max_backlog",
    )
