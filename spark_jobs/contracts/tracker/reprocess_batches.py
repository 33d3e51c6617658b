"""What the ledger knows of micro-batches that are done again: what each one was, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import UUID, uuid4

from psycopg.types.json import Jsonb

from spark_jobs.contracts.errors import ConfigError, ReprocessRefusedError
from spark_jobs.contracts.reprocess_batches import MOST_SHOWN, BatchAgain, ReprocessRequest, ReprocessSummary
from spark_jobs.contracts.run_request import RunRequest
from spark_jobs.contracts.tracker.connect import Connection, classified, query, short_transaction
from spark_jobs.contracts.tracker.fence import check_fence
from spark_jobs.contracts.tracker.records import BatchIdentity, SourceFile
from spark_jobs.contracts.tracker.reprocess_choice import choose_batches, is_newest_query
from spark_jobs.contracts.tracker.run_state import newest_request

_OPEN: Final = """
INSERT INTO {schema}.reprocess (reprocess_id, pipeline_id, query_id, batch_ids, dry_run, request, requested_by)
VALUES (%(id)s, %(pipeline)s, %(query)s, %(batches)s, %(dry_run)s, %(request)s, %(by)s)
ON CONFLICT (reprocess_id) DO UPDATE SET state = 'open', ended_at = NULL
RETURNING query_id, batch_ids, request"""
# What stands in the target now: as the batch was done again last, or as it was done first.
_BATCH: Final = """
SELECT b.start_offsets, b.end_offsets, b.source_digest, b.source_rows, b.checkpoint_location,
    coalesce(r.rows_after, b.written_rows),
    coalesce(r.letters_after, b.dead_lettered_rows + b.write_dead_lettered_rows),
    EXISTS (SELECT FROM {schema}.batch_tracker own WHERE own.pipeline_id = %(own)s AND own.query_id = b.query_id
        AND own.batch_id = b.batch_id)
FROM {schema}.batch_tracker b LEFT JOIN LATERAL (
    SELECT rows_after, letters_after FROM {schema}.batch_reprocessed r
    WHERE r.pipeline_id = b.pipeline_id AND r.query_id = b.query_id AND r.batch_id = b.batch_id
    ORDER BY r.number DESC LIMIT 1
) AS r ON true
WHERE b.pipeline_id = %(pipeline)s AND b.query_id = %(query)s AND b.batch_id = %(batch)s"""
_FILES: Final = """
SELECT path, modified_at, size_bytes FROM {schema}.batch_file
WHERE pipeline_id = %(pipeline)s AND query_id = %(query)s AND batch_id = %(batch)s ORDER BY path"""
_SUMS: Final = """
SELECT count(*), coalesce(sum(rows_before), 0)::bigint, coalesce(sum(rows_after), 0)::bigint,
    coalesce(sum(letters_before), 0)::bigint, coalesce(sum(letters_after), 0)::bigint
FROM {schema}.batch_reprocessed WHERE reprocess_id = %(id)s"""
_SHOWN: Final = """
SELECT batch_id, rows_before, rows_after, letters_before, letters_after FROM {schema}.batch_reprocessed
WHERE reprocess_id = %(id)s ORDER BY batch_id LIMIT %(most)s"""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The micro-batches that are done again, in their order.

    :param newest_query: whether no other query has committed a micro-batch since.
    """

    query_id: str
    batch_ids: tuple[int, ...]
    newest_query: bool


@dataclass(frozen=True, slots=True)
class CommittedBatch:
    """A committed micro-batch as it is read again.

    :param identity: under the id of what does it again. :param files: those that it read.
    :param rows: how many of its rows the target has. :param letters: how many dead letters it has made.
    :param done: whether this reprocess has done it already.
    """

    identity: BatchIdentity
    files: tuple[SourceFile, ...]
    source_rows: int
    checkpoint_location: str
    rows: int
    letters: int
    done: bool


def reprocess_request(
    conn: Connection, schema: str, wanted: ReprocessRequest, *, started_by: str, run_id: str | None = None
) -> RunRequest:
    """Return the request of a run that reprocesses, by the configuration of the pipeline's newest run.

    :raises ConfigError: no run of the pipeline is known.
    """
    newest = newest_request(conn, schema, wanted.pipeline_id)
    if newest is None:
        raise ConfigError(
            f"The pipeline {wanted.pipeline_id!r} is not in the ledger: there is nothing to reprocess",
            expected="a pipeline that ran at least once",
            cure="Correct the pipeline's id; `etl-pipeline status` shows those that there are",
        )
    return RunRequest(
        run_id=run_id or str(uuid4()),
        pipeline_id=wanted.own_pipeline_id,
        config=newest["config"],
        started_by=started_by,
        reprocess=wanted,
        tracker_schema=schema,
    )


