"""What a Kafka topic has that a pipeline has not read yet, partition by partition."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from spark_jobs.contracts.errors import ClocksDisagreeError, SourceRowsLostError
from spark_jobs.contracts.kafka_client import FirstRecord, KafkaClient, Partition
from spark_jobs.contracts.watch.condition import in_words
from spark_jobs.contracts.watch.kafka_position import KafkaPosition

# Clocks differ by some seconds: nobody's fault.
_AHEAD_SECONDS: Final = 60
_MOST_NAMED: Final = 20


@dataclass(frozen=True, slots=True)
class Unread:
    """One partition.

    :param begin: the next offset that the pipeline reads. :param first: the first that the broker still has.
    :param end: that of the next record to be produced. :param record: the first one that is not read yet.
    """

    topic: str
    partition: int
    begin: int
    first: int
    end: int
    record: FirstRecord | None = None

    @property
    def name(self) -> str:
        """``topic[partition]``."""
        return f"{self.topic}[{self.partition}]"

    @property
    def rows(self) -> int:
        """How many rows may be unread, at most: compacted records and transaction markers have offsets, too."""
        return self.end - self.record.offset if self.record else 0

    @property
    def lost(self) -> int:
        """How many offsets the broker deleted before they were read."""
        return max(self.first - self.begin, 0)

    def age(self, now: float) -> float | None:
        """Return how many seconds ago the first unread record was made; None without one, or without its time."""
        if self.record is None or self.record.timestamp_ms is None:
            return None
        return now - self.record.timestamp_ms / 1000

    @property
    def says(self) -> str:
        """The first unread record, in words."""
        if self.record is None:
            return f"{self.name}: nothing unread"
        return f"{self.name} offset {self.record.offset}, of {_moment(self.record.timestamp_ms)}"


def unread(position: KafkaPosition, client: KafkaClient) -> list[Unread] | None:
    """Return every partition that the pipeline reads.

    :returns: None while nothing is committed and the pipeline begins with what comes after its first start.
    :raises SourceRowsLostError: a topic ends before the place where the pipeline left off.
    :raises SourceUnreachableError: the brokers do not answer in time, or refuse (not retryable).
    """
    places = client.partitions(position.subscription)
    # First before end: what is produced meanwhile counts.
    first = client.first_offsets(places)
    begins = position.begins(client, first)
    if begins is None:
        return None
    end = client.end_offsets(places)
    found = [_partition(place, begins[place], first[place], end[place]) for place in sorted(places)]
    _require_same_topic(position, found)
    wanted = {(one.topic, one.partition): max(one.begin, one.first) for one in found if one.end > one.begin}
    records = client.first_records({place: at for place, at in wanted.items() if at < end[place]})
    return [_with(one, records.get((one.topic, one.partition))) for one in found]


def oldest(partitions: Iterable[Unread], now: float) -> tuple[Unread, float] | None:
    """Return the partition whose first unread record is the oldest, and its age in seconds."""
    aged = [(one, age) for one in partitions if (age := one.age(now)) is not None]
    return max(aged, key=lambda pair: pair[1], default=None)


def left_behind(position: KafkaPosition, partitions: Iterable[Unread]) -> list[str]:
    """Return, in words, the partitions that were read once and are not any more; empty without any."""
    now = {(one.topic, one.partition) for one in partitions}
    gone = sorted((position.offsets or {}).keys() - now)
    names = ", ".join(f"{topic}[{part}]" for topic, part in gone[:_MOST_NAMED])
    return [f"not read any more, and not looked at: {names}"] if gone else []


def require_past(position: KafkaPosition, partitions: Sequence[Unread]) -> None:
    """Return when no unread record is of the future.

    :raises ClocksDisagreeError: one is, by more than a minute.
    """
    now = position.now
    for one in partitions:
        if (age := one.age(now)) is not None and age < -_AHEAD_SECONDS:
            raise ClocksDisagreeError(
                f"How old what {position.pipeline!r} has not read is cannot be told",
                found=f"{one.says}, {in_words(-age)} ahead of the clock of the ledger's server",
                expected="records of the past",
                cure="set the clock of the producer, the broker or the ledger's server, whichever is wrong; once the "
                "record is read, or its time has come, look again",
            )


def without_time(partitions: Iterable[Unread]) -> Unread | None:
    """Return a partition whose first unread record has no time."""
    return next((one for one in partitions if one.record and one.record.timestamp_ms is None), None)


def _partition(place: Partition, begin: int | None, first: int, end: int) -> Unread:
    return Unread(*place, begin=end if begin is None else begin, first=first, end=end)


def _with(one: Unread, record: FirstRecord | None) -> Unread:
    # What was produced since the end was asked for is not counted.
    inside = record if record and record.offset < one.end else None
    return Unread(one.topic, one.partition, one.begin, one.first, one.end, inside)


def _require_same_topic(position: KafkaPosition, found: Iterable[Unread]) -> None:
    ahead = [one for one in found if one.begin > one.end]
    if ahead:
        names = ", ".join(f"{one.name} ends at {one.end}, read up to {one.begin}" for one in ahead[:5])
        raise SourceRowsLostError(
            f"Pipeline {position.pipeline!r} has read further than its topic goes",
            found=names,
            expected="a topic that only grows",
            cure="the topic was deleted and made anew, lost records, or belongs to another cluster: what it has now "
            "would be skipped, and how to begin anew is in the guide on operating, under lost checkpoints",
        )


def _moment(timestamp_ms: int | None) -> str:
    if timestamp_ms is None:
        return "an unknown time"
    try:
        return datetime.fromtimestamp(timestamp_ms / 1000, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return f"{timestamp_ms} ms"
