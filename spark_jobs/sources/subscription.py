"""Which partitions a Kafka source reads, and where each of them goes on when a query is resumed from offsets.

Spark takes starting offsets only for exactly the partitions that are subscribed to.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any, TypeAlias

from pyspark.sql import SparkSession

from spark_jobs.contracts.errors import CheckpointMismatchError
from spark_jobs.logs.events import log_event
from spark_jobs.sources.kafka_admin import Partition, list_partitions, list_topics

log = logging.getLogger("etl.run")

SUBSCRIPTIONS = ("subscribe", "subscribePattern", "assign")
Offsets: TypeAlias = dict[str, dict[str, int]]
"""Topic to partition to offset; -2 is the earliest that there is."""
_EARLIEST = -2


def subscribed_partitions(
    spark: SparkSession, client_options: Mapping[str, str], subscription: Mapping[str, str]
) -> set[Partition]:
    """Return the partitions that Spark would read.

    :param subscription: the one option of :data:`SUBSCRIPTIONS` that is set, and its value.
    :raises SourceUnreachableError: the broker does not say.
    """
    if "assign" in subscription:
        assigned: dict[str, list[int]] = json.loads(subscription["assign"])
        return {(topic, part) for topic, parts in assigned.items() for part in parts}
    if "subscribe" in subscription:
        topics = {name.strip() for name in subscription["subscribe"].split(",")}
    else:
        jvm: Any = spark._jvm
        pattern = jvm.java.util.regex.Pattern.compile(subscription["subscribePattern"])
        topics = {name for name in list_topics(spark, client_options) if pattern.matcher(name).matches()}
    return list_partitions(spark, client_options, topics)


def resumed_offsets(offsets: Offsets, subscribed: set[Partition], *, may_lose: bool) -> Offsets:
    """Return where each subscribed partition starts: at its offset, or at its beginning when it has none.

    :param may_lose: whether partitions that are gone are left behind, with a warning.
    :raises CheckpointMismatchError: a partition with an offset is not subscribed to.
    """
    known = {(topic, int(part)): offset for topic, parts in offsets.items() for part, offset in parts.items()}
    gone = ", ".join(f"{topic}-{part} (at {known[topic, part]})" for topic, part in sorted(known.keys() - subscribed))
    if gone and not may_lose:
        raise CheckpointMismatchError(
            "The Kafka source has not all partitions that the ledger left off at",
            found=f"nothing to read of {gone}",
            expected="every partition that was read before: what came behind these offsets would be missing",
            cure="Bring the topic back, or subscribe to it again; if what is left there may be given up, set "
            "extract.connectionParams.failOnDataLoss to false",
        )
    if gone:
        log_event(log, logging.WARNING, "source_partitions_gone", partitions=gone)
    start: Offsets = {}
    for topic, part in sorted(subscribed):
        start.setdefault(topic, {})[str(part)] = known.get((topic, part), _EARLIEST)
    return start
