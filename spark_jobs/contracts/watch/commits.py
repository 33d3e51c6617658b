"""What was committed since a position in a pipeline's history.

The order is the fence's: epochs only rise, and one epoch commits the batches of one query, by their ids. Clocks have no
say in it, and neither has the query: an older checkpoint that is brought back goes on under a higher epoch.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

from psycopg.rows import dict_row
from pydantic import BaseModel, ConfigDict

from spark_jobs.contracts.tracker.connect import classified, query
from spark_jobs.contracts.watch.condition import Condition, LedgerView, Seen


class Position(BaseModel):
    """The last commit that somebody knows of; before the first one unless given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int = 0
    batch_id: int = -1
    query_id: str = ""


def _utc(time: str) -> str:
    # As text: a time that no driver's datetime can hold must not end the wait.
    return f"to_char({time} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"+00:00\"')"


_NEWEST: Final = """
SELECT epoch, batch_id, query_id FROM {schema}.batch_tracker WHERE pipeline_id = %(pipeline)s
ORDER BY epoch DESC, batch_id DESC LIMIT 1"""

# A cleanup may have removed the commit since, and says so.
_STILL_KNOWN: Final = """
SELECT EXISTS (SELECT FROM {schema}.batch_tracker WHERE pipeline_id = %(pipeline)s AND query_id = %(query_id)s
               AND batch_id = %(batch_id)s AND epoch = %(epoch)s)
    OR EXISTS (SELECT FROM {schema}.batch_retention WHERE pipeline_id = %(pipeline)s AND query_id = %(query_id)s
               AND removed_through_batch >= %(batch_id)s)"""

# One query's batches, up to where another query's begin; a look that takes long keeps others waiting.
_MOST_BATCHES: Final = 10_000
_NEXT: Final = f"""
WITH following AS (
    SELECT epoch, batch_id, query_id, run_id, processed_at, record_count, source_rows, watermark, event_time_min,
           event_time_max, start_offsets, end_offsets
    FROM {{schema}}.batch_tracker
    WHERE pipeline_id = %(pipeline)s AND (epoch, batch_id) > (%(epoch)s, %(batch_id)s)
      AND (%(through_epoch)s::bigint IS NULL
           OR (epoch, batch_id) <= (%(through_epoch)s::bigint, %(through_batch)s::bigint))
    ORDER BY epoch, batch_id LIMIT %(most)s
), one AS (
    SELECT query_id FROM following ORDER BY epoch, batch_id LIMIT 1
), other AS (
    SELECT min(following.epoch) AS epoch FROM following, one WHERE following.query_id <> one.query_id
), told AS (
    SELECT following.* FROM following, one, other
    WHERE following.query_id = one.query_id AND (other.epoch IS NULL OR following.epoch < other.epoch)
), books AS (
    SELECT query_id, min(batch_id) AS first_batch_id, max(batch_id) AS last_batch_id, count(*) AS batches,
           sum(record_count)::bigint AS rows, sum(source_rows)::bigint AS source_rows,
           {_utc("max(watermark)")} AS watermark, {_utc("min(event_time_min)")} AS event_time_min,
           {_utc("max(event_time_max)")} AS event_time_max
    FROM told GROUP BY query_id
)
SELECT books.*, old.start_offsets, new.end_offsets, new.run_id, new.epoch,
       {_utc("new.processed_at")} AS committed_at, r.removed_through_batch AS removed_through_batch_id
FROM books
JOIN told old ON old.batch_id = books.first_batch_id
JOIN told new ON new.batch_id = books.last_batch_id
LEFT JOIN {{schema}}.batch_retention r ON r.pipeline_id = %(pipeline)s AND r.query_id = books.query_id"""  # noqa: S608 - constants


