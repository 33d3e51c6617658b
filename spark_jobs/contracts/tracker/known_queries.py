"""A pipeline's streaming queries, and which of them filled its target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from spark_jobs.contracts.tracker.connect import Connection, classified, query

_QUERIES: Final = """
SELECT q.query_id, q.checkpoint_location, q.origin, q.seeded_from, q.start_offsets, q.fingerprint,
       count(b.batch_id), max(b.batch_id), coalesce(max(r.removed_files), 0)
FROM {schema}.pipeline_query q
LEFT JOIN {schema}.batch_tracker b USING (pipeline_id, query_id)
LEFT JOIN {schema}.batch_retention r USING (pipeline_id, query_id)
WHERE q.pipeline_id = %s GROUP BY q.pipeline_id, q.query_id ORDER BY greatest(q.epoch, max(b.epoch)), q.created_at"""


@dataclass(frozen=True, slots=True)
class KnownQuery:
    """A streaming query of a pipeline, as the ledger knows it.

    :param origin: ``fresh``, ``resumed`` (seeded from the ledger) or ``accepted`` (started over knowingly).
    :param seeded_from: the query that a ``resumed`` one goes on from, or that an ``accepted`` one was started after.
    :param batches: how many of its micro-batches the ledger holds. :param last_batch: the newest of them.
    :param removed_files: how many names of files that it has read a cleanup has removed.
    """

    query_id: str
    checkpoint_location: str
    origin: str
    seeded_from: str | None
    start_offsets: Any
    fingerprint: dict[str, Any] | None
    batches: int
    last_batch: int | None
    removed_files: int = 0

    @property
    def is_seeded(self) -> bool:
        """Whether its micro-batch 0 is none, but the files that were read before its checkpoint was begun."""
        return self.origin == "resumed" and self.start_offsets is None


def known_queries(conn: Connection, schema: str, pipeline_id: str) -> list[KnownQuery]:
    """Return the pipeline's queries; last the one that was last begun or has last committed a batch.

    By epochs, which only rise: a clock may have been wrong, or another machine's.
    """
    with classified("Reading the pipeline's queries"):
        rows = query(conn, schema, _QUERIES, (pipeline_id,)).fetchall()
    return [KnownQuery(*row) for row in rows]


def used_since(known: Sequence[KnownQuery], query: KnownQuery) -> list[KnownQuery]:
    """Return the queries that have committed micro-batches since this one was used: they read on in its place.

    :param known: :func:`known_queries`.
    """
    return [one for one in known[known.index(query) + 1 :] if one.batches]


def since_start(known: Sequence[KnownQuery]) -> list[KnownQuery]:
    """Return the queries that filled the target since it was last started (over), newest first.

    What older queries have read may be gone from the target: whoever accepts a new checkpoint has emptied it.

    :param known: :func:`known_queries`; at least one.
    """
    by_id = {one.query_id: one for one in known}
    chain = [known[-1]]
    while chain[-1].origin == "resumed" and chain[-1].seeded_from in by_id:
        chain.append(by_id[chain[-1].seeded_from])
    return chain
