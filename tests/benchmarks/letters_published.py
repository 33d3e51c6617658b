"""Publishing 100 dead letters to Kafka: percentiles over many micro-batches of one warm run.

The time is the whole of it: reading the letters from where they were staged, writing them, the broker's answer.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peers import Bench
from report import Figure

from sandbox.kafka import KafkaBroker

_LETTERS = 100
_WARM_UP = 30
_LIMIT_MS = 100
_TABLE = "public.published"


def figures(bench: Bench, batches: int) -> Iterator[Figure]:
    """Measure, and yield the median and the 99th percentile."""
    bench.sql(f"DROP TABLE IF EXISTS {_TABLE}", f"CREATE TABLE {_TABLE} (id integer)")
    inbox = bench.fresh_folder("inbox")
    _fill(inbox, batches + _WARM_UP)
    extract = {
        "sourceType": "file",
        "connectionParams": {"path": str(inbox), "format": "json", "maxFilesPerTrigger": "1"},
    }
    load = {"table": _TABLE, "maxDeadLetterFraction": 1}
    with KafkaBroker() as broker, _published() as milliseconds:
        broker.create_topic("letters")
        queue = {"type": "kafka", "bootstrapServers": broker.bootstrap_servers, "topic": "letters"}
        handling = {"dlqConfig": queue}
        bench.run(bench.pipeline(extract=extract, schema="id INT", load=load, error_handling=handling))
    found = sorted(milliseconds[_WARM_UP:])
    assert len(found) == batches, found
    for words, share, goal in (("median", 0.5, None), ("99th percentile", 0.99, 1.0)):
        ms = found[min(int(len(found) * share), len(found) - 1)]
        name = f"{_LETTERS} dead letters to Kafka, {batches} micro-batches, {words}"
        yield Figure(name, ms, "ms", f"{_LIMIT_MS} ms", ms / _LIMIT_MS, goal, less=True)


def _fill(inbox: Path, files: int) -> None:
    inbox.mkdir()
    for number in range(files):
        lines = [f"line {number}.{line} is no JSON" for line in range(_LETTERS)]
        (inbox / f"{number}.json").write_text("\n".join([*lines, '{"id": 1}', ""]))


@contextmanager
def _published() -> Iterator[list[int]]:
    """Give a list that grows by the milliseconds of each publication, as the log tells them."""
    times = _Times()
    logger = logging.getLogger("etl.batch")
    level = logger.level
    logger.addHandler(times)
    logger.setLevel(logging.INFO)
    try:
        yield times.milliseconds
    finally:
        logger.removeHandler(times)
        logger.setLevel(level)


class _Times(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.milliseconds: list[int] = []

    def emit(self, record: logging.LogRecord) -> None:
        if found := re.search(r"event=letters_published .*milliseconds=(\d+)", record.getMessage()):
            self.milliseconds.append(int(found[1]))
