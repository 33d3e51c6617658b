"""What runs under fire: a producer of keyed records, pipelines of every strategy and write mode, and the truth.

One record in a hundred is no JSON, one in a thousand is refused by the target: both must be dead letters, once.
"""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition

from sandbox.kafka import KafkaBroker

CREDENTIAL = "warehouse"
TOPIC = "chaos"
PARTITIONS = 4
KEYS = 97
_REFUSED = -1


@dataclass(frozen=True)
class Sent:
    """A record of the topic; ``row`` is None where it is no JSON."""

    partition: int
    offset: int
    row: dict[str, int] | None

    @property
    def refused(self) -> bool:
        return self.row is not None and self.row["amount"] == _REFUSED


@dataclass(frozen=True)
class Kind:
    """A strategy with a write mode."""

    strategy: str
    mode: str

    @property
    def name(self) -> str:
        return f"{self.strategy}_{self.mode}"

    def pipeline(self, brokers: str, checkpoints: Path, batch: int) -> dict[str, Any]:
        """Return the pipeline's document.

        :param batch: records in a micro-batch: few, so that a run has several.
        """
        load: dict[str, Any] = {"writeStrategy": self.strategy, "writeMode": self.mode, "takeoverTimeout": "5 seconds"}
        streaming: dict[str, Any] = {}
        transforms = []
        if self.mode == "upsert":
            load |= {"keys": "key", "orderColumn": "id"}
        if self.mode == "overwrite":
            streaming = {"outputMode": "complete"}
            parameters = {"groupByColumns": "key", "aggregations": "amount:sum:total"}
            transforms = [{"transformType": "aggregation", "parameters": parameters}]
        return {
            "pipelineId": self.name,
            "mode": "streaming",
            "schemas": {"row": "id BIGINT, key INT, amount BIGINT"},
            "extract": {
                "sourceType": "kafka",
                "topic": TOPIC,
                "schemaName": "row",
                "connectionParams": {
                    "kafka.bootstrap.servers": brokers,
                    "subscribe": TOPIC,
                    "startingOffsets": "earliest",
                    "maxOffsetsPerTrigger": str(batch),
                },
            },
            "transforms": transforms,
            "load": {
                "sinkType": "postgresql",
                "table": f"public.{self.name}",
                "autoCreateTable": True,
                "credentialId": CREDENTIAL,
                **load,
            },
            "streamingConfigJson": {
                "checkpointLocation": str(checkpoints / self.name),
                "queryName": self.name,
                "triggerMode": "availablenow",
                **streaming,
            },
        }

    @property
    def table(self) -> str:
        """The target's DDL. Sums are not refused."""
        if self.mode == "overwrite":
            return f"CREATE TABLE public.{self.name} (key int, total bigint)"
        key = ", PRIMARY KEY (key)" if self.mode == "upsert" else ""
        return f"CREATE TABLE public.{self.name} (id bigint, key int, amount bigint CHECK (amount <> {_REFUSED}){key})"

    def expected(self, sent: list[Sent]) -> Counter[tuple[int, ...]]:
        """Return the rows that the target must hold, with how often."""
        records = [one.row for one in sent if one.row and not (one.refused and self.mode != "overwrite")]
        if self.mode == "append":
            return Counter((r["id"], r["key"], r["amount"]) for r in records)
        if self.mode == "upsert":
            last = {r["key"]: r for r in sorted(records, key=lambda r: r["id"])}
            return Counter((r["id"], r["key"], r["amount"]) for r in last.values())
        sums: Counter[int] = Counter()
        for record in records:
            sums[record["key"]] += record["amount"]
        return Counter(sums.items())

    def expected_letters(self, sent: list[Sent]) -> Counter[tuple[str, int, int]]:
        """Return stage, partition and offset of each dead letter that there must be."""
        letters = Counter(("parse", one.partition, one.offset) for one in sent if one.row is None)
        if self.mode != "overwrite":
            letters.update(("write", one.partition, one.offset) for one in sent if one.refused)
        return letters

    @property
    def query(self) -> str:
        columns = "key, total::bigint" if self.mode == "overwrite" else "id, key, amount"
        return f"SELECT {columns} FROM public.{self.name}"


KINDS = (
    *(Kind(strategy, mode) for strategy in ("single", "staged") for mode in ("append", "upsert", "overwrite")),
    Kind("two_phase", "append"),
)


class RecordProducer:
    """Adds keyed records until it is stopped; a broker that is away only delays it."""

    def __init__(self, kafka: KafkaBroker, seed: int, per_second: int = 100) -> None:
        self._random = random.Random(seed)
        self._per_tick = per_second // 10
        self._end = threading.Event()
        self._next = 0
        self._refused: list[str] = []
        self._producer = Producer(
            {
                "bootstrap.servers": kafka.bootstrap_servers,
                "enable.idempotence": True,
                "linger.ms": 20,
                "log_level": 0,
            }
        )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._end.wait(0.1):
            for _ in range(self._per_tick):
                row = {"id": self._next, "key": self._random.randrange(KEYS), "amount": self._random.randrange(1000)}
                if self._next % 1000 == 500:
                    row["amount"] = _REFUSED
                value = f"no JSON {self._next}" if self._next % 100 == 99 else json.dumps(row)
                self._producer.produce(TOPIC, value, key=str(row["key"]), on_delivery=self._delivered)
                self._next += 1
            self._producer.poll(0)

    def _delivered(self, error: object, _message: object) -> None:
        if error is not None:
            self._refused.append(str(error))

    def stop(self) -> int:
        """Wait until the broker has every record and return how many; one that it refused is an error."""
        self._end.set()
        self._thread.join()
        left = self._producer.flush(60)
        assert not left, f"{left} records did not reach the broker"
        assert not self._refused, self._refused[0]
        return self._next


def records_in(kafka: KafkaBroker) -> list[Sent]:
    """Return what the topic holds, read by Kafka's own client: the truth."""
    ends = kafka.end_offsets(TOPIC)
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": "truth"})
    try:
        consumer.assign([TopicPartition(TOPIC, partition, 0) for partition in ends])
        found: list[Sent] = []
        while len(found) < sum(ends.values()):
            messages = consumer.consume(min(10_000, sum(ends.values()) - len(found)), timeout=30)
            assert messages, "the topic's records did not come"
            found += [Sent(message.partition(), message.offset(), _row(message.value())) for message in messages]
        return found
    finally:
        consumer.close()


def _row(value: bytes) -> dict[str, int] | None:
    row: dict[str, int] | None = json.loads(value) if value.startswith(b"{") else None
    return row
