"""Graceful stop: SIGTERM (or SIGINT) asks; the micro-batch under way ends, the next one does not begin.

Under ``spark-submit`` the signal reaches the JVM, whose shutdown would end Spark in the middle of a batch. A Hadoop
shutdown hook, which runs before Spark's own, waits for the batch and then ends the process with our exit code.
"""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

from pyspark.java_gateway import ensure_callback_server_started
from pyspark.sql import SparkSession

from spark_jobs.contracts.errors import EtlError
from spark_jobs.contracts.exit_codes import ExitCode

log = logging.getLogger(__name__)

# Spark's own hooks have 40 (SparkContext 50): higher runs earlier.
_PRIORITY = 100


class StopRequestedError(EtlError):
    """The run was asked to stop; the micro-batch that was to begin did not."""

    exit_code = ExitCode.STOPPED_COMMITTED


class StoppedInBatchError(StopRequestedError):
    """The run was asked to stop, and the micro-batch under way was rolled back."""

    exit_code = ExitCode.STOPPED_ROLLED_BACK


def stopped_between_batches() -> StopRequestedError:
    """Return the error of a run that was asked to stop and has written every micro-batch that it began."""
    return StopRequestedError("The run was asked to stop", cure="The next run goes on from here")


class Stop:
    """A request to stop, and the word that the run has come to its end."""

    def __init__(self, grace_seconds: float = 60.0) -> None:
        self._asked = threading.Event()
        self._ended = threading.Event()
        self._in_batch = threading.Event()
        # Not for `ask`: a signal handler may run while its own thread holds it.
        self._edge = threading.Lock()
        self._grace = grace_seconds
        self._jvm: Any = None
        self._hook: Any = None
        self._from_jvm = False

    @property
    def asked(self) -> bool:
        """Tell whether somebody asked."""
        return self._asked.is_set()

    @property
    def in_batch(self) -> bool:
        """Tell whether a micro-batch is under way."""
        return self._in_batch.is_set()

    def ask(self) -> None:
        """Ask the run to stop; safe to call from a signal handler."""
        self._asked.set()

    def wait(self, seconds: float) -> None:
        """Wait, but not longer than until somebody asks."""
        self._asked.wait(seconds)

    def enter_batch(self) -> None:
        """Say that a micro-batch begins.

        :raises StopRequestedError: the run was asked to stop before.
        """
        with self._edge:
            if not self.asked:
                self._in_batch.set()
                return
        raise stopped_between_batches()

    def may_end(self) -> bool:
        """Tell whether somebody asked and no micro-batch is under way; then none will begin any more."""
        with self._edge:
            return self.asked and not self.in_batch

    def leave_batch(self) -> None:
        """Say that a micro-batch has ended, one way or the other."""
        self._in_batch.clear()

    def on_signals(self) -> None:
        """Ask on SIGTERM and SIGINT. Only the main thread may call this."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.ask()

    def on_jvm_shutdown(self, spark: SparkSession) -> None:
        """Ask when the JVM is told to end, and hold it until the run has come to its end. Once is enough."""
        if self._hook is not None:
            return
        self._jvm = spark._jvm
        ensure_callback_server_started(spark.sparkContext._gateway)  # type: ignore[no-untyped-call]
        manager = self._jvm.org.apache.hadoop.util.ShutdownHookManager.get()
        seconds = self._jvm.java.util.concurrent.TimeUnit.SECONDS
        # A Java thread around it: Hadoop hashes its hooks, which a proxy into Python cannot do.
        self._hook = self._jvm.java.lang.Thread(_Hook(self))
        manager.addShutdownHook(self._hook, _PRIORITY, int(self._grace) + 5, seconds)

    def hold_jvm(self) -> None:
        """Called by the hook: ask, and wait for the end."""
        if self._ended.is_set():
            return
        self._from_jvm = True
        self.ask()
        self._ended.wait(self._grace)

    def ended(self, exit_code: int) -> None:
        """Say that the run has come to its end; a JVM that waits for it ends with ``exit_code``."""
        held = self._from_jvm
        self._ended.set()
        if self._jvm is None:
            return
        if held:
            # The JVM is shutting down, and would end with 143 whatever became of the batch.
            self._jvm.java.lang.Runtime.getRuntime().halt(int(exit_code))
        else:
            # Python ends before the JVM: nobody would answer the hook.
            self._jvm.org.apache.hadoop.util.ShutdownHookManager.get().removeShutdownHook(self._hook)


class _Hook:
    """A ``java.lang.Runnable`` in Python."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop

    def run(self) -> None:
        self._stop.hold_jvm()

    class Java:
        """What py4j reads."""

        implements = ["java.lang.Runnable"]  # noqa: RUF012 - py4j reads a list
