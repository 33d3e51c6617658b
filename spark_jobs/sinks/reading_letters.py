"""Read dead letters back from where tasks staged them, each task its share. Executor side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from spark_jobs.contracts.errors import TransientError
from spark_jobs.sinks.acknowledging import acknowledged
from spark_jobs.sinks.copying import Session, transaction
from spark_jobs.sinks.plain_arrow import texts
from spark_jobs.sinks.whole_input import whole, worker_input

_CURSOR = "etl_letters"
# A letter may be as large as the largest record.
_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class SharesPlan:
    """How the letters of a batch are read by several tasks.

    :param queries: one for each share, for rows ``(id, failed_at, envelope)``.
    """

    session: Session
    queries: tuple[str, ...]


def read_share(plan: SharesPlan, share: int) -> Iterator[pa.RecordBatch]:
    """Yield the letters of a share: texts ``id`` and ``envelope``."""
    with transaction(plan.session) as cursor:
        query = f"SELECT id::text, envelope FROM ({plan.queries[share]}) AS letter"  # noqa: S608 - rendered by psycopg.sql
        cursor.run(f"DECLARE {_CURSOR} NO SCROLL CURSOR FOR {query}")
        while rows := cursor.execute(f"FETCH {_AT_ONCE} FROM {_CURSOR}"):
            ids, envelopes = zip(*rows, strict=True)
            yield pa.RecordBatch.from_arrays([texts(ids), texts(envelopes)], ["id", "envelope"])
        cursor.run("COMMIT")


def letters_task(plan: SharesPlan) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return the function for ``mapInArrow`` over a DataFrame with the numbers of the shares, one in each partition."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        shares = [
            int(number) for batch in whole(acknowledged(batches), worker_input()) for number in batch[0].to_pylist()
        ]
        if len(shares) != 1:
            raise TransientError("A task was not told which dead letters to read", found=f"{len(shares)} shares")
        yield from read_share(plan, shares[0])

    return run
