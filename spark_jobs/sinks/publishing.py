"""Have a batch's dead letters written elsewhere as well, before the batch commits: driver side.

Letters are staged in the database by whoever finds them. From there Spark's own writers take them, on the executors;
few of them go through the driver, which is quicker than to start tasks that read. What cannot be written elsewhere
ends the batch's transaction: nothing is dropped to keep going.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from spark_jobs.contracts.errors import EtlError, LettersNotPublishedError, LettersUnwelcomeError
from spark_jobs.faults import reach
from spark_jobs.logs.events import log_event
from spark_jobs.sinks.copying import Session
from spark_jobs.sinks.cursor import Cursor
from spark_jobs.sinks.dead_letter_rows import insert_identified
from spark_jobs.sinks.java_reasons import is_unwelcome, root_reason
from spark_jobs.sinks.ledger import Ledger
from spark_jobs.sinks.letter_copy import LetterCopy, LettersBatch
from spark_jobs.sinks.letter_ids import LetterSet, identified
from spark_jobs.sinks.letter_rows import LettersOf
from spark_jobs.sinks.reading_letters import SharesPlan, ids_and_envelopes, letters_task

log = logging.getLogger("etl.batch")

# What may pass through the driver's memory at once.
_FEW = 1000
_FEW_BYTES = 4 << 20
_PER_SHARE = 10_000


@dataclass(slots=True)
class LetterPublisher:
    """Publishes the letters of one run's batches.

    :param parallelism: most tasks that publish at once.
    :param secrets: what no message may show.
    """

    spark: SparkSession
    copy: LetterCopy
    ledger: Ledger
    session: Session
    parallelism: int
    secrets: Sequence[str] = ()
    expected: bool = False
    """Whether the batch before had letters: the next one may have some."""
    _batch: LettersBatch | None = field(default=None, init=False)
    _uncertain: bool = field(default=True, init=False)

    def begin(self, batch: LettersBatch) -> None:
        """Say which batch comes now. What an attempt at it wrote that did not commit is removed, where that can be.

        Only the first batch of a run, and one that did not commit in this run, can have been begun before.

        :raises LettersNotPublishedError: it cannot be removed.
        """
        self._batch = batch
        if self._uncertain:
            self._do(lambda: self.copy.withdraw(batch), "What an earlier attempt has written cannot be removed")
        self._uncertain = True

    def committed(self, *, letters: bool) -> None:
        """Say that the batch is committed, and whether it had dead letters."""
        self._uncertain = False
        self.expected = letters

    def publish(self, cursor: Cursor, letters: Sequence[LetterSet]) -> tuple[tuple[str, int], ...]:
        """Publish the letters of the batch.

        :param cursor: of the batch's transaction.
        :return: statements that store the same letters in the ledger's table, each with the number that must come out.
        :raises LettersNotPublishedError: not all of them are there; the batch must not commit.
        """
        if self._batch is None:
            raise RuntimeError("no batch was begun")
        started, batch, failed_at = monotonic(), self._batch, self._now()
        count = sum(one.count for one in letters)
        rows = identified(self._conn(), letters, batch.identity, failed_at)
        of = LettersOf(*batch.identity.key[:2], batch.identity.batch_id, failed_at)
        frame = self._few(cursor, rows, count, of) or self._shares(letters, batch, count, of)
        # A driver that a newer one has replaced must not write over that one's copy.
        self.ledger.check_fence()
        self._do(lambda: self.copy.write(frame, batch), "The dead letters of the micro-batch cannot be written")
        log_event(
            log,
            logging.INFO,
            "letters_published",
            batch=batch.identity.batch_id,
            letters=count,
            to=self.copy.place,
            milliseconds=int((monotonic() - started) * 1000),
        )
        reach("letters.after_publish")
        return ((insert_identified(self._conn(), self.ledger.ident, rows, batch.identity), count),)

    def _few(self, cursor: Cursor, rows: str, count: int, of: LettersOf) -> DataFrame | None:
        if count > _FEW:
            return None
        size = f"SELECT coalesce(sum(octet_length(envelope)), 0)::bigint FROM ({rows}) AS letter"  # noqa: S608
        if cursor.scalar(size) > _FEW_BYTES:
            return None
        found = [(str(key), str(envelope)) for key, envelope in cursor.execute(ids_and_envelopes(rows))]
        table = pa.Table.from_batches([self.copy.make_rows(found, of)])
        return self.spark.createDataFrame(table, self.copy.schema).coalesce(1)

    def _shares(self, letters: Sequence[LetterSet], batch: LettersBatch, count: int, of: LettersOf) -> DataFrame:
        shares = max(min(self.parallelism, -(-count // _PER_SHARE), 256), 1)
        queries = tuple(
            identified(self._conn(), letters, batch.identity, of.failed_at, share=(number, shares))
            for number in range(shares)
        )
        task = letters_task(SharesPlan(self.session, queries, of, self.copy.make_rows))
        return self.spark.range(0, shares, 1, shares).mapInArrow(task, self.copy.schema)

    def _now(self) -> datetime:
        # By the clock that all other letters have their time from.
        found: datetime = self._conn().execute("SELECT clock_timestamp()").fetchone()[0]
        return found.astimezone(UTC)

    def _conn(self) -> Any:
        return self.ledger.connection()

    def _do(self, act: Any, what: str) -> None:
        try:
            act()
        except EtlError:
            raise
        except Exception as error:
            reason = self._reason(error)
            kind = LettersUnwelcomeError if is_unwelcome(reason) else LettersNotPublishedError
            raise kind(
                f"{what}: {self.copy.place}",
                found=reason,
                expected="a copy of every dead letter (errorHandlingConfig.dlqConfig) before the micro-batch commits",
                cure="Nothing of the micro-batch was committed. See to that place, and run again; or set "
                "dlqConfig.enabled to false: the table dead_letter has all letters in any case",
            ) from error

    def _reason(self, error: Exception) -> str:
        text = root_reason(error)
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text
