"""Spark's news of one query, as JSON: the Python side of its ``StreamingQueryListener``.

Spark tells its listeners on a thread of its own, in order, and keeps ten thousand events for them; ``recentProgress``
has a hundred, of which a driver that waits for its database may miss some. pyspark's own class for listeners asks the
JVM for each field, 30 ms of Python for each micro-batch; this one asks for the JSON and puts it aside, 2 ms.
"""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Final, Self

from py4j.protocol import Py4JError
from pyspark.java_gateway import ensure_callback_server_started
from pyspark.sql import SparkSession

log = logging.getLogger("etl.progress")

_LAST_NEWS_SECONDS: Final = 5.0


class ProgressListener:
    """Collects the progress of a query, by its id, while the block lasts.

    :param query_id: of the checkpoint: other queries of the session are none of ours.
    """

    def __init__(self, spark: SparkSession, query_id: str) -> None:
        self._spark = spark
        self._query_id = query_id
        self._news: SimpleQueue[str] = SimpleQueue()
        self._ended: set[str] = set()
        self._somebody_ended = threading.Condition()
        self._wrapper: Any = None

    def __enter__(self) -> Self:
        ensure_callback_server_started(self._spark.sparkContext._gateway)  # type: ignore[no-untyped-call]
        jvm: Any = self._spark._jvm
        self._wrapper = jvm.org.apache.spark.sql.streaming.PythonStreamingQueryListenerWrapper(_Callbacks(self))
        self._streams().addListener(self._wrapper)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A JVM that has died has no listeners, and the error that tells of its death must not be replaced.
        with suppress(Py4JError, OSError):
            self._streams().removeListener(self._wrapper)

    def news(self) -> list[str]:
        """Return what has come since the last call: Spark's progress of micro-batches as JSON, in order."""
        found = []
        with suppress(Empty):
            while True:
                found.append(self._news.get_nowait())
        return found

    def wait_for_end(self, spark_run_id: str) -> None:
        """Wait until everything about a start of the query that has ended is here; a few seconds at most."""
        with self._somebody_ended:
            if not self._somebody_ended.wait_for(lambda: spark_run_id in self._ended, _LAST_NEWS_SECONDS):
                log.debug("Spark has not told its listeners of the end of %s", spark_run_id)

    def progressed(self, event: Any) -> None:
        """Take an event of Spark's; called by the JVM."""
        progress = event.progress()
        if str(progress.id()) == self._query_id:
            self._news.put(str(progress.json()))

    def terminated(self, event: Any) -> None:
        """Take the last event of a query; called by the JVM."""
        spark_run_id = str(event.runId())
        with self._somebody_ended:
            self._ended.add(spark_run_id)
            self._somebody_ended.notify_all()

    def _streams(self) -> Any:
        return self._spark.streams._jsqm


class _Callbacks:
    """Spark's ``PythonStreamingQueryListener``, as pyspark's own listeners implement it."""

    def __init__(self, listener: ProgressListener) -> None:
        self._listener = listener

    def onQueryStarted(self, event: Any) -> None:  # noqa: N802 - Spark's names
        """Nothing to do: the runner has started it."""

    def onQueryProgress(self, event: Any) -> None:  # noqa: N802
        self._listener.progressed(event)

    def onQueryIdle(self, event: Any) -> None:  # noqa: N802
        """Nothing to keep: no micro-batch."""

    def onQueryTerminated(self, event: Any) -> None:  # noqa: N802
        self._listener.terminated(event)

    class Java:
        """What py4j reads."""

        implements = ["org.apache.spark.sql.streaming.PythonStreamingQueryListener"]  # noqa: RUF012 - py4j reads a list
