"""Checkpoints in Spark's own format, without Spark."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class CheckpointFolder:
    """A checkpoint of one query, written as Spark writes it."""

    def __init__(self, folder: Path, query_id: str = "q") -> None:
        self.folder = folder
        self.write("metadata", json.dumps({"id": query_id}))

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def remove(self, *names: str) -> None:
        for name in names:
            (self.folder / name).unlink()

    def plan(self, number: int, end: Any) -> None:
        times = json.dumps({"batchWatermarkMs": 0, "batchTimestampMs": 1_795_374_641_913, "conf": {}})
        self.write(f"offsets/{number}", "\n".join(["v1", times, "-" if end is None else json.dumps(end)]))

    def commit(self, number: int) -> None:
        self.write(f"commits/{number}", 'v1\n{"nextBatchWatermarkMs":0}')

    def batches(self, *numbers: int) -> None:
        """Plan and commit micro-batches of ten Kafka offsets each, as ``Watched.batches`` does in the ledger."""
        for number in numbers:
            self.plan(number, {"orders": {"0": number * 10 + 10}})
            self.commit(number)

    def files(self, number: int, paths: Iterable[str], *, compacted: Iterable[tuple[str, int]] | None = None) -> None:
        """Write an entry of the file source's log, or a ``.compact`` file."""
        entries = compacted if compacted is not None else ((path, number) for path in paths)
        lines = [json.dumps({"path": path, "timestamp": 1, "batchId": batch}) for path, batch in entries]
        suffix = "" if compacted is None else ".compact"
        self.write(f"sources/0/{number}{suffix}", "\n".join(["v1", *lines]))
