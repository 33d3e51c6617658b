"""Nothing is missing: micro-batches and their source offsets join up, without hole or overlap.

Within a query, batch ids follow each other and each batch begins where the one before ended. From one checkpoint to the
next, a query that was resumed from the ledger begins where its predecessor ended. What is missing for a known reason is
named: rows that the broker deleted or compacted away (``source_gap``), a checkpoint that a person has started over, and
ledger rows that retention took.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, Final

from pydantic import AwareDatetime

from spark_jobs.contracts.errors import ConfigError, GapError
from spark_jobs.contracts.source_gaps import GAP_REASONS, GapKind
from spark_jobs.contracts.watch.condition import NEVER_COMMITTED, Age, Condition, LedgerView, Seen
from spark_jobs.contracts.watch.offsets import seams

NOTHING_LOST: Final[tuple[GapKind, ...]] = ("compaction",)
"""Kinds of missing source rows that never were records: what a person on call is not to be told of."""
EXCUSED: Final[tuple[GapKind, ...]] = ("compaction", "retention")
"""Kinds of missing source rows that are not complained of unless somebody says otherwise."""
_MOST_NAMED: Final = 20

# The batch in front of the window is looked at, too: the first one inside must join up with it. Everything in one
# statement, and in the order of the primary key: there are pipelines with a batch every few seconds.
_WINDOW: Final = """
WITH since AS (
    SELECT coalesce(%(since)s::timestamptz, clock_timestamp() - %(last)s::interval, '-infinity') AS at
), bound AS (
    SELECT query_id, min(batch_id) AS first FROM {schema}.batch_tracker
    WHERE pipeline_id = %(pipeline)s AND processed_at >= (SELECT at FROM since) GROUP BY query_id
), batch AS (
    SELECT bound.query_id, bound.first, own.* FROM bound CROSS JOIN LATERAL (
        SELECT batch_id, start_offsets, processed_at,
            lag(batch_id) OVER by_id AS before_id, lag(end_offsets) OVER by_id AS before_end
        FROM {schema}.batch_tracker
        WHERE pipeline_id = %(pipeline)s AND query_id = bound.query_id AND batch_id >= bound.first - 1
        WINDOW by_id AS (ORDER BY batch_id)
    ) AS own
)
SELECT count(*), min(batch.processed_at)::text, max(batch.processed_at)::text, (SELECT count(*) FROM bound),
    coalesce(jsonb_agg(jsonb_build_array(
        q.epoch, batch.batch_id, batch.query_id, before_id, before_end, batch.start_offsets, q.origin, q.seeded_from
    )) FILTER (WHERE
        before_id IS NULL AND (batch.batch_id > 0 OR q.seeded_from IS NOT NULL)
        OR before_id <> batch.batch_id - 1 OR before_id IS NOT NULL AND before_end IS DISTINCT FROM batch.start_offsets
    ), '[]'),
    EXISTS (SELECT FROM {schema}.source_gap
        WHERE pipeline_id = %(pipeline)s AND recorded_at >= (SELECT at FROM since)),
    ARRAY(SELECT batch_id || ' of query ' || query_id FROM {schema}.batch_decision
        WHERE pipeline_id = %(pipeline)s AND decided_at <= clock_timestamp() - %(finishing)s::interval
        ORDER BY decided_at LIMIT 5),
    (SELECT at::text FROM since)
FROM batch LEFT JOIN {schema}.pipeline_query q ON q.pipeline_id = %(pipeline)s AND q.query_id = batch.query_id
WHERE batch.batch_id >= batch.first"""
_QUERY: Final = """
SELECT start_offsets, seeded_from FROM {schema}.pipeline_query
WHERE pipeline_id = %(pipeline)s AND query_id = %(query)s"""
_PREVIOUS: Final = """
SELECT batch_id, end_offsets FROM {schema}.batch_tracker
WHERE pipeline_id = %(pipeline)s AND query_id = %(query)s AND batch_id < %(below)s ORDER BY batch_id DESC LIMIT 1"""
# What a cleanup removed of a query is always all of its batches up to one.
_REMOVED: Final = """
SELECT removed_through_batch, end_offsets, through_time::text FROM {schema}.batch_retention
WHERE pipeline_id = %(pipeline)s AND query_id = %(query)s"""
# Sorted out by the server: a compacted topic has a gap of that kind with nearly every batch.
_MISSING: Final = """
SELECT batch_id, query_id, source, missing_rows, reason FROM {schema}.source_gap
WHERE pipeline_id = %(pipeline)s AND recorded_at >= coalesce(%(since)s::timestamptz, '-infinity')
  AND NOT EXISTS (SELECT FROM unnest(%(excused)s::text[]) AS excused WHERE starts_with(reason, excused))
