"""Which of many pipelines plainly pass a check of the health DAG, asked in one statement for each kind of check.

What a screen lets pass, the check itself would let pass. Whatever it does not is looked at by the check, alone: so the
words, and what is excused, are in one place, and a pipeline that nobody can read is no other one's trouble.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, Final, Literal

from spark_jobs.contracts.errors import EtlError
from spark_jobs.contracts.source_gaps import GAP_REASONS
from spark_jobs.contracts.tracker.queries import UNBALANCED
from spark_jobs.contracts.watch.balance import LOST_BOOKS, keeps_share
from spark_jobs.contracts.watch.batch_gaps import NOTHING_LOST
from spark_jobs.contracts.watch.condition import LedgerView, snapshot
from spark_jobs.contracts.watch.freshness import AHEAD_SECONDS
from spark_jobs.logs.events import log_event

log = logging.getLogger("etl.health")

Check = Literal["freshness", "gaps", "balance", "dead_letters"]
Limits = Mapping[Check, Mapping[str, Any]]
"""For each check the pipelines that are to be looked at, with their own limit."""

# Subqueries of one row each, and no joins, where one could be read as either: a join is planned by statistics, which a
# young table has none of, and might read all of a pipeline's batches to find one.
_FRESH: Final = """
WITH wanted AS MATERIALIZED (
    SELECT pipeline, clock_timestamp() AS now, younger_than
    FROM unnest(%(pipelines)s::text[], %(limits)s::interval[]) AS given (pipeline, younger_than)
)
SELECT pipeline FROM wanted
WHERE (
    SELECT b.processed_at FROM {schema}.batch_tracker b
    WHERE b.pipeline_id = wanted.pipeline AND b.processed_at <= wanted.now + make_interval(secs => %(ahead)s)
    ORDER BY b.processed_at DESC LIMIT 1
) >= now - younger_than OR (
    SELECT r.ended_at FROM {schema}.pipeline_run r
    WHERE r.pipeline_id = wanted.pipeline AND r.state = 'finished'
        AND r.ended_at <= wanted.now + make_interval(secs => %(ahead)s) ORDER BY r.registered_at DESC LIMIT 1
) >= now - younger_than"""
# Of each query the micro-batches in the window, in one pass: their ids leave none out, each begins where the one before
# ended, and so does the first one; and none of the query comes after them that a clock has put in front of the window.
_GAPLESS: Final = """
WITH wanted AS MATERIALIZED (
    SELECT pipeline, clock_timestamp() - last AS since
    FROM unnest(%(pipelines)s::text[], %(limits)s::interval[]) AS given (pipeline, last)
)
SELECT pipeline FROM wanted
WHERE NOT EXISTS (
    SELECT FROM (
        SELECT query_id, count(*) AS batches, min(batch_id) AS first, max(batch_id) AS newest, bool_or(apart) AS apart
        FROM (
            SELECT query_id, batch_id,
                start_offsets IS DISTINCT FROM lag(end_offsets, 1, start_offsets) OVER by_id AS apart
            FROM {schema}.batch_tracker b
            WHERE b.pipeline_id = wanted.pipeline AND b.processed_at >= wanted.since
            WINDOW by_id AS (PARTITION BY query_id ORDER BY batch_id)
        ) AS batch
        GROUP BY query_id
    ) AS own
    WHERE apart OR batches <> newest - first + 1 OR EXISTS (
        SELECT FROM {schema}.batch_tracker b
        WHERE b.pipeline_id = wanted.pipeline AND b.query_id = own.query_id AND b.batch_id > own.newest
    ) OR CASE first WHEN 0 THEN EXISTS (
        SELECT FROM {schema}.pipeline_query q
        WHERE q.pipeline_id = wanted.pipeline AND q.query_id = own.query_id AND q.seeded_from IS NOT NULL
    ) ELSE NOT EXISTS (
        SELECT FROM {schema}.batch_tracker b
        WHERE b.pipeline_id = wanted.pipeline AND b.query_id = own.query_id AND b.batch_id = own.first - 1
            AND b.end_offsets IS NOT DISTINCT FROM (
                SELECT f.start_offsets FROM {schema}.batch_tracker f
                WHERE f.pipeline_id = wanted.pipeline AND f.query_id = own.query_id AND f.batch_id = own.first
            )
    ) END
) AND NOT EXISTS (
    SELECT FROM {schema}.source_gap g
    WHERE g.pipeline_id = wanted.pipeline AND g.recorded_at >= wanted.since
        AND NOT EXISTS (SELECT FROM unnest(%(excused)s::text[]) AS excused WHERE starts_with(g.reason, excused))
) AND NOT EXISTS (SELECT FROM {schema}.batch_decision d WHERE d.pipeline_id = wanted.pipeline)
  AND EXISTS (SELECT FROM {schema}.batch_tracker b WHERE b.pipeline_id = wanted.pipeline)"""
_BALANCED: Final = f"""
WITH wanted AS MATERIALIZED (
    SELECT pipeline, clock_timestamp() - interval '1 day' AS since
    FROM unnest(%(pipelines)s::text[]) AS given (pipeline)
)
SELECT pipeline, source, lost FROM wanted CROSS JOIN LATERAL (
    SELECT coalesce(sum(source_rows), 0)::bigint AS source,
        coalesce(sum({" + ".join(f"{name}_rows" for name in LOST_BOOKS)}), 0)::bigint AS lost,
        count(*) FILTER (WHERE {UNBALANCED}) AS unbalanced
    FROM {{schema}}.batch_tracker b WHERE b.pipeline_id = wanted.pipeline AND b.processed_at >= wanted.since
) AS books
WHERE unbalanced = 0
    AND NOT EXISTS (SELECT FROM {{schema}}.batch_decision d WHERE d.pipeline_id = wanted.pipeline)
    AND EXISTS (SELECT FROM {{schema}}.batch_tracker b WHERE b.pipeline_id = wanted.pipeline)"""  # noqa: S608 - constants
_FEW_LETTERS: Final = """
WITH wanted AS MATERIALIZED (
    SELECT pipeline, most, clock_timestamp() - interval '1 day' AS since
    FROM unnest(%(pipelines)s::text[], %(limits)s::bigint[]) AS given (pipeline, most)
)
SELECT pipeline FROM wanted
WHERE (
    SELECT coalesce(sum(letters), 0) FROM (
        SELECT 1 AS letters FROM {schema}.dead_letter_single l
        WHERE l.pipeline_id = wanted.pipeline AND l.status IN ('pending', 'parked') AND l.first_failed_at > wanted.since
        UNION ALL
        SELECT letters FROM {schema}.dead_letter_bundle l
        WHERE l.pipeline_id = wanted.pipeline AND l.status IN ('pending', 'parked') AND l.first_failed_at > wanted.since
        LIMIT wanted.most + 1
    ) AS newest
) <= most"""


def screen(view: LedgerView, limits: Limits) -> frozenset[tuple[str, str]]:
    """Return the pipelines and checks that passed.

    Where the ledger cannot be asked so, none: each is then asked alone, and says what it met.

    :raises EtlError: the session with the ledger was lost.
    """
    try:
        with snapshot(view.conn):
            # Compiling such statements takes longer than running them.
            view.conn.execute("SET LOCAL jit = off")
            return frozenset(
                (pipeline, check) for check, own in limits.items() if own for pipeline in _SCREENS[check](view, own)
            )
    except EtlError as error:
        if view.conn.closed:
            raise
        log_event(log, logging.WARNING, "screening_failed", reason=str(error))
        return frozenset()


def _rows(view: LedgerView, statement: str, own: Mapping[str, Any], **values: Any) -> Iterator[tuple[Any, ...]]:
    given = {"pipelines": list(own), "limits": list(own.values()), **values}
    yield from view.rows(statement, given, "Looking at many pipelines at once")


def _fresh(view: LedgerView, own: Mapping[str, timedelta]) -> Iterator[str]:
    return (row[0] for row in _rows(view, _FRESH, own, ahead=AHEAD_SECONDS))


def _gapless(view: LedgerView, own: Mapping[str, timedelta]) -> Iterator[str]:
    return (row[0] for row in _rows(view, _GAPLESS, own, excused=[GAP_REASONS[kind] for kind in NOTHING_LOST]))


def _balanced(view: LedgerView, own: Mapping[str, float | None]) -> Iterator[str]:
    for pipeline, source, lost in _rows(view, _BALANCED, own):
        if keeps_share(lost, source, own[pipeline]):
            yield pipeline


def _few_letters(view: LedgerView, own: Mapping[str, int]) -> Iterator[str]:
    return (row[0] for row in _rows(view, _FEW_LETTERS, own))


_SCREENS: Final[Mapping[Check, Callable[[LedgerView, Mapping[str, Any]], Iterator[str]]]] = {
    "freshness": _fresh,
    "gaps": _gapless,
    "balance": _balanced,
    "dead_letters": _few_letters,
}
