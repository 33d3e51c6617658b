"""Which partitions were announced as complete, and by which task of Airflow.

A task *claims* partitions before it announces them, and whoever sees later that Airflow has stored the announcement
*settles* them. In between nobody can tell but Airflow: a claim therefore says whose it is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from psycopg.types.json import Jsonb
from pydantic import BaseModel, ConfigDict

from spark_jobs.contracts.periods import Period
from spark_jobs.contracts.tracker.connect import Connection, classified, query

_OPEN: Final = """
SELECT announced_by, array_agg(partition_key ORDER BY period_start), min(claimed_at) FROM {schema}.complete_partition
WHERE pipeline_id = %(pipeline)s AND asset = %(asset)s AND state = 'announcing' GROUP BY announced_by"""

_SETTLE: Final = """
UPDATE {schema}.complete_partition SET state = 'announced'
WHERE pipeline_id = %(pipeline)s AND asset = %(asset)s AND partition_key = ANY (%(keys)s)
  AND state = 'announcing' AND announced_by = %(by)s"""

_TAKEN: Final = """
SELECT partition_key FROM {schema}.complete_partition
WHERE pipeline_id = %(pipeline)s AND asset = %(asset)s AND period_end > %(begin)s
  AND (state = 'announced' OR announced_by <> ALL (%(over)s))
  AND NOT (%(again)s AND state = 'announced' AND began_with <> %(began_with)s)"""

_REACHED: Final = """
SELECT least(max(period_end), min(period_start) FILTER (WHERE state = 'announcing')) FROM {schema}.complete_partition
WHERE pipeline_id = %(pipeline)s AND asset = %(asset)s AND began_with = %(began_with)s"""

# A row that somebody else has claimed meanwhile stays his.
_CLAIM: Final = """
INSERT INTO {schema}.complete_partition AS mine
    (pipeline_id, asset, partition_key, period_start, period_end, state, announced_by, began_with)
SELECT %(pipeline)s, %(asset)s, p.key, p.start, p.until, 'announcing', %(by)s, %(began_with)s
FROM unnest(%(keys)s::text[], %(starts)s::timestamptz[], %(ends)s::timestamptz[]) AS p(key, start, until)
ON CONFLICT (pipeline_id, asset, partition_key) DO UPDATE
SET state = 'announcing', announced_by = excluded.announced_by, began_with = excluded.began_with,
    claimed_at = clock_timestamp()
WHERE mine.state = 'announcing' AND mine.announced_by = ANY (%(over)s)
   OR %(again)s AND mine.state = 'announced' AND mine.began_with <> excluded.began_with
RETURNING partition_key"""


class Announcer(BaseModel):
    """One try of a task.

    :param try_id: a task that is run again in its DAG run has another one.
    """

    model_config = ConfigDict(frozen=True)

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1
    try_id: str

    def is_same_task(self, other: Announcer) -> bool:
        """Tell whether the other is a try of the same task, in the same DAG run."""
        return self.model_copy(update={"try_id": other.try_id}) == other


class OpenClaim(NamedTuple):
    """Partitions that a task has claimed, and of which nobody knows yet whether Airflow has stored them."""

    announcer: Announcer
    keys: list[str]
    claimed_at: datetime


class Announcements(NamedTuple):
    """The partitions of one asset that a pipeline fills; ``asset`` is its name."""

    conn: Connection
    schema: str
    pipeline: str
    asset: str

    def open(self) -> list[OpenClaim]:
        """Return the claims that are not settled."""
        with classified(f"Reading what was announced of {self.pipeline!r}"):
            rows = query(self.conn, self.schema, _OPEN, self._about()).fetchall()
        return [OpenClaim(Announcer(**by), keys, since) for by, keys, since in rows]

    def settle(self, announcer: Announcer, keys: Collection[str]) -> None:
        """Write down that Airflow has stored them."""
        values = {**self._about(), "keys": list(keys), "by": _json(announcer)}
        with classified(f"Settling what was announced of {self.pipeline!r}"):
            query(self.conn, self.schema, _SETTLE, values)

    def reached(self, began_with: str) -> datetime | None:
        """Return the end of the last period that was claimed, or the start of the first claim that is open.

        A cleanup may have removed the events behind it: from there on nothing was announced. None: nothing ever was.
        """
        with classified(f"Reading what was announced of {self.pipeline!r}"):
            row = query(self.conn, self.schema, _REACHED, {**self._about(), "began_with": began_with}).fetchone()
        return row[0] if row else None

    def taken(self, begin: datetime, over: Collection[Announcer], *, began_with: str, again: bool) -> set[str]:
        """Return the keys of periods that end after ``begin`` and are not to be announced (any more).

        The others as :meth:`claim`.
        """
        values = {**self._about(), "begin": begin, "began_with": began_with, "again": again, "over": _all(over)}
        with classified(f"Reading what was announced of {self.pipeline!r}"):
            return {row[0] for row in query(self.conn, self.schema, _TAKEN, values)}

    def claim(
        self,
        announcer: Announcer,
        periods: Sequence[Period],
        over: Collection[Announcer],
        *,
        began_with: str,
        again: bool,
    ) -> set[str]:
        """Claim partitions, and return the keys of those that are the announcer's now.

        :param over: tasks that have ended; what they have claimed and not settled may be claimed.
        :param began_with: the query with which the target began. :param again: whether what was announced of a target
            that began with another one may be claimed, too.
        """
        values = {
            **self._about(),
            "by": _json(announcer),
            "over": _all(over),
            "began_with": began_with,
            "again": again,
            "keys": [period.key for period in periods],
            "starts": [period.start for period in periods],
            "ends": [period.end for period in periods],
        }
        with classified(f"Claiming partitions of {self.pipeline!r}"):
            return {row[0] for row in query(self.conn, self.schema, _CLAIM, values)}

    def _about(self) -> dict[str, str]:
        return {"pipeline": self.pipeline, "asset": self.asset}


def _json(announcer: Announcer) -> Jsonb:
    return Jsonb(announcer.model_dump())


def _all(announcers: Collection[Announcer]) -> list[Jsonb]:
    # Nobody is called that: an empty array has no type.
    return [Jsonb({}), *(_json(announcer) for announcer in announcers)]