ORDER BY gap_id LIMIT %(most)s"""
_EXCUSED: Final = """
SELECT excused, count(*), coalesce(sum(missing_rows), 0)::bigint, min(batch_id), max(batch_id),
    (array_agg(source ORDER BY gap_id DESC))[1]
FROM {schema}.source_gap, unnest(%(excused)s::text[]) AS excused
WHERE pipeline_id = %(pipeline)s AND recorded_at >= coalesce(%(since)s::timestamptz, '-infinity')
  AND starts_with(reason, excused)
GROUP BY excused ORDER BY excused"""
_LAST: Final = """
SELECT b.batch_id, b.processed_at::text AS at FROM {schema}.batch_tracker b WHERE b.pipeline_id = %(pipeline)s
ORDER BY b.processed_at DESC, b.batch_id DESC LIMIT 1"""


@dataclass(frozen=True, slots=True)
class _Finding:
    text: str
    excused: bool = False


class BatchGaps(Condition):
    """Holds when nothing is missing in the window.

    :param since: only micro-batches that were committed at this time or later; all that the ledger has without it.
    :param last: the same as an age, by the server's clock. One of both, or none.
    :param finishing: how long a micro-batch may be decided and not finished: its driver is at it.
    :param excuse: kinds of missing source rows that are named and not complained of: ``compaction``, where nothing was
        lost; ``retention`` and ``partition_gone``, where rows were lost that nobody can read any more; ``rolled_back``,
        where a person accepted that a part of a batch is missing.
    """

    title: ClassVar[str] = "A check for gaps"

    since: AwareDatetime | None = None
    last: Age | None = None
    finishing: Age = timedelta()
    excuse: tuple[GapKind, ...] = EXCUSED

    def check(self) -> None:
        """Raise :class:`ConfigError` where there are two windows."""
        if self.since is not None and self.last is not None:
            raise ConfigError("A check for gaps has one window", found="since and last", expected="one of them")
        if self.last is not None and self.last <= timedelta():
            raise ConfigError("A check for gaps needs a window", found=f"last={self.last}", expected="a positive time")

    def _look(self, view: LedgerView) -> Seen:
        values = {"pipeline": self.pipeline, "since": self.since, "last": self.last, "finishing": self.finishing}
        about = f"Looking for gaps of {self.pipeline!r}"
        batches, first, newest, queries, broken, missing, decided, since = view.rows(_WINDOW, values, about)[0]
        findings = [one for row in sorted(broken, key=_order) for one in self._broken(view, *row[1:])]
        excused = _few([one.text for one in findings if one.excused])
        gaps = [one.text for one in findings if not one.excused]
        if missing:
            reasons = [GAP_REASONS[kind] for kind in self.excuse]
            about_rows = {"pipeline": self.pipeline, "since": since, "most": _MOST_NAMED + 1, "excused": reasons}
            gaps += [_missing(*row) for row in view.rows(_MISSING, about_rows, about)]
            excused += [_excused(*row) for row in view.rows(_EXCUSED, about_rows, about)]
        if gaps:
            raise self._error(gaps, excused)
        found = {"batches": batches, "first": first, "last": newest, "queries": queries, "excused": excused}
        if decided:
            text = f"{self.pipeline}: micro-batch {', '.join(decided)} is decided and not finished"
            return Seen(done=False, message=f"{text}; the next run finishes it", value=found)
        if not batches:
            return self._empty(view, since, found)
        text = f"{self.pipeline}: {batches} micro-batches from {first} to {newest} join up"
        return Seen(done=True, message="; ".join([text, *found["excused"]]), value=found)

    def _empty(self, view: LedgerView, since: str, found: dict[str, Any]) -> Seen:
        last = view.rows(_LAST, {"pipeline": self.pipeline}, "Looking for the last micro-batch")
        if not last:
            value = {**found, NEVER_COMMITTED: True}
            return Seen(done=False, message=f"{self.pipeline}: no micro-batch was ever committed", value=value)
        batch, moment = last[0]
        text = f"{self.pipeline}: nothing was committed since {since}; the last one was {batch} at {moment}"
        return Seen(done=True, message="; ".join([text, *found["excused"]]), value=found)

    def _broken(
        self,
        view: LedgerView,
        batch: int,
        query: str,
        before: int | None,
        before_end: Any,
        start: Any,
        origin: str | None,
        seeded_from: str | None,
    ) -> Iterator[_Finding]:
        if before is not None:
            if before != batch - 1:
                yield _Finding(_not_there(before + 1, batch - 1, query))
            for seam in seams(before_end, start):
                yield _Finding(f"before micro-batch {batch} of query {query}: {seam}")
            return
        # The first that the ledger has of this query: a seeded file source begins with 1, as 0 was its seed.
        seeded = origin == "resumed" and batch == 1
        if batch > 0 and not seeded:
            yield from self._head(view, query, batch, start)
        elif origin == "accepted":
            yield _Finding(f"query {query} was started over by a person (accept_new_checkpoint)", excused=True)
        elif seeded_from is not None:
            yield from self._resumed(view, query, seeded_from, start)

    def _head(self, view: LedgerView, query: str, batch: int, start: Any) -> Iterator[_Finding]:
        """Look at what is in front of a batch whose predecessor is not there."""
        values = {"pipeline": self.pipeline, "query": query, "below": batch}
        before = view.rows(_PREVIOUS, values, "Looking for the batch before")
        if before:
            number, end = before[0]
            yield _Finding(_not_there(number + 1, batch - 1, query))
            for seam in seams(end, start):
                yield _Finding(f"before micro-batch {batch} of query {query}: {seam}")
            return
        rows = view.rows(_REMOVED, values, "Looking for what a cleanup removed")
        through, end, moment = rows[0] if rows else (-1, None, None)
        if rows:
            text = f"micro-batches up to {through} of query {query} were removed by a cleanup, the last one of {moment}"
            yield _Finding(text, excused=True)
        if through < batch - 1:
            yield _Finding(_not_there(through + 1, batch - 1, query))
        elif rows:
            for seam in seams(end, start):
                yield _Finding(f"before micro-batch {batch} of query {query}: {seam}")

    def _resumed(self, view: LedgerView, query: str, seeded_from: str, start: Any) -> Iterator[_Finding]:
        where, end = self._end_of(view, seeded_from)
        if not where or (isinstance(end, dict) and "logOffset" in end):
            # Of a new checkpoint the log's entries are counted anew; which files were read the ledger itself says.
            return
        for seam in seams(end, start):
            yield _Finding(f"between {where} and the resumed query {query}: {seam}")

    def _end_of(self, view: LedgerView, query: str) -> tuple[str, Any]:
        """Return where a query has ended, in words and offsets; or the one that it was resumed from."""
        seen: set[str] = set()
        while query not in seen:
            seen.add(query)
            values = {"pipeline": self.pipeline, "query": query, "below": 2**62}
            known = view.rows(_QUERY, values, "Looking for the checkpoint before")
            if not known:
                break
            if rows := view.rows(_PREVIOUS, values, "Looking for the checkpoint before"):
                return f"micro-batch {rows[0][0]} of query {query}", rows[0][1]
            if rows := view.rows(_REMOVED, values, "Looking for what a cleanup removed"):
                return f"micro-batch {rows[0][0]} of query {query}", rows[0][1]
            start, seeded_from = known[0]
            if start is not None:
                return f"the beginning of query {query}, which has no batch,", start
            query = seeded_from or ""
        return "", None

    def _error(self, gaps: list[str], excused: list[str]) -> GapError:
        named = gaps[:_MOST_NAMED] + (["and more"] if len(gaps) > _MOST_NAMED else [])
        return GapError(
            f"Micro-batches of {self.pipeline!r} do not join up",
            found="; ".join([*named, *(f"excused: {text}" for text in excused)]),
            expected="each micro-batch begins where the one before ended",
            cure="this does not heal by itself. Was the ledger edited or restored? Missing source rows that are "
            "known and accepted: excuse=[…], or a window (since, last) behind them",
        )


def _order(broken: list[Any]) -> tuple[int, int]:
    """Return the place of a batch that does not join up: epochs only rise, other than clocks."""
    return (broken[0] or 0, broken[1])


def _few(texts: list[str]) -> list[str]:
    left = len(texts) - _MOST_NAMED
    return texts if left <= 0 else [f"{left} more before these", *texts[-_MOST_NAMED:]]


def _missing(batch: int, query: str, source: dict[str, Any], missing: int | None, reason: str) -> str:
    number = "rows" if missing is None else f"{missing} rows"
    return f"micro-batch {batch} of query {query}: {number} missing at {_place(source)}, {reason}"


def _excused(reason: str, gaps: int, rows: int, first: int, last: int, source: dict[str, Any]) -> str:
    if gaps == 1:
        return f"micro-batch {first}: {rows or ''} rows missing at {_place(source)}, {reason}".replace("  ", " ")
    number = f"{gaps} times rows, {rows} in all, missing"
    return f"micro-batches {first} to {last}: {number}, last at {_place(source)}, {reason}"


def _not_there(first: int, last: int, query: str) -> str:
    which = f"micro-batch {first} of query {query} is" if first == last else ""
    return f"{which or f'micro-batches {first} to {last} of query {query} are'} not in the ledger"


def _place(source: dict[str, Any]) -> str:
    if "topic" not in source:
        return str(source)
    offsets = source.get("from_offset", "?")
    if "to_offset" in source:
        offsets = f"{offsets} to {source['to_offset']}"
    return f"{source['topic']}[{source.get('partition', '?')}] {offsets}"
