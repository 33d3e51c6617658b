"""How far event time is complete in the target.

An aggregation's results are final up to the watermark with which their micro-batch began. The rows of a stateless
pipeline are in the target as soon as they were read: there it is the newest event time less the delay for late rows, of
what was committed when the last run finished. In the middle of a run that works off a backlog other files or partitions
may still bring older rows, which Spark writes all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, ClassVar, Final

from pydantic import AwareDatetime

from spark_jobs.contracts.config.durations import parse_duration
from spark_jobs.contracts.errors import ClocksDisagreeError, ConfigError
from spark_jobs.contracts.tracker.known_queries import KnownQuery, known_queries, since_start
from spark_jobs.contracts.watch.condition import Condition, LedgerView, Seen, in_words

_AHEAD_SECONDS: Final = 3600

# Event time never goes back, whatever checkpoint it was seen with; but whoever starts over has emptied the target.
_COMPLETE: Final = """
SELECT through, batch_id, clock_timestamp(), extract(epoch FROM through - clock_timestamp())::float
FROM (
    SELECT batch_id, CASE WHEN %(stateful)s THEN watermark ELSE event_time_max - %(delay)s::interval END AS through
    FROM {schema}.batch_tracker WHERE pipeline_id = %(pipeline)s AND query_id = ANY (%(queries)s)
        AND (%(stateful)s OR processed_at <= (
            SELECT max(ended_at) FROM {schema}.pipeline_run WHERE pipeline_id = %(pipeline)s AND state = 'finished'
        ))
) AS batch WHERE through IS NOT NULL ORDER BY through DESC LIMIT 1"""

_UNFINISHED: Final = """
SELECT max(event_time_max)::text FROM {schema}.batch_tracker
WHERE pipeline_id = %(pipeline)s AND query_id = ANY (%(queries)s)"""


@dataclass(frozen=True, slots=True)
class Complete:
    """How far a target is complete.

    :param through: None: no event time was seen yet. :param batch_id: since which micro-batch.
    :param now: by the server's clock. :param known: the pipeline's queries.
    :param unfinished: without ``through``: the newest event that was committed, by runs that have not finished.
    """

    through: datetime | None
    batch_id: int | None
    now: datetime | None
    known: Sequence[KnownQuery]
    unfinished: str | None = None

    @property
    def nothing(self) -> str:
        """Why there is no ``through``, in words."""
        if self.unfinished:
            return f"events up to {self.unfinished} are committed, and no run has finished since the first of them"
        since = " since it was started over" if self.known and self.known[-1].origin == "accepted" else " yet"
        return f"no event time seen{since}"

    @property
    def queries(self) -> list[str]:
        """The queries that filled the target since it was last started (over), newest first."""
        return [query.query_id for query in since_start(self.known)] if self.known else []


def complete_through(view: LedgerView, pipeline: str) -> Complete:
    """Return how far the target of a pipeline is complete.

    :raises ConfigError: it has never run, or has no watermark; or its runs never end, by which rows are complete.
    :raises ClocksDisagreeError: it saw events of the future.
    """
    config = view.config(pipeline)
    watermark = config.streaming.watermark if config.streaming else None
    if watermark is None:
        raise ConfigError(
            f"Pipeline {pipeline!r} has no watermark: through when its data is complete cannot be told",
            found="no streamingConfigJson.watermark in the configuration of its newest run",
            expected="eventTimeColumn and delayThreshold",
            cure="give the pipeline a watermark, and run it once; or wait for a commit (PipelineFreshnessSensor)",
        )
    stateful = config.aggregation is not None
    if config.streaming is not None and config.streaming.trigger.endless and not stateful:
        raise _never_finishes(pipeline, str(config.streaming.trigger))
    nothing = Complete(None, None, None, known_queries(view.conn, view.schema, pipeline))
    values = {
        "pipeline": pipeline,
        "queries": nothing.queries,
        "stateful": stateful,
        "delay": parse_duration(watermark.delay_threshold),
    }
    rows = view.rows(_COMPLETE, values, f"Looking for the watermark of {pipeline!r}")
    if not rows:
        unfinished = None if stateful else view.rows(_UNFINISHED, values, f"Looking for events of {pipeline!r}")[0][0]
        return replace(nothing, unfinished=unfinished)
    through, batch_id, now, ahead_seconds = rows[0]
    if ahead_seconds > _AHEAD_SECONDS:
        raise ClocksDisagreeError(
            f"Through when the data of {pipeline!r} is complete cannot be told",
            found=f"events up to {through.isoformat()}, {in_words(ahead_seconds)} ahead of the server's clock",
            expected="events that have happened",
            cure="a producer's clock is wrong, or the server's: until it has passed that time, rows with right "
            "times are late for Spark, too. Filter such rows out before the watermark",
        )
    return Complete(through, batch_id, now, nothing.known)


def _never_finishes(pipeline: str, trigger: str) -> ConfigError:
    return ConfigError(
        f"Through when the rows of pipeline {pipeline!r} are complete cannot be told",
        found=f"trigger {trigger}, whose runs never finish, and no aggregation",
        expected="runs that finish with all that was there (availablenow, once), or an aggregation, whose results are "
        "final up to the watermark",
        cure="run the pipeline on a schedule, or wait for offsets or a commit (StreamingQueryProgressSensor, "
        "PipelineFreshnessSensor)",
    )


class WatermarkReached(Condition):
    """Holds when the target has everything up to an event time, rows later than the watermark's delay excepted.

    :param through: the event time; knows its zone.
    """

    title: ClassVar[str] = "Waiting for the watermark"

    through: AwareDatetime

    def _look(self, view: LedgerView) -> Seen:
        complete = complete_through(view, self.pipeline)
        if complete.through is None:
            return Seen(done=False, message=f"{self.pipeline}: {complete.nothing}")
        return self._seen(complete.through, complete.batch_id)

    def _seen(self, complete: datetime, batch: int | None) -> Seen:
        missing_seconds = (self.through - complete).total_seconds()
        done = missing_seconds <= 0
        text = f"{self.pipeline}: complete through {complete.isoformat()}, since micro-batch {batch}"
        if not done:
            text += f"; {in_words(missing_seconds)} short of {self.through.isoformat()}"
        value: dict[str, Any] = {"complete_through": complete.isoformat(), "batch_id": batch}
        return Seen(done=done, message=text, value=value)
