"""Offsets of a named Kafka consumer group, kept where the database is: for the tools that show lag, never for reading.

Kafka has no compare-and-set for offsets. So each of them carries who wrote it, one's own never go backwards, and the
fence is asked last, at once before the writing: what remains of a race is milliseconds, and the next micro-batch or run
puts it right.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

from spark_jobs.contracts.errors import SourceUnreachableError
from spark_jobs.logs.events import log_event
from spark_jobs.sources.base import Committer
from spark_jobs.sources.kafka_admin import await_answer, open_admin, root_cause

log = logging.getLogger("etl.batch")

_SECONDS = 3.0
_HAS_MEMBERS = {"UnknownMemberIdException", "RebalanceInProgressException", "GroupSubscribedToTopicException"}

Partition = tuple[str, int]
Offsets = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class _Kept:
    """What the group has for a partition, and who wrote it; the latter empty when it was not one of our pipelines."""

    offset: int
    pipeline_id: str = ""
    query_id: str = ""


class CommitGroup:
    """Keeps the offsets of one consumer group for one run.

    :param client_options: of the Kafka client; they may hold secrets.
    """

    def __init__(self, spark: SparkSession, name: str, client_options: Mapping[str, str]) -> None:
        self.name = name
        self._spark = spark
        self._jvm: Any = spark._jvm
        self._client_options = dict(client_options)
        self._admin: Any = None
        self._written: dict[Partition, int] = {}
        self._left_ahead: set[Partition] = set()

    def move_to(self, end: Offsets, committer: Committer) -> None:
        """Move the group to the end of a committed micro-batch, within three seconds.

        :raises SourceUnreachableError: Kafka does not answer in time, or refuses; the group is as before, or moved.
        :raises FencedError: a newer run of the pipeline exists; the group is as before.
        """
        wanted = {(topic, int(part)): offset for topic, parts in end.items() for part, offset in parts.items()}
        changed = {place: offset for place, offset in wanted.items() if self._written.get(place) != offset}
        if not changed:
            return
        try:
            self._move(changed, committer, monotonic() + _SECONDS)
        except Py4JJavaError as error:
            # A client whose answer did not come would send it late: close it, and what it still holds is dropped.
            self.close()
            raise self._refused(error) from error

    def close(self) -> None:
        """Close the client."""
        if self._admin is not None:
            self._admin.close(self._jvm.java.time.Duration.ZERO)
        self._admin = None

    def _move(self, wanted: Mapping[Partition, int], committer: Committer, until: float) -> None:
        if self._admin is None:
            self._admin = open_admin(self._spark, self._client_options, timeout_ms=int(_SECONDS * 1000))
        kept = self._look(wanted, until)
        moves = {place: offset for place, offset in wanted.items() if self._may_move(place, offset, kept, committer)}
        if moves:
            committer.check_fence()
            self._write(moves, committer, until)
        self._written.update(wanted)
        log_event(log, logging.DEBUG, "offsets_committed", group=self.name, partitions=len(moves))

    def _look(self, wanted: Mapping[Partition, int], until: float) -> dict[Partition, _Kept]:
        asked = self._jvm.java.util.ArrayList()
        for place in wanted:
            asked.add(self._jvm.org.apache.kafka.common.TopicPartition(*place))
        spec = self._jvm.org.apache.kafka.clients.admin.ListConsumerGroupOffsetsSpec().topicPartitions(asked)
        group = self._jvm.java.util.Collections.singletonMap(self.name, spec)
        answer = self._admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata(self.name)
        found = await_answer(self._spark, answer, until)
        return {(key.topic(), key.partition()): _kept(found[key]) for key in found if found[key] is not None}

    def _may_move(self, place: Partition, offset: int, kept: Mapping[Partition, _Kept], committer: Committer) -> bool:
        now = kept.get(place)
        if now is None or now.offset < offset:
            owner = now.pipeline_id if now else ""
            return not owner or owner == committer.pipeline_id or self._left(place, now, offset, committer)
        if now.offset == offset:
            return False
        if now.pipeline_id == committer.pipeline_id and now.query_id != committer.query_id:
            # A new checkpoint that was accepted, and reads again what an older query had read.
            return True
        return self._left(place, now, offset, committer)

    def _left(self, place: Partition, now: _Kept | None, offset: int, committer: Committer) -> bool:
        if place not in self._left_ahead and now is not None and now.query_id != committer.query_id:
            self._left_ahead.add(place)
            topic, partition = place
            log_event(
                log,
                logging.WARNING,
                "offsets_left",
                group=self.name,
                topic=topic,
                partition=partition,
                offset=now.offset,
                committed=offset,
                reason=f"written by {f'pipeline {now.pipeline_id}' if now.pipeline_id else 'somebody else'}; to hand "
                "the group over, delete its offsets with kafka-consumer-groups --delete-offsets",
            )
        return False

    def _write(self, moves: Mapping[Partition, int], committer: Committer, until: float) -> None:
        written_by = json.dumps({"pipeline": committer.pipeline_id, "query": committer.query_id})
        offsets = self._jvm.java.util.HashMap()
        for place, offset in moves.items():
            value = self._jvm.org.apache.kafka.clients.consumer.OffsetAndMetadata(offset, written_by)
            offsets.put(self._jvm.org.apache.kafka.common.TopicPartition(*place), value)
        if monotonic() > until:
            # Frozen since the look, perhaps through a whole newer run: what was seen and said then is worth nothing.
            raise SourceUnreachableError(
                f"The offsets of the consumer group {self.name} were not committed in time",
                expected=f"an answer within {_SECONDS:.0f} seconds",
            )
        await_answer(self._spark, self._admin.alterConsumerGroupOffsets(self.name, offsets).all(), until)

    def _refused(self, error: Py4JJavaError) -> SourceUnreachableError:
        cause = root_cause(error)
        if cause.partition(":")[0] in _HAS_MEMBERS:
            return SourceUnreachableError(
                f"The consumer group {self.name} has members elsewhere: Kafka lets only them commit its offsets",
                found=cause,
                expected="a group that nobody reads with",
                cure="Give extract.commitGroup a name of its own, or stop those consumers",
            )
        return SourceUnreachableError(
            f"The offsets of the consumer group {self.name} cannot be committed",
            found=cause,
            cure="Check that the broker is up, and that the user may READ the group and DESCRIBE and READ the topic",
        )


def _kept(value: Any) -> _Kept:
    try:
        written_by = json.loads(value.metadata())
        return _Kept(value.offset(), written_by["pipeline"], written_by["query"])
    except (ValueError, TypeError, KeyError):
        return _Kept(value.offset())
