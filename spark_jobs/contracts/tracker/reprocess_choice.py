"""Which micro-batches of the ledger are done again: all that were asked for, or a refusal with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from spark_jobs.contracts.errors import ReprocessRefusedError
from spark_jobs.contracts.reprocess_batches import ReprocessRequest, TimesOf
from spark_jobs.contracts.tracker.connect import Connection, classified, query
from spark_jobs.contracts.tracker.known_queries import known_queries

_BY_ID: Final = "batch_id BETWEEN %(first)s AND %(last)s"
_BY_TIME: Final = {
    # Nobody knows the times of a micro-batch none of whose rows has passed: it belongs where its neighbours do. A wrong
    # filter leaves such ones, and they are what is to be done again.
    TimesOf.EVENT_TIME: """(
        event_time_max >= %(since)s AND event_time_min < %(until)s
        OR event_time_max IS NULL AND passed_rows = 0 AND source_rows > 0 AND batch_id > coalesce((
            SELECT max(b.batch_id) FROM {schema}.batch_tracker b
            WHERE b.pipeline_id = %(pipeline)s AND b.query_id = %(query)s AND b.event_time_max < %(since)s
        ), -1) AND batch_id < coalesce((
            SELECT min(b.batch_id) FROM {schema}.batch_tracker b
            WHERE b.pipeline_id = %(pipeline)s AND b.query_id = %(query)s AND b.event_time_min >= %(until)s
        ), 9223372036854775807)
    )""",
    TimesOf.COMMIT_TIME: "processed_at >= %(since)s AND processed_at < %(until)s",
}
# A partition that is new to a micro-batch begins at its earliest offset, which nobody has written down.
_BY_OFFSETS: Final = """
coalesce((start_offsets #>> ARRAY[%(topic)s, %(partition)s])::bigint, 0) <= %(last)s
AND (end_offsets #>> ARRAY[%(topic)s, %(partition)s])::bigint > %(first)s"""
_OF_QUERY: Final = """
FROM {schema}.batch_tracker WHERE pipeline_id = %(pipeline)s AND query_id = %(query)s"""
_CHOSEN: Final = f"SELECT batch_id {_OF_QUERY} AND CHOICE ORDER BY batch_id"
_KNOWN: Final = f"""
SELECT min(batch_id), max(batch_id), count(*) FILTER (WHERE event_time_max IS NULL AND passed_rows > 0),
    (SELECT removed_through_batch FROM {{schema}}.batch_retention
     WHERE pipeline_id = %(pipeline)s AND query_id = %(query)s)
{_OF_QUERY}"""  # noqa: S608 - constants


def choose_batches(conn: Connection, schema: str, wanted: ReprocessRequest) -> tuple[str, tuple[int, ...]]:
    """Return the query and the ids of its micro-batches, in their order; run in the caller's transaction.

    :raises ReprocessRefusedError: not all of them are in the ledger, or nothing is chosen.
    """
    query_id = wanted.query_id or _last_query(conn, schema, wanted.pipeline_id)
    first, last = wanted.batches or (0, 0)
    values = {
        "pipeline": wanted.pipeline_id,
        "query": query_id,
        "first": first,
        "last": last,
        "since": wanted.since,
        "until": wanted.until,
    }
    condition = _BY_ID if wanted.batches else _BY_TIME[wanted.times]
    if wanted.offsets is not None:
        condition = _BY_OFFSETS
        values |= {**wanted.offsets.model_dump(), "partition": str(wanted.offsets.partition)}
    found = tuple(row[0] for row in query(conn, schema, _CHOSEN.replace("CHOICE", condition), values))
    known = query(conn, schema, _KNOWN, values).fetchone() or (None, None, 0, None)
    there = _there(query_id, known)
    if wanted.batches and len(found) != last - first + 1:
        raise ReprocessRefusedError(
            "Not all of these micro-batches are in the ledger",
            found=f"{len(found)} of the {last - first + 1} from {first} to {last}, "
            f"without {_absent(found, first, last)}",
            expected=there,
            cure="Choose micro-batches that the ledger has: what others have read is not known any more",
        )
    if wanted.since is not None and wanted.times is TimesOf.EVENT_TIME and known[2]:
        raise ReprocessRefusedError(
            "The event times of not all micro-batches are known",
            found=f"{known[2]} micro-batches of query {query_id} have rows and no event times",
            expected="a pipeline with a watermark, by whose column the ledger keeps event times",
            cure="Choose by batch ids, or by the time of their commit (commit_time)",
        )
    if not found:
        raise ReprocessRefusedError(
            f"No micro-batch {'touches this time' if wanted.offsets is None else 'has read these offsets'}",
            expected=there,
            cure="Correct since and until, or the offsets; and is it the right query?",
        )
    return query_id, found


def is_newest_query(conn: Connection, schema: str, pipeline_id: str, query_id: str) -> bool:
    """Tell whether no other query of the pipeline has committed a micro-batch since this one was used."""
    used = [one.query_id for one in known_queries(conn, schema, pipeline_id) if one.batches]
    return bool(used) and used[-1] == query_id


def batches_after(conn: Connection, schema: str, pipeline_id: str, query_id: str, batch_id: int) -> tuple[int, ...]:
    """Return the query's committed micro-batches behind this one, in their order."""
    values = {"pipeline": pipeline_id, "query": query_id, "after": batch_id}
    statement = _CHOSEN.replace("CHOICE", "batch_id > %(after)s")
    with classified("Looking for newer micro-batches"):
        return tuple(row[0] for row in query(conn, schema, statement, values))


def _last_query(conn: Connection, schema: str, pipeline_id: str) -> str:
    used = [one.query_id for one in known_queries(conn, schema, pipeline_id) if one.batches]
    if not used:
        raise ReprocessRefusedError(
            f"The pipeline {pipeline_id!r} has no committed micro-batch in the ledger", cure="Run it first"
        )
    return used[-1]


def _there(query_id: str, known: tuple[Any, ...]) -> str:
    first, last, _, removed = known
    if first is None:
        return f"a query with committed micro-batches; the ledger has none of {query_id}"
    gone = f"; those up to {removed} were removed by a cleanup" if removed is not None else ""
    return f"some of query {query_id}, of which the ledger has micro-batches {first} to {last}{gone}"


def _absent(found: tuple[int, ...], first: int, last: int) -> str:
    """Return the first few ids that are not there, however large the range is."""
    missing = list(_missing(iter(found), first, last, most=5))
    return ", ".join(map(str, missing)) + (" …" if last - first + 1 - len(found) > len(missing) else "")


def _missing(found: Iterator[int], first: int, last: int, *, most: int) -> Iterator[int]:
    expected, given = first, 0
    for batch_id in (*found, last + 1):
        while expected < batch_id and given < most:
            yield expected
            expected, given = expected + 1, given + 1
        expected = batch_id + 1
