"""Spark's checkpoint, read (and seeded) as files: query id, offset log, commit log, the file source's own log.

Formats: Spark's OffsetSeqLog, CommitLog and FileStreamSourceLog, version ``v1``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

from spark_jobs.contracts.errors import CheckpointMismatchError
from spark_jobs.contracts.tracker.records import SourceFile

_LOGS = ("offsets", "commits", "sources", "state")
_SEEDING = "etl-seeding"


@dataclass(frozen=True, slots=True)
class OffsetEntry:
    """One entry of the offset log: what a micro-batch is to read up to.

    :param watermark_ms: the watermark at the batch's start (it evicts state); lateness uses the entry before.
    :param source: the end offset of the only source, parsed; None while the source has none.
    :param planned_ms: when Spark planned the micro-batch, which it does once.
    """

    watermark_ms: int
    source: Any
    planned_ms: int = 0


class Checkpoint:
    """A checkpoint folder on any file system that Spark can reach."""

    def __init__(self, spark: SparkSession, location: str) -> None:
        jvm: Any = spark._jvm
        # Each dot is a question to the JVM, so what every batch needs is looked up once.
        self._new_path, self._new_uri = jvm.org.apache.hadoop.fs.Path, jvm.java.net.URI
        self._to_text = jvm.org.apache.commons.io.IOUtils.toString
        self._entries: dict[int, OffsetEntry] = {}
        self.location = location
        try:
            self._root = self._new_path(location)
            self._files = self._root.getFileSystem(spark._jsc.hadoopConfiguration())
        except Py4JJavaError as error:
            raise CheckpointMismatchError(
                f"The checkpoint location {location} cannot be reached",
                found=str(error.java_exception.getMessage()),
                expected="streamingConfigJson.checkpointLocation, writable by Spark",
                cure="Check the path, its scheme and the permissions",
            ) from error

    def query_id(self) -> str | None:
        """Return the query's id; None when there is no checkpoint yet."""
        text = self._read("metadata")
        try:
            return None if text is None else str(json.loads(text)["id"])
        except (ValueError, KeyError) as error:
            raise CheckpointMismatchError(
                f"The file metadata of the checkpoint {self.location} cannot be read",
                found=f"{len(text or '')} characters: {error}",
                expected='{"id": the query\'s id}, as Spark writes it',
                cure="Restore the file, or move the whole checkpoint away and go on as when it is lost",
            ) from error

    def has_logs(self) -> bool:
        """Tell whether a query has left anything here, whether or not it has its ``metadata``."""
        return any(self._names(folder) for folder in _LOGS)

    def clear_half_seed(self) -> None:
        """Remove what a driver left that died in :meth:`seed_files`; nothing of it was ever read."""
        if self._read(_SEEDING) is not None:
            for folder in _LOGS:
                self._files.delete(self._path(folder), True)

    def end_seed(self) -> None:
        """Remove the mark of a seed that is whole: it would have the logs removed should ``metadata`` be lost later."""
        self._files.delete(self._path(_SEEDING), False)

    def has_offsets(self) -> bool:
        """Tell whether any micro-batch was ever planned here."""
        return bool(self._numbers("offsets"))

    def last_commit(self) -> int | None:
        """Return the newest batch id that Spark holds for committed."""
        return max(self._numbers("commits"), default=None)

    def last_planned(self) -> int | None:
        """Return the newest batch id that Spark has written offsets for."""
        return max(self._numbers("offsets"), default=None)

    def offsets(self, batch_id: int) -> OffsetEntry | None:
        """Return the offset log's entry for a batch; None when there is none. Spark writes it once."""
        if batch_id not in self._entries and (entry := self._offsets(batch_id)) is not None:
            # The next batch asks for this one again, and nobody for older ones.
            kept = {number: older for number, older in self._entries.items() if number == batch_id - 1}
            self._entries = {**kept, batch_id: entry}
        return self._entries.get(batch_id)

    def _offsets(self, batch_id: int) -> OffsetEntry | None:
        text = self._read(f"offsets/{batch_id}")
        if text is None:
            return None
        _version, metadata, *sources = text.splitlines()
        if len(sources) != 1:
            raise CheckpointMismatchError(
                f"The checkpoint {self.location} belongs to a query with {len(sources)} sources",
                expected="one source",
                cure="Give the pipeline a checkpointLocation of its own",
            )
        source = None if sources[0] == "-" else json.loads(sources[0])
        times = json.loads(metadata)
        return OffsetEntry(int(times["batchWatermarkMs"]), source, int(times["batchTimestampMs"]))

    def initial_offset(self) -> Any:
        """Return where the first batch started, as Kafka's source keeps it; None for other sources."""
        text = self._read("sources/0/0")
        if text is None:
            return None
        last = text.strip().splitlines()[-1]
        try:
            offset = json.loads(last)
        except ValueError:
            return None
        return None if "path" in offset else offset

    def source_files(self, start: Any, end: Any) -> tuple[SourceFile, ...]:
        """Return the files of the file source's log entries after offset ``start`` up to ``end``, by path."""
        first = -1 if start is None else int(start["logOffset"])
        last = int(end["logOffset"])
        entries = [entry for number in range(first + 1, last + 1) for entry in self._source_entries(number)]
        return tuple(sorted(map(self._source_file, entries), key=lambda file: file.path))

    def write_metadata(self, query_id: str) -> None:
        """Give a new checkpoint its query id, so that the ledger knows it before Spark starts."""
        # In one step: half a file would be no checkpoint any more, and not none.
        self._write("metadata.new", json.dumps({"id": query_id}))
        if not self._files.rename(self._path("metadata.new"), self._path("metadata")):
            raise CheckpointMismatchError(
                f"The checkpoint {self.location} cannot be given its file metadata",
                found="a file system that did not rename metadata.new, and did not say why",
                expected="no other driver at the same checkpoint, and the right to rename files there",
                cure="Look at the folder and its permissions, and run the pipeline again",
            )

    def seed_files(self, query_id: str, files: Iterable[SourceFile]) -> None:
        """Write a checkpoint that has read ``files`` as its batch 0 and nothing since.

        ``metadata`` comes last: without it a half-written seed is no checkpoint, and is written again. A file of our
        own tells it from a checkpoint that has lost its ``metadata``.
        """
        entries = [
            json.dumps({"path": f.path, "timestamp": int(f.modified_at.timestamp() * 1000), "batchId": 0})
            for f in files
        ]
        now = int(datetime.now(UTC).timestamp() * 1000)
        metadata = json.dumps({"batchWatermarkMs": 0, "batchTimestampMs": now, "conf": {}})
        self._write(_SEEDING, query_id)
        self._write("sources/0/0", "\n".join(["v1", *entries]))
        self._write("offsets/0", "\n".join(["v1", metadata, json.dumps({"logOffset": 0})]))
        self._write("commits/0", "\n".join(["v1", json.dumps({"nextBatchWatermarkMs": 0})]))
        self.write_metadata(query_id)
        self.end_seed()

    def _source_entries(self, number: int) -> list[dict[str, Any]]:
        text = self._read(f"sources/0/{number}")
        if text is None:
            text = self._compacted(number)
        if text is None:
            raise CheckpointMismatchError(
                f"The checkpoint {self.location} has lost entry {number} of its source log",
                expected=f"sources/0/{number}, or a later .compact file that holds it",
                cure="Restore the checkpoint, or start a new one with --resume-from-ledger",
            )
        entries = [json.loads(line) for line in text.splitlines()[1:] if line.strip()]
        return [entry for entry in entries if entry["batchId"] == number]

    def _compacted(self, number: int) -> str | None:
        names = [name for name in self._names("sources/0") if name.endswith(".compact")]
        later = sorted(int(name.removesuffix(".compact")) for name in names)
        holder = next((candidate for candidate in later if candidate >= number), None)
        return None if holder is None else self._read(f"sources/0/{holder}.compact")

    def _source_file(self, entry: dict[str, Any]) -> SourceFile:
        modified = datetime.fromtimestamp(entry["timestamp"] / 1000, UTC)
        path = self._new_path(self._new_uri(entry["path"]))
        try:
            size = int(self._files_of(path).getFileStatus(path).getLen())
        except Py4JJavaError:
            # Gone since: Spark's own read says so. The entry itself is still the batch's.
            size = 0
        return SourceFile(entry["path"], modified, size)

    def _files_of(self, path: Any) -> Any:
        return path.getFileSystem(self._files.getConf())

    def _path(self, name: str) -> Any:
        return self._new_path(self._root, name)

    def _names(self, folder: str) -> list[str]:
        path = self._path(folder)
        if not self._files.exists(path):
            return []
        return [str(status.getPath().getName()) for status in self._files.listStatus(path)]

    def _numbers(self, folder: str) -> list[int]:
        return [int(name) for name in self._names(folder) if name.isdigit()]

    def _read(self, name: str) -> str | None:
        path = self._path(name)
        if not self._files.exists(path):
            return None
        stream = self._files.open(path)
        try:
            return str(self._to_text(stream, "UTF-8"))
        finally:
            stream.close()

    def _write(self, name: str, text: str) -> None:
        stream = self._files.create(self._path(name), True)
        try:
            stream.write(bytearray(text.encode()))
        finally:
            stream.close()
