"""What a Kafka source with ``failOnDataLoss=false`` skipped: recorded in the ledger, never silence.

The broker deletes what is older than its retention. Spark then goes on at the first offset that is left. Where a batch
has fewer rows than its offsets, its partitions are looked at one by one. Compaction and transaction markers leave holes
as well; those are named as what they are.
"""

from __future__ import annotations

import logging
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from spark_jobs.contracts.source_gaps import GAP_REASONS
from spark_jobs.contracts.tracker.records import SourceGap
from spark_jobs.logs.events import log_event
from spark_jobs.sources.base import OffsetRange, Source
from spark_jobs.sources.kafka import KafkaSource
from spark_jobs.sources.kafka_admin import earliest_offsets

log = logging.getLogger("etl.batch")


def may_skip(source: Source) -> bool:
    """Tell whether the source goes on after a loss instead of failing."""
    return isinstance(source, KafkaSource) and not source.fails_on_data_loss


def source_gaps(spark: SparkSession, source: Source, offsets: OffsetRange, rows_read: int) -> tuple[SourceGap, ...]:
    """Return what is missing in a batch that read ``rows_read`` rows; empty when nothing is."""
    if not isinstance(source, KafkaSource) or source.fails_on_data_loss:
        return ()
    missing = (source.size(offsets).rows or 0) - rows_read
    gaps = tuple(_gaps(spark, source, offsets)) if missing > 0 else ()
    if sum(gap.missing_rows or 0 for gap in gaps) > missing:
        gaps = tuple(_without_number(gap, missing) for gap in gaps)
    gaps = (*_partitions_gone(offsets), *gaps)
    for gap in gaps:
        log_event(
            log, logging.WARNING, "source_gap", source=gap.source, missing_rows=gap.missing_rows, reason=gap.reason
        )
    return gaps


def _partitions_gone(offsets: OffsetRange) -> list[SourceGap]:
    reason = GAP_REASONS["partition_gone"]
    return [
        SourceGap({"topic": topic, "partition": int(part), "from_offset": offset}, None, reason)
        for topic, parts in (offsets.start or {}).items()
        for part, offset in parts.items()
        if part not in offsets.end.get(topic, {})
    ]


def _without_number(gap: SourceGap, missing: int) -> SourceGap:
    # The broker went on deleting between the batch and this look: which of its rows came is not known any more.
    reason = f"{gap.reason}; {missing} rows of the whole batch, the broker has deleted more of it since"
    return SourceGap(gap.source, None, reason)


def _gaps(spark: SparkSession, source: KafkaSource, offsets: OffsetRange) -> list[SourceGap]:
    start, end = source.bounds(offsets)
    partitions = [(topic, int(part)) for topic, parts in end.items() for part in parts]
    earliest = earliest_offsets(spark, source.client_options, partitions)
    counts = _counts(source, offsets)
    gaps = []
    for topic, part in partitions:
        first, last = start[topic][str(part)], end[topic][str(part)]
        missing = max((last - first) - counts.get((topic, part), 0), 0)
        deleted = min(max(earliest[topic, part] - first, 0), missing)
        where = {"topic": topic, "partition": part}
        if deleted:
            lost = {**where, "from_offset": first, "to_offset": first + deleted}
            gaps.append(SourceGap(lost, deleted, GAP_REASONS["retention"]))
        if missing > deleted:
            left = {**where, "from_offset": first + deleted, "to_offset": last}
            gaps.append(SourceGap(left, missing - deleted, GAP_REASONS["compaction"]))
    return gaps


def _counts(source: KafkaSource, offsets: OffsetRange) -> dict[tuple[str, int], int]:
    # One row a partition: a bounded result.
    rows: list[Any] = (
        source.read_range(offsets).groupBy("_topic", "_partition").agg(F.count(F.lit(1)).alias("n")).collect()
    )
    return {(row["_topic"], row["_partition"]): row["n"] for row in rows}