def open_reprocess(conn: Connection, schema: str, wanted: ReprocessRequest, run_id: str, epoch: int) -> Chosen:
    """Choose the micro-batches and write them down; a further attempt gets those that the first one chose.

    :raises ReprocessRefusedError: not all of them are in the ledger, or nothing is chosen.
    :raises ConfigError: the id was used for another choice. :raises FencedError: a newer run of it exists.
    """
    with short_transaction(conn, "Choosing the micro-batches"):
        used = query(
            conn,
            schema,
            "SELECT query_id, batch_ids FROM {schema}.reprocess WHERE reprocess_id = %s",
            (wanted.reprocess_id,),
        ).fetchone()
        query_id, batch_ids = used or choose_batches(conn, schema, wanted)
        values = {
            "id": wanted.reprocess_id,
            "pipeline": wanted.pipeline_id,
            "query": query_id,
            "batches": list(batch_ids),
            "dry_run": wanted.dry_run,
            "request": Jsonb(wanted.choice),
            "by": run_id,
        }
        opened = query(conn, schema, _OPEN, values).fetchone()
        if opened is None or opened[2] != wanted.choice:
            raise ConfigError(
                f"The reprocess {wanted.reprocess_id} was begun for other micro-batches",
                found="another choice than the one it began with",
                cure="Go on with the choice that it began with, or leave the id out: then it is a new one",
            )
        check_fence(conn, schema, wanted.own_pipeline_id, run_id, epoch, lock=True)
    return Chosen(str(opened[0]), tuple(opened[1]), is_newest_query(conn, schema, wanted.pipeline_id, str(opened[0])))


def committed_batch(
    conn: Connection, schema: str, wanted: ReprocessRequest, query_id: str, batch_id: int
) -> CommittedBatch:
    """Return a micro-batch with its source range and what stands of it in the target.

    :raises ReprocessRefusedError: a cleanup has removed it meanwhile.
    """
    values = {"pipeline": wanted.pipeline_id, "query": query_id, "batch": batch_id, "own": wanted.own_pipeline_id}
    with classified("Reading a micro-batch that is done again"):
        row = query(conn, schema, _BATCH, values).fetchone()
        files = query(conn, schema, _FILES, values).fetchall()
    if row is None:
        raise ReprocessRefusedError(
            f"Micro-batch {batch_id} is not in the ledger any more",
            expected="the row of batch_tracker that says what it read",
            cure="A cleanup has removed it meanwhile; begin anew with the micro-batches that are there",
        )
    start, end, digest, source_rows, location, rows, letters, done = row
    identity = BatchIdentity(
        pipeline_id=wanted.own_pipeline_id,
        query_id=query_id,
        batch_id=batch_id,
        start_offsets=start,
        end_offsets=end,
        source_digest=digest,
    )
    return CommittedBatch(
        identity, tuple(SourceFile(*file) for file in files), source_rows, location, rows, letters, done
    )


def finish_reprocess(
    conn: Connection, schema: str, wanted: ReprocessRequest, query_id: str, dry: tuple[BatchAgain, ...]
) -> ReprocessSummary:
    """Record the end, and return what came of it in all attempts.

    :param dry: of a dry run: what would have come of it; the ledger has nothing of that.
    """
    with short_transaction(conn, "Recording the end of a reprocess"):
        summary = _summary(conn, schema, wanted, query_id, dry)
        query(
            conn,
            schema,
            "UPDATE {schema}.reprocess SET state = 'finished', ended_at = clock_timestamp(), summary = %(summary)s "
            "WHERE reprocess_id = %(id)s",
            {"summary": Jsonb(summary.to_json()), "id": wanted.reprocess_id},
        )
    return summary


def read_reprocess_summary(conn: Connection, schema: str, reprocess_id: UUID) -> ReprocessSummary | None:
    """Return what came of a reprocess; None while it has not ended."""
    with classified("Reading what was reprocessed"):
        row = query(
            conn, schema, "SELECT summary FROM {schema}.reprocess WHERE reprocess_id = %s", (reprocess_id,)
        ).fetchone()
    return ReprocessSummary.model_validate(row[0]) if row and row[0] is not None else None


def _summary(
    conn: Connection, schema: str, wanted: ReprocessRequest, query_id: str, dry: tuple[BatchAgain, ...]
) -> ReprocessSummary:
    names = ("rows_before", "rows_after", "letters_before", "letters_after")
    if wanted.dry_run:
        sums = [len(dry), *(sum(getattr(one, name) for one in dry) for name in names)]
        shown = dry[:MOST_SHOWN]
    else:
        values = {"id": wanted.reprocess_id, "most": MOST_SHOWN}
        sums = list(query(conn, schema, _SUMS, values).fetchone() or ())
        shown = tuple(_again(row) for row in query(conn, schema, _SHOWN, values))
    return ReprocessSummary(
        reprocess_id=wanted.reprocess_id,
        pipeline_id=wanted.pipeline_id,
        query_id=query_id,
        dry_run=wanted.dry_run,
        **dict(zip(("batches", *names), sums, strict=True)),
        shown=shown,
    )


def _again(row: tuple[int, int, int, int, int]) -> BatchAgain:
    batch, before, after, letters_before, letters_after = row
    return BatchAgain(
        batch_id=batch,
        rows_before=before,
        rows_after=after,
        letters_before=letters_before,
        letters_after=letters_after,
    )
