"""The ledger's retention: what is old goes, and never what a restart, a replay or a person still needs.

Every transaction is short, removes a bounded number of rows, and waits for nobody: no commit waits for a cleanup, and
one that is killed goes on where it was. Two at once share the work.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Final

from spark_jobs.contracts.cleanup import CleanupReport, CleanupRequest, totals
from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.tracker.batch_retention import BatchCleanup
from spark_jobs.contracts.tracker.connect import Connection, classified, query
from spark_jobs.contracts.tracker.file_retention import FileCleanup
from spark_jobs.contracts.tracker.history_retention import HistoryCleanup
from spark_jobs.contracts.tracker.letter_retention import LetterCleanup
from spark_jobs.contracts.tracker.reprocess_retention import ReprocessCleanup
from spark_jobs.contracts.tracker.short_deletes import Problems, server_time_before
from spark_jobs.logs.events import log_event

log = logging.getLogger("etl.cleanup")

Count = tuple[str | None, str, int]
"""A pipeline (None: nobody's), a kind of rows, and their number."""

_UNKNOWN: Final = """
SELECT wanted FROM unnest(%s::text[]) AS wanted
WHERE NOT EXISTS (SELECT FROM {schema}.pipeline p WHERE p.pipeline_id = wanted) ORDER BY wanted"""


def clean(conn: Connection, schema: str, request: CleanupRequest) -> CleanupReport:
    """Remove what is older than the request says; with ``dry_run`` count it.

    Order: batches before the runs that explain them, letters before the replays that brought them home. What cannot be
    removed is a problem of its pipeline alone: the others are cleaned all the same.

    :raises ConfigError: a pipeline that the ledger does not know.
    :raises EtlError: the session was lost, or the ledger cannot be read at all.
    """
    require_pipelines(conn, schema, request.pipelines)
    problems = Problems(conn)
    batches = BatchCleanup(conn, schema, request, server_time_before(conn, request.days), problems)
    queries = tuple(batches.batches())
    counts: list[Count] = [(one.pipeline_id, "batches", one.batches) for one in queries]
    files = FileCleanup(conn, schema, request, problems).files()
    counts += [(pipeline_id, "files", number) for pipeline_id, number in files]
    counts += [*_letters(conn, schema, request, problems), *_history(conn, schema, request, problems)]
    by_pipeline, by_kind = totals(counts)
    event = "cleanup_counted" if request.dry_run else "cleanup_done"
    log_event(log, logging.INFO, event, before=batches.before, removed=by_kind)
    return CleanupReport(
        dry_run=request.dry_run,
        before=batches.before,
        queries=queries,
        by_pipeline=by_pipeline,
        totals=by_kind,
        problems=problems.found,
    )


def require_pipelines(conn: Connection, schema: str, pipelines: Sequence[str]) -> None:
    """Return if the ledger knows all of them.

    :raises ConfigError: naming those that it does not know.
    """
    with classified("Looking up the pipelines"):
        unknown = [row[0] for row in query(conn, schema, _UNKNOWN, (list(pipelines),))]
    if unknown:
        raise ConfigError(
            f"The ledger of schema {schema!r} does not know {', '.join(map(repr, unknown))}",
            expected="pipelines that were started at least once",
            cure="list the known ones with `etl-pipeline status`",
        )


def _letters(conn: Connection, schema: str, request: CleanupRequest, problems: Problems) -> Iterator[Count]:
    if request.letter_days is None:
        return
    cleanup = LetterCleanup(conn, schema, request, server_time_before(conn, request.letter_days), problems)
    for pipeline_id, number in cleanup.letters():
        yield pipeline_id, "dead_letters", number
    for pipeline_id, number in cleanup.replays():
        yield pipeline_id, "replays", number


def _history(conn: Connection, schema: str, request: CleanupRequest, problems: Problems) -> Iterator[Count]:
    if request.history_days is None:
        return
    before = server_time_before(conn, request.history_days)
    for pipeline_id, number in ReprocessCleanup(conn, schema, request, before, problems).reprocesses():
        yield pipeline_id, "reprocesses", number
    cleanup = HistoryCleanup(conn, schema, request, before, problems)
    for pipeline_id, number in cleanup.runs():
        yield pipeline_id, "runs", number
    yield None, "breaker_events", cleanup.events()
