"""Questions to a Kafka broker without Java: what it has, from where on, and how long it keeps it.

Nothing is joined, committed or created: no consumer group, no topic. The client, confluent-kafka, is an optional part
of this package, and is imported when the first question is asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Any, Final, NoReturn, Self, TypeAlias
from uuid import uuid4

from spark_jobs.contracts.errors import ConfigError, EtlError, SourceRefusedError, SourceUnreachableError
from spark_jobs.contracts.redaction import mask

Partition: TypeAlias = tuple[str, int]

SECONDS: Final = 10.0
"""What all questions of one client may take together."""

_INTERNAL: Final = ("__consumer_offsets", "__transaction_state", "__share_group_state")
_DOWN: Final = ("_ALL_BROKERS_DOWN", "_RESOLVE")
_REFUSED: Final = (
    "_AUTHENTICATION",
    "SASL_AUTHENTICATION_FAILED",
    "TOPIC_AUTHORIZATION_FAILED",
    "CLUSTER_AUTHORIZATION_FAILED",
    "UNSUPPORTED_SASL_MECHANISM",
)
# One record of each partition is wanted; a first record larger than this comes all the same.
_FETCH: Final = {
    "fetch.wait.max.ms": 100,
    "max.partition.fetch.bytes": 16_384,
    "queued.min.messages": 1,
    "queued.max.messages.kbytes": 1_024,
}


@dataclass(frozen=True, slots=True)
class FirstRecord:
    """The first record at or behind an offset.

    :param timestamp_ms: as Kafka keeps it, of the producer or of the broker; None for a record without.
    """

    offset: int
    timestamp_ms: int | None


class KafkaClient:
    """Asks one cluster for one look, which takes at most :data:`SECONDS`; a context manager.

    Each method raises :class:`SourceUnreachableError` (retryable) when no broker answers in time, and
    :class:`SourceRefusedError` when one refuses the login, or says that this user may not ask.

    :param settings: of librdkafka; secrets among them.
    :raises ConfigError: confluent-kafka is not installed, or does not take a setting.
    """

    def __init__(self, settings: Mapping[str, str]) -> None:
        self._kafka = _library()
        self._until = monotonic() + SECONDS
        # Not the client itself: what refers to itself is not closed when it goes.
        self._failures: list[Any] = []
        self._where = settings.get("bootstrap.servers", "")
        isolation = settings.get("isolation.level")
        self._settings = {name: value for name, value in settings.items() if name != "isolation.level"}
        levels = self._kafka.IsolationLevel
        # Spark's default.
        self._isolation = levels.READ_COMMITTED if isolation == "read_committed" else levels.READ_UNCOMMITTED
        self._admin = self._made(self._kafka.admin.AdminClient, {})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._admin = None

    def partitions(self, subscription: Mapping[str, str]) -> set[Partition]:
        """Return the partitions that Spark would read.

        :param subscription: one of ``subscribe``, ``subscribePattern`` and ``assign``, with its value.
        :raises SourceUnreachableError: also for a topic or a partition that does not exist.
        """
        if "subscribePattern" in subscription:
            return self._partitions_like(subscription["subscribePattern"])
        if "assign" in subscription:
            assigned = {topic: set(map(int, parts)) for topic, parts in json.loads(subscription["assign"]).items()}
        else:
            assigned = {name.strip(): set() for name in subscription["subscribe"].split(",") if name.strip()}
        there = self._described(assigned)
        missing = {(topic, part) for topic, parts in assigned.items() for part in parts} - there
        if missing:
            names = ", ".join(f"{topic}[{part}]" for topic, part in sorted(missing))
            raise self._unreachable(f"Kafka has no partition {names}", "the option assign names it")
        return {(topic, part) for topic, part in there if not assigned[topic] or part in assigned[topic]}

    def first_offsets(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """Return the first offset that the broker still has."""
        earliest = self._kafka.admin.OffsetSpec.earliest()
        return self._offsets(dict.fromkeys(partitions, earliest))

    def end_offsets(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """Return the offset that the next record will have; with ``read_committed``, the next that can be read."""
        return self._offsets(dict.fromkeys(partitions, self._kafka.admin.OffsetSpec.latest()))

    def offsets_since(self, moments_ms: Mapping[Partition, int]) -> dict[Partition, int | None]:
        """Return the first offset whose record is as young as this moment, or None where there is none."""
        of = self._kafka.admin.OffsetSpec.for_timestamp
        found = self._offsets({partition: of(moment) for partition, moment in moments_ms.items()})
        return {partition: None if offset < 0 else offset for partition, offset in found.items()}

    def topic_settings(self, topics: Iterable[str]) -> dict[str, dict[str, str]]:
        """Return what is in force for each topic, the broker's defaults included."""
        kind = self._kafka.admin.ConfigResource
        asked = [kind(kind.Type.TOPIC, topic) for topic in sorted(set(topics))]
        futures = self._ask("describe_configs", asked)
        what = "Reading the settings of topic {} (needs DESCRIBE_CONFIGS)"
        return {
            resource.name: {
                name: entry.value for name, entry in self._answer(future, what.format(resource.name)).items()
            }
            for resource, future in futures.items()
        }

    def first_records(self, positions: Mapping[Partition, int]) -> dict[Partition, FirstRecord | None]:
        """Return the first record at or behind each offset; None where only markers or compacted offsets are left."""
        if not positions:
            return {}
        extra = {"group.id": f"etl-look-{uuid4()}", "enable.auto.commit": False, "enable.auto.offset.store": False}
        level = self._isolation.name.lower()
        consumer = self._made(
            self._kafka.Consumer,
            {
                **extra,
                **_FETCH,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "isolation.level": level,
            },
        )
        try:
            place = self._kafka.TopicPartition
            consumer.assign([place(topic, part, offset) for (topic, part), offset in positions.items()])
            return self._read(consumer, len(positions))
        except self._kafka.KafkaException as error:
            self._raise("Reading the first unread records", error.args[0])
        finally:
            consumer.close()

    def _read(self, consumer: Any, wanted: int) -> dict[Partition, FirstRecord | None]:
        found: dict[Partition, FirstRecord | None] = {}
        while len(found) < wanted:
            message = consumer.poll(self._pause())
            self._check_failures()
            if message is None:
                self._check_time("Reading the first unread records")
                continue
            error, partition = message.error(), (message.topic(), message.partition())
            if error is None:
                found.setdefault(partition, FirstRecord(message.offset(), _timestamp(message)))
            elif error.code() == self._kafka.KafkaError._PARTITION_EOF:
                found.setdefault(partition, None)
            elif error.name() != "GROUP_AUTHORIZATION_FAILED":
                # A group is not needed: whether one could be used does not matter.
                self._raise("Reading the first unread records", error)
            else:
                continue
            consumer.incremental_unassign([self._kafka.TopicPartition(*partition)])
        return found

    def _partitions_like(self, pattern: str) -> set[Partition]:
        try:
            # Java's and Python's patterns agree on what topics' names are made of.
            compiled = re.compile(pattern)
        except re.error as error:
            raise ConfigError("extract's subscribePattern cannot be used here", found=str(error)) from None
        self._first_answer()
        try:
            topics = self._admin.list_topics(timeout=self._left()).topics
        except self._kafka.KafkaException as error:
            self._raise("Listing the topics", error.args[0])
        names = [name for name in topics if name not in _INTERNAL and compiled.fullmatch(name)]
        return {(name, part) for name in names for part in topics[name].partitions}

    def _described(self, topics: Iterable[str]) -> set[Partition]:
        futures = self._ask("describe_topics", self._kafka.TopicCollection(sorted(topics)))
        found = {topic: self._answer(future, f"Looking for topic {topic}") for topic, future in futures.items()}
        return {(topic, part.id) for topic, described in found.items() for part in described.partitions}

    def _offsets(self, specs: Mapping[Partition, Any]) -> dict[Partition, int]:
        if not specs:
            return {}
        asked = {self._kafka.TopicPartition(*partition): spec for partition, spec in specs.items()}
        futures = self._ask("list_offsets", asked, isolation_level=self._isolation)
        return {
            (place.topic, place.partition): self._answer(future, f"Asking for offsets of {place.topic}").offset
            for place, future in futures.items()
        }

    def _first_answer(self) -> None:
        self._answer(self._ask("describe_cluster"), "Asking for the cluster")

    def _ask(self, question: str, *arguments: Any, **options: Any) -> Any:
        return getattr(self._admin, question)(*arguments, request_timeout=self._left(), **options)

    def _answer(self, future: Future[Any], what: str) -> Any:
        while not future.done():
            # Only so it is heard that nobody is there, and why.
            self._admin.poll(min(self._pause(), 0.1))
            self._check_failures()
            self._check_time(what)
        try:
            return future.result()
        except self._kafka.KafkaException as error:
            self._raise(what, error.args[0])

    def _made(self, kind: Any, extra: Mapping[str, Any]) -> Any:
        failures = self._failures
        settings = {**self._settings, **extra, "error_cb": failures.append, "log_level": 0}
        try:
            return kind(settings)
        except (self._kafka.KafkaException, TypeError, ValueError) as error:
            raise ConfigError(
                "The Kafka client does not take the settings of the source",
                found=mask(" ".join(map(str, error.args))),
                cure="correct extract.connectionParams['kafka.…'], or the connection that extract.credentialId names",
            ) from None

    def _check_failures(self) -> None:
        for failure in self._failures:
            if failure.name() in _REFUSED + _DOWN:
                self._raise(f"Asking Kafka at {self._where}", failure)

    def _check_time(self, what: str) -> None:
        if monotonic() >= self._until:
            found = f"no answer within {SECONDS:g} s{self._heard()}"
            raise self._unreachable(f"{what} took too long", found)

    def _raise(self, what: str, failure: Any) -> NoReturn:
        found = mask(f"{failure.name()}: {failure.str()}") + self._heard(failure)
        if failure.name() in _REFUSED:
            raise SourceRefusedError(
                f"{what} was refused by Kafka at {self._where}",
                found=found,
                expected="a user who may read the topic",
                cure="correct the login in the connection that extract.credentialId names, or grant it READ, DESCRIBE "
                "and DESCRIBE_CONFIGS on the topic",
            )
        raise self._unreachable(f"{what} failed", found)

    def _heard(self, but: Any = None) -> str:
        said = [mask(failure.str()) for failure in self._failures if failure is not but]
        return f" ({'; '.join(dict.fromkeys(said[:3]))})" if said else ""

    def _unreachable(self, what: str, found: str) -> EtlError:
        return SourceUnreachableError(
            what,
            found=found,
            expected=f"an answer of Kafka at {self._where}",
            cure="check extract's kafka.bootstrap.servers, topic and credentials, and the network from here",
        )

    def _left(self) -> float:
        return max(self._until - monotonic(), 0.1)

    def _pause(self) -> float:
        return min(self._left(), 0.5)


def _timestamp(message: Any) -> int | None:
    kind, moment = message.timestamp()
    return moment if kind else None


def _library() -> Any:
    try:
        import confluent_kafka  # noqa: PLC0415 - optional, and only for who asks a broker
        import confluent_kafka.admin  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            "No Kafka client for Python is installed here, and the broker must be asked",
            found=str(error),
            expected="confluent-kafka where the sensor runs: on the workers, and for deferrable sensors on the "
            "triggerer",
            cure="pip install 'airflow-etl-provider[kafka]'",
        ) from None
    return confluent_kafka
