"""Read dead letters back from where tasks staged them, each task its share. Executor side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from spark_jobs.contracts.errors import TransientError
from spark_jobs.sinks.acknowledging import acknowledged
from spark_jobs.sinks.copying import Session, transaction
from spark_jobs.sinks.letter_rows import LettersOf, MakeRows
from spark_jobs.sinks.whole_input import whole, worker_input

_CURSOR = "etl_letters"
# A letter may be as large as the largest record.
_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class SharesPlan:
    """How the letters of a batch are read by several tasks.

    :param queries: one for each share, for rows ``(id, failed_at, envelope)``.
    :param of: whose letters they are. :param rows: makes the copy's rows of them.
    """

    session: Session
    queries: tuple[str, ...]
    of: LettersOf
    rows: MakeRows


def read_share(plan: SharesPlan, share: int) -> Iterator[pa.RecordBatch]:
    """Yield the letters of a share, as rows of their copy."""
    with transaction(plan.session) as cursor:
        cursor.run(f"DECLARE {_CURSOR} NO SCROLL CURSOR FOR {ids_and_envelopes(plan.queries[share])}")
        while rows := cursor.execute(f"FETCH {_AT_ONCE} FROM {_CURSOR}"):
            yield plan.rows([(str(key), str(envelope)) for key, envelope in rows], plan.of)
        cursor.run("COMMIT")


def ids_and_envelopes(query: str) -> str:
    """Return the query for what is read of letters, both as texts."""
    return f"SELECT id::text, envelope FROM ({query}) AS letter"  # noqa: S608 - rendered by psycopg.sql


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
