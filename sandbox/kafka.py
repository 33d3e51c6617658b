"""A real Kafka broker: Apache Kafka's own jars, KRaft mode, one process that is broker and controller."""

from __future__ import annotations

import base64
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sandbox.errors import SandboxError
from sandbox.jars import classpath
from sandbox.java import java
from sandbox.ports import free_port, is_listening
from sandbox.processes import Command, ServerProcess

USER = "etl"
# Without any of the words that log filters look for.
PASSWORD = "Vq3-harbour/19@mill"


@dataclass(frozen=True)
class Record:
    """One record to produce; what is None is left to Kafka."""

    value: bytes | str | None
    key: bytes | str | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp_ms: int | None = None
    partition: int | None = None


class KafkaBroker:
    """One broker with a folder and ports of its own; a context manager.

    Topics are never made by using them: what was not created is missing.

    :param folder: folder to keep; a temporary one, gone after the last use, when None.
    """

    def __init__(self, folder: Path | None = None, *, heap: str = "512m") -> None:
        self.port = free_port()
        self._login_port = free_port()
        self._controller_port = free_port()
        self._heap = heap
        self._temporary = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="etl-kafka-"))
        self._process: ServerProcess | None = None
        self._admin: Any = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def bootstrap_servers(self) -> str:
        """Return ``127.0.0.1:PORT``."""
        return f"127.0.0.1:{self.port}"

    @property
    def login_servers(self) -> str:
        """Return ``127.0.0.1:PORT``, where :data:`USER` logs in with :data:`PASSWORD` by PLAIN, over SASL_PLAINTEXT."""
        return f"127.0.0.1:{self._login_port}"

    @property
    def log(self) -> Path:
        """Return the broker's log file."""
        return self.folder / "server.log"

    def start(self) -> Self:
        """Start the broker and wait until it answers.

        :raises SandboxError: it does not start.
        """
        properties = self._format()
        command: Command = [java(), f"-Xmx{self._heap}", *_QUIET, "-cp", classpath("broker"), "kafka.Kafka", properties]
        self._process = ServerProcess("Kafka", command, log=self.log, cwd=self.folder)
        self._process.wait_until(lambda: is_listening(self.port))
        self.admin().list_topics(timeout=30)
        return self

    def stop(self) -> None:
        """Stop the broker; its records stay."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def kill(self) -> None:
        """End the broker with SIGKILL, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def restart(self) -> None:
        """Stop and start; ports and records stay the same."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop the broker and remove its temporary folder."""
        self.stop()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def admin(self) -> Any:
        """Return a confluent-kafka ``AdminClient``."""
        # Kept: a client that nobody holds is gone before its answer comes.
        if self._admin is None:
            from confluent_kafka.admin import AdminClient

            self._admin = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 2})
        return self._admin

    def create_topic(self, name: str, partitions: int = 1, config: Mapping[str, str] | None = None) -> str:
        """Create a topic and return its name."""
        from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined]

        topic = NewTopic(name, num_partitions=partitions, replication_factor=1, config=dict(config or {}))
        self.admin().create_topics([topic])[name].result(timeout=30)
        return name

    def add_partitions(self, name: str, total: int) -> None:
        """Let a topic have ``total`` partitions."""
        from confluent_kafka.admin import NewPartitions  # type: ignore[attr-defined]

        self.admin().create_partitions([NewPartitions(name, total)])[name].result(timeout=30)

    def delete_topic(self, name: str) -> None:
        """Delete a topic with all its records."""
        self.admin().delete_topics([name])[name].result(timeout=30)

    def produce(self, topic: str, records: Iterable[Record | bytes | str]) -> int:
        """Produce records, in their order within each partition, and return how many.

        :raises SandboxError: the broker refused one.
        """
        from confluent_kafka import Producer

        refused: list[str] = []
        producer = Producer(
            {"bootstrap.servers": self.bootstrap_servers, "linger.ms": 20, "enable.idempotence": True, "log_level": 3}
        )

        def delivered(error: object, _message: object) -> None:
            if error is not None:
                refused.append(str(error))

        count = 0
        for count, record in enumerate(records, start=1):
            producer.produce(topic, **_arguments(record), on_delivery=delivered)
            if count % 10_000 == 0:
                producer.flush()
        producer.flush(60)
        if refused:
            raise SandboxError(f"{len(refused)} records were refused by {topic}", found=refused[0])
        return count

    def delete_records(self, topic: str, before: Mapping[int, int]) -> None:
        """Delete the records of each partition that lie before an offset: ``{partition: offset}``."""
        from confluent_kafka import TopicPartition

        edges = [TopicPartition(topic, partition, offset) for partition, offset in before.items()]
        for outcome in self.admin().delete_records(edges).values():
            outcome.result(timeout=30)

    def end_offsets(self, topic: str) -> dict[int, int]:
        """Return the offset after the last record of each partition."""
        from confluent_kafka import Consumer, TopicPartition

        consumer = Consumer({"bootstrap.servers": self.bootstrap_servers, "group.id": "sandbox"})
        try:
            partitions = consumer.list_topics(topic, timeout=30).topics[topic].partitions
            return {
                number: consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=30)[1]
                for number in sorted(partitions)
            }
        finally:
            consumer.close()

    def _format(self) -> Path:
        properties = self.folder / "server.properties"
        if properties.exists():
            return properties
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = _settings(self.port, self._login_port, self._controller_port, self.folder / "logs")
        properties.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        command: Command = [java(), *_QUIET, "-cp", classpath("broker"), "kafka.tools.StorageTool"]
        # As one argument: an id may begin with a dash.
        command += ["format", f"--cluster-id={cluster}", "-c", properties]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            properties.unlink()
            raise SandboxError("Kafka's folder could not be formatted", found=done.stdout + done.stderr)
        return properties


_QUIET = ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]


def _settings(port: int, login_port: int, controller_port: int, logs: Path) -> dict[str, str]:
    for_clients = f"PLAINTEXT://127.0.0.1:{port},SASL_PLAINTEXT://127.0.0.1:{login_port}"
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listeners": f"{for_clients},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": for_clients,
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl_plaintext.plain.sasl.jaas.config": "org.apache.kafka.common.security.plain."
        f'PlainLoginModule required user_{USER}="{PASSWORD}";',
        "log.dirs": str(logs),
        "auto.create.topics.enable": "false",
        # Records keep the time of their events, which may be long ago: nothing is deleted for its age.
        "log.retention.ms": "-1",
        "message.timestamp.before.max.ms": "9223372036854775807",
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "group.initial.rebalance.delay.ms": "0",
    }


def _arguments(record: Record | bytes | str) -> dict[str, Any]:
    if not isinstance(record, Record):
        return {"value": record}
    given = {"key": record.key, "timestamp": record.timestamp_ms, "partition": record.partition}
    return {"value": record.value, "headers": list(record.headers)} | {k: v for k, v in given.items() if v is not None}