class NewestCommit(Condition):
    """Holds as soon as anything was committed; its value is the newest commit's :class:`Position`."""

    title: ClassVar[str] = "The newest commit"

    wait_for_first_run: bool = True

    def _look(self, view: LedgerView) -> Seen:
        about = f"Looking for the newest commit of {self.pipeline!r}"
        found = view.rows(_NEWEST, {"pipeline": self.pipeline}, about)
        if not found:
            return Seen(done=False, message=f"{self.pipeline}: nothing was ever committed")
        epoch, batch_id, query_id = found[0]
        value = Position(epoch=epoch, batch_id=batch_id, query_id=query_id).model_dump()
        return Seen(done=True, message=f"{self.pipeline}: micro-batch {batch_id} is the newest", value=value)


class CommitsAfter(Condition):
    """Holds when something was committed after a position.

    The value tells of such commits of one query, the oldest one's, and of ten thousand at most: ``id``
    (pipeline/query/first-last batch), ``pipeline``, ``after`` (the position before), ``query_id``, ``first_batch_id``,
    ``last_batch_id``, ``batches``, ``rows`` (written), ``source_rows``, ``start_offsets``, ``end_offsets``,
    ``watermark``, ``event_time_min``, ``event_time_max``, and of the last one ``committed_at``, ``run_id`` and
    ``epoch``. Times are ISO 8601 in UTC. What a cleanup has removed since belongs to the range:
    ``removed_through_batch_id`` is its last batch, else None; figures and times are those of what is left.

    A position that the ledger does not know any more belongs to another ledger (restored, or made anew): then the look
    is from the beginning, and the message says so.

    :param after: where to begin. :param through: the end of a range that was told before, which is told once more.
    """

    title: ClassVar[str] = "Waiting for commits"

    wait_for_first_run: bool = True
    after: Position = Position()
    through: Position | None = None

    def _look(self, view: LedgerView) -> Seen:
        after, lost = self.after, ""
        if self.through is None and after.query_id and not self._known(view):
            lost = f"; the ledger has no micro-batch {after.batch_id} of query {after.query_id} any more, all is told"
            after = Position()
        found = self._next(view, after)
        if found is None:
            text = f"{self.pipeline}: nothing was committed after micro-batch {after.batch_id} of epoch {after.epoch}"
            return Seen(done=False, message=text + lost)
        self._with_removed(found, after)
        batches = f"{found['first_batch_id']}-{found['last_batch_id']}"
        one = f"{self.pipeline}/{found['query_id']}/{batches}"
        value = {"id": one, "pipeline": self.pipeline, "after": after.model_dump(), **found}
        text = f"{self.pipeline}: micro-batches {batches} of query {found['query_id']} are committed{lost}"
        return Seen(done=True, message=text, value=value)

    def _known(self, view: LedgerView) -> bool:
        about = f"Looking for where the commits of {self.pipeline!r} were read to"
        return bool(view.rows(_STILL_KNOWN, {"pipeline": self.pipeline, **self.after.model_dump()}, about)[0][0])

    def _next(self, view: LedgerView, after: Position) -> dict[str, Any] | None:
        values = {
            "pipeline": self.pipeline,
            "epoch": after.epoch,
            "batch_id": after.batch_id,
            "most": _MOST_BATCHES,
            "through_epoch": self.through.epoch if self.through else None,
            "through_batch": self.through.batch_id if self.through else None,
        }
        with classified(f"Looking for commits of {self.pipeline!r}"):
            row: dict[str, Any] | None = query(view.conn, view.schema, _NEXT, values, row_factory=dict_row).fetchone()
        return row

    @staticmethod
    def _with_removed(found: dict[str, Any], after: Position) -> None:
        """Let the range begin with what a cleanup has removed of it."""
        begin = after.batch_id + 1 if found["query_id"] == after.query_id else 0
        removed = found["removed_through_batch_id"]
        if removed is None or removed < begin:
            found["removed_through_batch_id"] = None
        else:
            found["first_batch_id"], found["start_offsets"] = begin, None
