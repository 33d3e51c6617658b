"""Kafka, through Spark's own connector: JSON values by a schema, and the record's own columns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, Self

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType
from typing_extensions import override

from spark_jobs.contracts.errors import ConfigError, SourceUnreachableError
from spark_jobs.rows import LETTER, LETTER_ID, OUTCOME, RAW, Outcome, letter, letter_again, outcome, raw_record
from spark_jobs.sources.base import BatchSize, Committer, OffsetRange, Source
from spark_jobs.sources.commit_group import CommitGroup
from spark_jobs.sources.json_values import drop_working_columns, error_class, parse_json
from spark_jobs.sources.kafka_admin import (
    Partition,
    earliest_offsets,
    latest_offsets,
    list_partitions,
    list_topics,
    require_connector,
)
from spark_jobs.sources.subscription import SUBSCRIPTIONS, Offsets, resumed_offsets, subscribed_partitions

# Options that only a stream has, or that a batch read of a past range sets itself.
_NOT_FOR_RANGES = {
    "startingoffsets", "endingoffsets", "startingtimestamp", "endingtimestamp", "startingoffsetsbytimestamp",
    "endingoffsetsbytimestamp", "startingoffsetsbytimestampstrategy", "maxoffsetspertrigger", "minoffsetspertrigger",
    "maxtriggerdelay", "maxrecordsperpartition", "failondataloss", "subscribe", "subscribepattern", "assign",
}  # fmt: skip


class KafkaSource(Source):
    """Records of Kafka topics.

    Columns: the schema's, then ``_key`` BINARY, ``_topic`` STRING, ``_partition`` INT, ``_offset`` BIGINT,
    ``_timestamp`` TIMESTAMP, ``_headers`` ARRAY<STRUCT<key: STRING, value: BINARY>>. Ordering within a partition is the
    broker's.
    """

    coordinates = ("_topic", "_partition", "_offset", "_timestamp")
    keeps_raw = True
    own_columns = ("_key", "_topic", "_partition", "_offset", "_timestamp", "_headers")
    own_columns_on_demand = True

    def __init__(
        self,
        spark: SparkSession,
        schema: StructType,
        options: Mapping[str, str],
        secrets: Mapping[str, str],
        commit_group: str | None = None,
    ) -> None:
        self._spark = spark
        self._schema = schema
        self._options = {**options, **secrets}
        self._options.setdefault("includeHeaders", "true")
        self._group = CommitGroup(spark, commit_group, self.client_options) if commit_group else None
        self.follows_commits = commit_group is not None

    @property
    def fails_on_data_loss(self) -> bool:
        """Tell whether Spark stops when offsets it still needs are gone from the broker."""
        return str(self._option("failOnDataLoss") or "true").lower() != "false"

    @override
    def check(self) -> None:
        if not self._option("kafka.bootstrap.servers"):
            raise ConfigError(
                "The Kafka source has no brokers",
                expected="extract.connectionParams['kafka.bootstrap.servers']",
                cure="Name the brokers as host:port,host:port",
            )
        self._check_group()
        require_connector(self._spark)
        self._check_topics()

    def _check_group(self) -> None:
        # The connection may bring the option: the configuration's own check has not seen it.
        if self._group is not None and self._group.name == self._option("kafka.group.id"):
            raise ConfigError(
                "extract.commitGroup is the group that Spark itself reads with",
                found=f"kafka.group.id = {self._group.name}",
                expected="a group that nobody reads with",
                cure="Give extract.commitGroup a name of its own, or leave kafka.group.id out",
            )

    def _check_topics(self) -> None:
        names = self._option("subscribe")
        existing = list_topics(self._spark, self.client_options)
        wanted = [name.strip() for name in names.split(",")] if names else []
        missing = [name for name in wanted if name not in existing]
        if missing:
            raise SourceUnreachableError(
                f"The Kafka topic {', '.join(missing)} does not exist",
                found=f"topics {', '.join(sorted(existing)[:20]) or '(none)'}",
                expected=f"extract.connectionParams.subscribe = {names}",
                cure="Create the topic, or correct its name",
            )

    @property
    def client_options(self) -> dict[str, str]:
        """The options of the Kafka client itself; they may hold secrets."""
        return {name[6:]: value for name, value in self._options.items() if name.startswith("kafka.")}

    def starting_at(self, offsets: Offsets) -> Self:
        """Return the source for a query without checkpointed offsets, which starts at these.

        A partition without one starts at its beginning.

        :raises CheckpointMismatchError: a partition is not there any more, and the source fails on data loss.
        """
        there = subscribed_partitions(self._spark, self.client_options, self._subscription)
        start = resumed_offsets(offsets, there, may_lose=not self.fails_on_data_loss)
        other = copy(self)
        other._options = {name: v for name, v in self._options.items() if not name.lower().startswith("starting")}
        other._options["startingOffsets"] = json.dumps(start)
        return other

    @override
    def stream(self) -> DataFrame:
        return self._parse(self._spark.readStream.format("kafka").options(**self._options).load())

    @override
    def read_range(self, offsets: OffsetRange) -> DataFrame:
        options = {name: value for name, value in self._options.items() if name.lower() not in _NOT_FOR_RANGES}
        start, end = _aligned(offsets.start, offsets.end)
        options["assign"] = json.dumps({topic: [int(p) for p in parts] for topic, parts in end.items()})
        options["startingOffsets"] = json.dumps(start)
        options["endingOffsets"] = json.dumps(end)
        options["failOnDataLoss"] = "true" if self.fails_on_data_loss else "false"
        return self._parse(self._spark.read.format("kafka").options(**options).load())

    @override
    def identity(self) -> dict[str, Any]:
        return {"source": "kafka", **self._subscription}

    @property
    def _subscription(self) -> dict[str, str]:
        return {name: value for name in SUBSCRIPTIONS if (value := self._option(name))}

    def bounds(self, offsets: OffsetRange) -> tuple[Offsets, Offsets]:
        """Return first and end offset of each partition (topic → partition → offset); a new one begins at 0."""
        start, end = _aligned(offsets.start, offsets.end)
        return {topic: {part: max(first, 0) for part, first in parts.items()} for topic, parts in start.items()}, end

    @override
    def size(self, offsets: OffsetRange) -> BatchSize:
        start, end = self.bounds(offsets)
        counts = [last - start[topic][part] for topic, parts in end.items() for part, last in parts.items()]
        # Spark cuts a partition only where it is told to.
        cut = self._option("minPartitions") or self._option("maxRecordsPerPartition")
        partitions = None if cut else max(sum(count > 0 for count in counts), 1)
        return BatchSize(rows=sum(counts), partitions=partitions)

    @override
    def gone(self, ranges: Sequence[OffsetRange]) -> list[str]:
        asked = {topic for offsets in ranges for topic in offsets.end or {}}
        topics = asked & list_topics(self._spark, self.client_options)
        there = sorted(list_partitions(self._spark, self.client_options, topics)) if topics else []
        first = earliest_offsets(self._spark, self.client_options, there)
        last = latest_offsets(self._spark, self.client_options, there)
        kept = {partition: (first[partition], last[partition]) for partition in there}
        return [self._gone(offsets, kept) for offsets in ranges]

    def _gone(self, offsets: OffsetRange, kept: Mapping[Partition, tuple[int, int]]) -> str:
        start, end = self.bounds(offsets)
        for topic, parts in end.items():
            for part, last in parts.items():
                first = start[topic][part]
                low, high = kept.get((topic, int(part)), (0, 0))
                if first < last and not low <= first < last <= high:
                    has = f"the broker has {low} to {high - 1}" if low < high else "the broker has none"
                    return f"offsets {first} to {last - 1} of partition {part} of topic {topic}; {has}"
        return ""

    @override
    def after_commit(self, offsets: OffsetRange, committer: Committer) -> None:
        if self._group is not None:
            self._group.move_to(offsets.end, committer)

    @override
    def close(self) -> None:
        if self._group is not None:
            self._group.close()

    def _option(self, name: str) -> str | None:
        return next((value for key, value in self._options.items() if key.lower() == name.lower()), None)

    @override
    def read_letters(self, letters: DataFrame) -> DataFrame:
        if "source" not in letters.columns:
            return self._parse(letters.select(LETTER_ID, F.col("raw_value").alias("value")))
        place = F.from_json("source", "topic STRING, partition INT, offset BIGINT, timestamp TIMESTAMP")
        headers = F.from_json("raw_headers", "ARRAY<STRUCT<key: STRING, value: BINARY>>")
        raw = letters.withColumns({"__place": place, "headers": headers})
        names = {"key": "raw_key", "value": "raw_value"}
        names |= {name: f"__place.{name}" for name in ("topic", "partition", "offset", "timestamp")}
        columns = [F.col(column).alias(name) for name, column in names.items()]
        return self._parse(raw.select(*columns, "headers", LETTER_ID))

    def _parse(self, raw: DataFrame) -> DataFrame:
        own = [name for name in self.own_columns if name.removeprefix("_") in raw.columns]
        renamed = raw.select(
            *[name for name in (LETTER_ID,) if name in raw.columns],
            F.col("value").alias("__value"),
            *(F.col(name.removeprefix("_")).alias(name) for name in own),
        )
        parsed = parse_json(renamed, "__value", self._schema, {})
        record = raw_record(F.col("__value"), *(F.col(name) for name in ("_key", "_headers") if name in own))
        said = F.col("__error")
        envelope = letter(
            stage="parse",
            error_class=error_class(said),
            message=said,
            source=F.struct(*(F.col(name).alias(name.removeprefix("_")) for name in self.coordinates)),
            raw_value=record["value"],
            raw_key=record["key"],
            raw_headers=record["headers"],
        )
        if LETTER_ID in raw.columns:
            envelope = letter_again(stage="parse", error_class=error_class(said), message=said)
        bad = F.col("__error").isNotNull()
        sorted_out = (
            parsed.frame.withColumn("__error", parsed.error)
            .withColumn(OUTCOME, F.when(bad, outcome(Outcome.DEAD_LETTER)).otherwise(outcome(Outcome.PASSED)))
            .withColumn(LETTER, F.when(bad, envelope))
            .withColumn(RAW, record)
        )
        return drop_working_columns(sorted_out).drop("__value", "__error")


def _aligned(start: Any, end: Offsets) -> tuple[Offsets, Offsets]:
    """Give every partition of ``end`` a start: one that is new to the query starts at its earliest offset (-2)."""
    known = start or {}
    return {topic: {part: known.get(topic, {}).get(part, -2) for part in parts} for topic, parts in end.items()}, end
