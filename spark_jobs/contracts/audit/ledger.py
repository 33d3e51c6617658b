"""What the ledger has of a query, for an audit: few questions, answered by the server."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from spark_jobs.contracts.audit.checkpoint import FileSum
from spark_jobs.contracts.tracker.known_queries import KnownQuery, known_queries, used_since
from spark_jobs.contracts.watch.condition import LedgerView

OLDER: Final = -1
"""In sums of files: all micro-batches before those that are compared one by one."""

_OWNER: Final = """
SELECT pipeline_id FROM {schema}.pipeline_query WHERE query_id = %(query)s AND pipeline_id <> %(pipeline)s LIMIT 1"""
_REMOVED: Final = """
SELECT removed_through_batch, removed_files FROM {schema}.batch_retention
WHERE pipeline_id = %(pipeline)s AND query_id = %(query)s"""
_DECIDED: Final = """
SELECT batch_id FROM {schema}.batch_decision WHERE pipeline_id = %(pipeline)s AND query_id = %(query)s"""
_BATCHES: Final = """
SELECT batch_id, end_offsets FROM {schema}.batch_tracker
WHERE pipeline_id = %(pipeline)s AND query_id = %(query)s AND batch_id BETWEEN %(first)s AND %(last)s"""
_HASH: Final = "('x' || encode(substr(sha256(convert_to(path, 'UTF8')), 1, 8), 'hex'))::bit(64)::bigint"
_FILES: Final = f"""
SELECT CASE WHEN batch_id >= %(first)s THEN batch_id ELSE {OLDER} END, count(*), sum({_HASH})
FROM {{schema}}.batch_file
WHERE pipeline_id = %(pipeline)s AND query_id = %(query)s AND batch_id <= %(last)s GROUP BY 1
UNION ALL
SELECT {OLDER}, count(*), sum({_HASH}) FROM {{schema}}.batch_file_retained
WHERE pipeline_id = %(pipeline)s AND query_id = %(query)s HAVING count(*) > 0"""  # noqa: S608 - constants
_PATHS: Final = """
SELECT path FROM {schema}.batch_file
WHERE pipeline_id = %(pipeline)s AND query_id = %(query)s AND batch_id = %(batch)s LIMIT %(most)s"""


@dataclass(frozen=True, slots=True)
class LedgerSide:
    """What the ledger says of the checkpoint's query.

    :param queries: all of the pipeline, the one that was used last at the end. :param query: the checkpoint's own.
    :param owner: the other pipeline that it belongs to. :param batches: end offsets of those that are compared.
    :param removed_through: up to which micro-batch a cleanup has removed rows; -1 for none.
    :param removed_files: how many names of files it has removed. :param decided: micro-batches that wait for their end.
    """

    queries: list[KnownQuery]
    query: KnownQuery | None
    owner: str | None = None
    batches: dict[int, Any] = field(default_factory=dict)
    removed_through: int = -1
    removed_files: int = 0
    decided: tuple[int, ...] = ()

    @property
    def later(self) -> list[KnownQuery]:
        """The queries that have committed micro-batches since the checkpoint's own was used."""
        return used_since(self.queries, self.query) if self.query is not None else []

    @property
    def is_seeded(self) -> bool:
        """Whether micro-batch 0 is no micro-batch, but the files that were read before this checkpoint."""
        return self.query is not None and self.query.is_seeded


def read_ledger(view: LedgerView, pipeline: str, query_id: str | None, first: int, last: int) -> LedgerSide:
    """Read what the ledger has; the caller sees to one snapshot.

    :param first, last: which micro-batches are compared; both included.
    """
    queries = known_queries(view.conn, view.schema, pipeline)
    query = next((one for one in queries if one.query_id == query_id), None)
    if query_id is None:
        return LedgerSide(queries, None)
    values = {"pipeline": pipeline, "query": query_id, "first": first, "last": last}
    if query is None:
        owner = view.rows(_OWNER, values, "Reading whose query it is")
        return LedgerSide(queries, None, owner=owner[0][0] if owner else None)
    removed = view.rows(_REMOVED, values, "Reading what cleanups have removed") or [(-1, 0)]
    return LedgerSide(
        queries,
        query,
        batches=dict(view.rows(_BATCHES, values, "Reading micro-batches")),
        removed_through=removed[0][0],
        removed_files=removed[0][1],
        decided=tuple(row[0] for row in view.rows(_DECIDED, values, "Reading decisions")),
    )


def read_file_sums(view: LedgerView, pipeline: str, query_id: str, first: int, last: int) -> dict[int, FileSum]:
    """Return the sums of files by micro-batch, of those before ``first`` together under :data:`OLDER`."""
    values = {"pipeline": pipeline, "query": query_id, "first": first, "last": last}
    found: dict[int, FileSum] = {}
    for batch, files, digest in view.rows(_FILES, values, "Adding up the files of micro-batches"):
        own = found.setdefault(batch, FileSum())
        own.files += files
        own.digest += int(digest)
    return found


def read_paths(view: LedgerView, pipeline: str, query_id: str, batch_id: int, most: int) -> set[str]:
    """Return the files of a micro-batch, at most ``most``."""
    values = {"pipeline": pipeline, "query": query_id, "batch": batch_id, "most": most}
    return {row[0] for row in view.rows(_PATHS, values, "Reading the files of a micro-batch")}
