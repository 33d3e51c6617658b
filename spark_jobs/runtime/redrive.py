"""Redrive: raw records of dead letters back to their Kafka topic, where the pipeline reads them as it reads any other.

Kafka and PostgreSQL share no commit. So the ledger first remembers how far the topics reach, then the records are sent,
then their letters come home and the mark goes. Whoever finds a mark without an end looks in the topics, from there on,
for records that bear the letters' ids, and sends only the others.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from time import monotonic
from typing import Any

import adbc_driver_manager
from psycopg.types.json import Jsonb
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_jobs.contracts.errors import BooksDoNotBalanceError, ConfigError
from spark_jobs.contracts.replay import RAW_VALUE, ReplayRequest
from spark_jobs.contracts.tracker.connect import classified, classify, query, raw, short_transaction
from spark_jobs.contracts.tracker.fence import check_fence
from spark_jobs.contracts.tracker.records import BatchRecord, Books
from spark_jobs.contracts.tracker.taking import Taken
from spark_jobs.faults import reach
from spark_jobs.rows import LETTER_ID
from spark_jobs.runtime.flow import Flow
from spark_jobs.runtime.redrive_checks import require_partitions, require_repairable, require_traces
from spark_jobs.runtime.redrive_records import HEADER, message, not_sent
from spark_jobs.runtime.stored_letters import asking, stored_letters
from spark_jobs.sinks import parts
from spark_jobs.sinks.batch_result import Written
from spark_jobs.sinks.committing import CommitPlan, begin_batch, conclude
from spark_jobs.sinks.copying import transaction
from spark_jobs.sinks.ledger import Ledger
from spark_jobs.sinks.parts import PartReport
from spark_jobs.sinks.plans import writing_session
from spark_jobs.sinks.refused import Limit
from spark_jobs.sinks.replay_plans import (
    LETTER_VALUES,
    count_unsendable,
    letters_query,
    partitions_query,
    positions,
    redrive_settling,
)
from spark_jobs.sinks.unaltered import TableState
from spark_jobs.sources.kafka import KafkaSource
from spark_jobs.sources.kafka_admin import Partition, latest_offsets, list_partitions

# Marks of replays, or attempts, that ended between sending and settling, and that hold letters of this batch.
_UNSETTLED = """
SELECT m.start_offsets FROM {schema}.dead_letter_redrive m
WHERE (m.replay_id, m.first_position) <> (%(replay_id)s, %(first)s) AND EXISTS (
    SELECT FROM {schema}.dead_letter_replay_item theirs
    WHERE theirs.replay_id = m.replay_id AND theirs.position > m.first_position AND theirs.position <= m.last_position
        -- IS TRUE: looked up in memory, not joined.
        AND (theirs.dead_letter_id IN (
            SELECT mine.dead_letter_id FROM {schema}.dead_letter_replay_item mine
            WHERE mine.replay_id = %(replay_id)s AND mine.position > %(first)s AND mine.position <= %(last)s
        )) IS TRUE
)"""
_MARK = """
INSERT INTO {schema}.dead_letter_redrive (replay_id, batch_id, first_position, last_position, start_offsets)
VALUES (%(replay_id)s, %(batch_id)s, %(first)s, %(last)s, %(offsets)s)"""

Offsets = dict[str, dict[str, int]]
_LETTERS = "redrive"


@dataclass(slots=True)
class Redrive:
    """Sends the letters of one replay. At most one of its records reaches the topic for each letter, unless a driver
    that was taken for dead, or the Kafka client of a task that was, goes on sending.
    """

    spark: SparkSession
    flow: Flow
    ledger: Ledger
    request: ReplayRequest

    def check(self, taken: Taken) -> None:
        """Return if all letters that were taken can be sent.

        :raises ConfigError: the source is no Kafka topic, letters have no raw record, or the repair gives none; or
            their topic or partition is gone.
        """
        if not isinstance(self.flow.source, KafkaSource):
            raise ConfigError(
                "Only letters of a Kafka source can be sent to their topic again",
                found=f"source {self.flow.config.extract.source_type}",
                expected="kafka",
                cure="Use mode reprocess",
            )
        first, last = taken.first, taken.last
        others = count_unsendable(self.ledger, self.request, first, last) or (0 if taken.letters else taken.unsendable)
        if others:
            raise ConfigError(
                f"{others} of the letters hold no raw record that could be sent again",
                found="results of an aggregation, or records without a value",
                expected="letters with a raw value and the topic it came from",
                cure="Choose by stage or error class, or by ids; nothing was sent",
            )
        require_partitions(self.spark, self._source.client_options, self._places(first, last))
        self._require_traces(first, last)
        if patch := self.request.patch.get(RAW_VALUE):
            question = letters_query(self.ledger, self.request, first, last)
            with asking(self.spark, {_LETTERS: question}):
                require_repairable(self._letters(), patch)

    def _require_traces(self, first: int, last: int) -> None:
        """Return if the topics still tell what redrives that did not end have sent."""
        start = {} if self.request.not_sent else self._unsettled(first, last)
        if not start:
            return
        places = {(topic, int(number)): at for topic, numbers in start.items() for number, at in numbers.items()}
        require_traces(self.spark, self._source.client_options, places)

    def batch(self, record: BatchRecord, event: dict[str, Any]) -> Written:
        """Send the records of the batch's positions, and settle their letters."""
        first, last = positions(record)
        if not self.request.dry_run:
            self._send(record.identity.batch_id, first, last)
        return self._settle(record, event, last - first)

    def _send(self, batch_id: int, first: int, last: int) -> None:
        letters = self._letters(once=True)
        now = self._mark(batch_id, first, last)
        earlier = self._unsettled(first, last)
        if earlier:
            # Broadcast: behind a shuffle the tasks that send would not be the ones that read.
            letters = letters.join(F.broadcast(self._sent(earlier, now)), LETTER_ID, "left_anti")
        # The last look before what cannot be rolled back.
        self.ledger.check_fence()
        question = letters_query(self.ledger, self.request, first, last)
        try:
            with asking(self.spark, {_LETTERS: question}):
                records = letters.select(*message(self.request.patch.get(RAW_VALUE)))
                records.write.format("kafka").options(**self._client()).save()
        except (PySparkException, Py4JJavaError) as error:
            raise not_sent(error) from error
        reach("redrive.after_send")

    def _mark(self, batch_id: int, first: int, last: int) -> Offsets:
        now = self._latest(first, last)
        conn, ledger = self.ledger.connection(), self.ledger
        values = {
            "replay_id": self.request.replay_id,
            "batch_id": batch_id,
            "first": first,
            "last": last,
            "offsets": Jsonb(now),
        }
        with short_transaction(conn, "Marking a redrive"):
            query(conn, ledger.schema, _MARK, values)
            check_fence(conn, ledger.schema, ledger.pipeline_id, ledger.run_id, ledger.epoch, lock=True)
        reach("redrive.after_mark")
        return now

    def _latest(self, first: int, last: int) -> Offsets:
        client, topics = self._source.client_options, {topic for topic, _ in self._places(first, last)}
        partitions = sorted(list_partitions(self.spark, client, topics))
        offsets: Offsets = {}
        for (topic, partition), offset in latest_offsets(self.spark, client, partitions).items():
            offsets.setdefault(topic, {})[str(partition)] = offset
        return offsets

    def _places(self, first: int, last: int) -> set[Partition]:
        text = partitions_query(self.ledger, self.request, first, last)
        with classified("Looking up the topics of dead letters"):
            return {(str(topic), int(number)) for topic, number in raw(self.ledger.connection(), text)}

    def _unsettled(self, first: int, last: int) -> Offsets:
        values = {"replay_id": self.request.replay_id, "first": first, "last": last}
        conn, schema = self.ledger.connection(), self.ledger.schema
        with short_transaction(conn, "Looking for redrives that did not end"):
            query(conn, schema, "SET LOCAL work_mem = '256MB'")
            rows = query(conn, schema, _UNSETTLED, values).fetchall()
        start: Offsets = {}
        for (offsets,) in rows:
            for topic, partitions in offsets.items():
                known = start.setdefault(topic, {})
                for partition, offset in partitions.items():
                    known[partition] = min(offset, known.get(partition, offset))
        return start

    def _sent(self, start: Offsets, end: Offsets) -> DataFrame:
        # A partition that was not there then has nothing of theirs before its beginning. What is gone is not looked for
        # where somebody has said that it was not sent.
        known = {} if self.request.not_sent else start
        first = {t: {p: known.get(t, {}).get(p, -2) for p in parts} for t, parts in end.items()}
        options = {
            **self._client(),
            "assign": json.dumps({topic: [int(p) for p in parts] for topic, parts in end.items()}),
            "startingOffsets": json.dumps(first),
            "endingOffsets": json.dumps(end),
            "includeHeaders": "true",
            # What retention has taken can only be what was sent long ago.
            "failOnDataLoss": "true",
        }
        records = self.spark.read.format("kafka").options(**options).load()
        return (
            records.select(F.explode("headers").alias("header"))
            .filter(F.col("header.key") == f"{HEADER}id")
            .select(F.col("header.value").cast("string").alias(LETTER_ID))
        )

    def _settle(self, record: BatchRecord, event: dict[str, Any], letters: int) -> Written:
        plan = CommitPlan(
            tracker=self.ledger.ident,
            target=TableState("", "", ""),
            record=record,
            event=event,
            letters="",
            limit=Limit(),
            where="single",
            settling=redrive_settling(self.ledger, self.request, record),
        )
        books = Books(source=letters, passed=letters, sink=letters, written=letters)
        report = PartReport(part=0, attempt=0)
        report.written = letters
        try:
            with transaction(writing_session(self.ledger, self.flow.config.load.role)) as cursor:
                if not begin_batch(cursor, plan):
                    raise BooksDoNotBalanceError("The ledger holds a micro-batch of this replay already")
                conclude(cursor, plan, report, books, monotonic())
        except adbc_driver_manager.Error as error:
            raise classify(error, "Settling the letters that were sent") from error
        return Written(parts.COMMITTED, books, outcome=report.message)

    def _letters(self, *, once: bool = False) -> DataFrame:
        session = writing_session(self.ledger, self.flow.config.load.role)
        letters = stored_letters(self.spark, session, _LETTERS, tuple(LETTER_VALUES), once=once)
        return letters.withColumn(RAW_VALUE, F.col("raw_value").cast("string"))

    def _client(self) -> dict[str, str]:
        return {f"kafka.{name}": value for name, value in self._source.client_options.items()}

    @property
    def _source(self) -> KafkaSource:
        assert isinstance(self.flow.source, KafkaSource)  # noqa: S101 - see check
        return self.flow.source
