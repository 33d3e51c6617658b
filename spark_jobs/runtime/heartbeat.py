"""The sign of life that a run leaves in the tracker, on a connection of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Self

from pyspark.sql import SparkSession

from spark_jobs.contracts.config.streaming import TriggerMode
from spark_jobs.contracts.errors import EtlError, FencedError
from spark_jobs.contracts.tracker.connect import Connection, connect
from spark_jobs.contracts.tracker.fence import check_fence
from spark_jobs.contracts.tracker.runs import heartbeat
from spark_jobs.logs.events import log_event
from spark_jobs.sinks.ledger import Ledger

log = logging.getLogger("etl.run")

_EVERY_SECONDS = 10.0
_LOOK_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Application:
    """The Spark application of a run, as whoever wants to look at it must know it.

    :param trigger: how the query starts its micro-batches, such as ``processingtime=10 seconds``; None without a query.
    :param ui_url: of Spark's UI; None where it is switched off.
    """

    application_id: str
    ui_url: str | None = None
    trigger: str | None = None

    @classmethod
    def of(cls, spark: SparkSession, trigger: TriggerMode | None = None) -> Self:
        """Return the session's application."""
        words = None if trigger is None else str(trigger)
        return cls(spark.sparkContext.applicationId, spark.sparkContext.uiWebUrl, words)


class Heartbeat:
    """Beats at most every ten seconds. A heartbeat that fails is logged: the commits find out for themselves.

    :param application: None as long as there is none.
    """

    def __init__(self, ledger: Ledger, application: Application | None) -> None:
        self._ledger = ledger
        self._application = application
        self._conn: Connection | None = None
        self._last = float("-inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._conn is not None:
            self._conn.close()

    def session(self) -> Connection:
        """Return an open connection beside that of the commits, for the thread that beats.

        :raises DatabaseUnreachableError: the server does not answer.
        """
        if self._conn is None or self._conn.closed:
            self._conn = connect(self._ledger.database, application_name=self._ledger.application_name)
        return self._conn

    def beat(self) -> None:
        """Beat if it is time.

        :raises FencedError: there is a newer run. An idle query would find out with its next micro-batch only, whose
            entry in the checkpoint the newer run's query would stumble over.
        """
        if monotonic() - self._last < _EVERY_SECONDS:
            return
        self._last = monotonic()
        ledger, application = self._ledger, self._application
        try:
            conn = self.session()
            heartbeat(
                conn,
                ledger.schema,
                ledger.run_id,
                application.application_id if application else None,
                trigger=application.trigger if application else None,
                ui_url=application.ui_url if application else None,
            )
            check_fence(conn, ledger.schema, ledger.pipeline_id, ledger.run_id, ledger.epoch, lock=False)
        except FencedError:
            raise
        except EtlError as error:
            log_event(log, logging.WARNING, "heartbeat_failed", reason=error.found or error.what)
            if self._conn is not None:
                self._conn.close()
            self._conn = None


@contextmanager
def beating(heartbeat: Heartbeat) -> Iterator[None]:
    """Keep the run's sign of life up while the block runs; who has lost the right finds out with the next commit."""
    over = threading.Event()

    def beat() -> None:
        with heartbeat:
            while not over.wait(_LOOK_SECONDS):
                with suppress(EtlError):
                    heartbeat.beat()

    thread = threading.Thread(target=beat, name="etl-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
