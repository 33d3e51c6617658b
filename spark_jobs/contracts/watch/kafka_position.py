"""How far a pipeline has read its Kafka topics, as its ledger says; and where it would begin, had it read nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final, TypeVar

from spark_jobs.contracts.config import PipelineConfig
from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.kafka_client import KafkaClient, Partition
from spark_jobs.contracts.kafka_settings import client_options, java_settings, librdkafka_settings
from spark_jobs.contracts.watch.condition import Credentials, LedgerView
from spark_jobs.contracts.watch.offsets import by_partition

T = TypeVar("T")

_SUBSCRIPTIONS: Final = ("subscribe", "subscribePattern", "assign")

# A query that was resumed from the ledger, and committed nothing yet, is where its predecessor ended. An older one that
# has committed since, as its checkpoint was brought back, is the newest.
_POSITION: Final = """
SELECT newest.batch_id, newest.offsets, moment.now
FROM (SELECT extract(epoch FROM clock_timestamp())::float) AS moment (now) LEFT JOIN LATERAL (
    SELECT b.batch_id, coalesce(b.end_offsets, q.start_offsets) AS offsets
    FROM {schema}.pipeline_query q LEFT JOIN LATERAL (
        SELECT batch_id, end_offsets, epoch FROM {schema}.batch_tracker b
        WHERE b.pipeline_id = q.pipeline_id AND b.query_id = q.query_id ORDER BY batch_id DESC LIMIT 1
    ) b ON true
    WHERE q.pipeline_id = %(pipeline)s ORDER BY greatest(q.epoch, b.epoch) DESC, q.created_at DESC LIMIT 1
) newest ON true"""


@dataclass(frozen=True, slots=True)
class KafkaPosition:
    """What the ledger knew of a pipeline's reading at one moment.

    :param offsets: the next offset of each partition; None while nothing was committed.
    :param batch_id: the newest query's newest micro-batch, if any.
    """

    pipeline: str
    offsets: dict[Partition, int] | None
    batch_id: int | None
    options: dict[str, str] = field(repr=False)
    credential_id: str | None
    _epoch: float
    _taken: float = field(default_factory=monotonic)

    @property
    def now(self) -> float:
        """What the clock of the ledger's server says now, in seconds of Unix time."""
        return self._epoch + monotonic() - self._taken

    @property
    def system(self) -> str:
        """Which cluster is read, without secrets."""
        return f"{self.option('kafka.bootstrap.servers')} as {self.credential_id}"

    @property
    def subscription(self) -> dict[str, str]:
        """The one option that says which partitions are read."""
        return {name: value for name in _SUBSCRIPTIONS if (value := self.option(name))}

    @property
    def says(self) -> str:
        """Where the pipeline stands, in words."""
        if self.batch_id is not None:
            return f"micro-batch {self.batch_id} is committed"
        return "nothing was ever committed" if self.offsets is None else "resumed, and nothing was committed since"

    def option(self, name: str) -> str | None:
        """Return an option of the reader; case makes no difference, as in Spark."""
        return next((value for key, value in self.options.items() if key.lower() == name.lower()), None)

    def client(self, credentials: Credentials) -> KafkaClient:
        """Return a client that reaches the brokers as Spark does.

        :raises ConfigError: it cannot, see :func:`~spark_jobs.contracts.kafka_settings.librdkafka_settings`.
        :raises ConnectionMissingError: there is no connection of the name in ``extract.credentialId``.
        """
        java = client_options(self.options)
        if self.credential_id:
            # A connection's own settings win, as they do in Spark's reader.
            java |= java_settings(credentials(self.credential_id))
        return KafkaClient(librdkafka_settings(java))

    def begins(self, client: KafkaClient, first: dict[Partition, int]) -> dict[Partition, int | None] | None:
        """Return the next offset of each partition; None where its next record is the next that is produced.

        A partition that the ledger does not know is read from its first offset.

        :param first: the partitions that are read, and the broker's first offsets.
        :returns: None when nothing was committed, and the pipeline begins with what comes after its first start.
        """
        if self.offsets is not None:
            known = self.offsets
            return {place: known[place] if known.get(place, -2) >= 0 else first[place] for place in first}
        return self._from_options(client, first)

    def _from_options(self, client: KafkaClient, first: dict[Partition, int]) -> dict[Partition, int | None] | None:
        # In Spark's order: the first that is given counts.
        if moment := self.option("startingTimestamp"):
            return dict(client.offsets_since(dict.fromkeys(first, self._parsed("startingTimestamp", moment, int))))
        if text := self.option("startingOffsetsByTimestamp"):
            moments = self._parsed("startingOffsetsByTimestamp", text, _places)
            there = {place: moment for place, moment in moments.items() if place in first}
            return {**first, **client.offsets_since(there)}
        begin = (self.option("startingOffsets") or "latest").strip()
        if begin.lower() == "earliest":
            return dict(first)
        offsets = {} if begin.lower() == "latest" else self._parsed("startingOffsets", begin, _places)
        if not offsets or -1 in offsets.values():
            return None
        return {place: first[place] if offsets.get(place, -2) == -2 else offsets[place] for place in first}

    def _parsed(self, name: str, text: str, parse: Callable[[str], T]) -> T:
        try:
            return parse(text)
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"The option {name} of pipeline {self.pipeline!r} cannot be read", found=f"{text!r}: {error}"
            ) from None


def _places(text: str) -> dict[Partition, int]:
    found = by_partition(json.loads(text))
    if not found:
        raise ValueError("no topics with partitions")
    return found


def position(view: LedgerView, pipeline: str) -> KafkaPosition:
    """Return how far the pipeline has read.

    :raises ConfigError: the pipeline has never run, its configuration is not valid any more, or it reads no Kafka.
    """
    config = view.config(pipeline)
    _require_kafka(config, pipeline)
    about = f"Looking how far {pipeline!r} has read"
    batch, offsets, epoch = view.rows(_POSITION, {"pipeline": pipeline}, about)[0]
    return KafkaPosition(
        pipeline=pipeline,
        offsets=_known(offsets, pipeline),
        batch_id=batch,
        options=dict(config.extract.options),
        credential_id=config.extract.credential_id,
        _epoch=epoch,
    )


def _known(offsets: Any, pipeline: str) -> dict[Partition, int] | None:
    if offsets is None or offsets == {}:
        return None
    known = by_partition(offsets)
    if known is None:
        raise ConfigError(
            f"The ledger's offsets of pipeline {pipeline!r} are not Kafka's",
            found=f"{offsets}",
            expected="topics with partitions: the newest run reads from Kafka, and nothing of it is committed yet",
            cure="wait for its first micro-batch",
        )
    return known


def _require_kafka(config: PipelineConfig, pipeline: str) -> None:
    if config.extract.source_type != "kafka":
        raise ConfigError(
            f"Only a Kafka source can be asked what it still has, and pipeline {pipeline!r} has another",
            found=f"extract.sourceType {config.extract.source_type!r}",
            expected="'kafka'",
            cure="for other sources use PipelineFreshnessSensor",
        )
