"""spark-submit for one pipeline run: secrets in its environment only, a driver that is asked before it is killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import psutil
from airflow.providers.apache.spark.hooks.spark_submit import SparkSubmitHook

from airflow_etl_provider.hooks.driver_lines import DriverLines

# Kills a process group that outlived its time. A process of its own, because Airflow SIGKILLs the task's process five
# seconds after its SIGTERM, whatever it is doing. The group's number cannot be taken by another while it lives.
_GUARD = """
import os, signal, sys, time
group, deadline = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
try:
    while time.monotonic() < deadline:
        os.killpg(group, 0)
        time.sleep(0.2)
    os.killpg(group, signal.SIGKILL)
except ProcessLookupError:
    pass
"""


class PipelineSubmitHook(SparkSubmitHook):
    """The Spark provider's hook, with four things of its own.

    * ``process_environment`` reaches the spark-submit process and nothing else. The base class turns ``env_vars`` into
      ``--conf`` arguments on Kubernetes and YARN, where everybody can read them.
    * spark-submit leads a process group of its own. Airflow signals the task's whole group; a JVM that gets that
      SIGTERM closes the Spark session in the middle of a micro-batch.
    * :meth:`stop_driver` asks the Python driver to stop, so that it commits or rolls back, before anything is killed.
    * ``heard`` knows which retries a driver below this process has told of.
    """

    process_environment: Mapping[str, str]
    heard: DriverLines
    application_name: str
    guard: subprocess.Popen[bytes] | None

    @classmethod
    def taking_over(cls, hook: SparkSubmitHook, *, application: Path, environment: Mapping[str, str]) -> Self:
        """Return this kind of hook with everything that ``hook`` has resolved from its arguments and connection.

        :param application: the file that spark-submit runs; the driver is recognised by it.
        :param environment: variables, secrets among them, for the spark-submit process.
        """
        taken = cls.__new__(cls)
        taken.__dict__.update(hook.__dict__)
        taken.process_environment = environment
        taken.application_name = application.name
        taken.guard = None
        taken.heard = DriverLines()
        return taken

    @property
    def master(self) -> str:
        """The Spark master's URL."""
        return str(self._connection["master"])

    @property
    def is_cluster_mode(self) -> bool:
        """Whether the driver runs on the cluster and not below this process."""
        return bool(self._connection["deploy_mode"] == "cluster")

    def submit(self, application: str = "", **kwargs: Any) -> str | None:
        """Run spark-submit in a process group of its own; see the base class."""
        try:
            return super().submit(application, start_new_session=True, **kwargs)
        finally:
            if self._submit_sp is not None:
                self._submit_sp.stdout.close()

    def _process_spark_submit_log(self, itr: Iterator[str]) -> None:
        super()._process_spark_submit_log(self.heard.listening(itr))

    def _build_spark_submit_command(self, application: str) -> list[str]:
        command = super()._build_spark_submit_command(application)
        # The base class gives `_env` to the process that it starts next.
        self._env = {**self._python_environment(), **(self._env or {}), **self.process_environment}
        return command

    def _python_environment(self) -> dict[str, str]:
        """A driver below this process uses this process's Python, which certainly has the package."""
        if self.is_cluster_mode:
            return {}
        found: dict[str, str] = {}
        beside = Path(sys.executable).parent
        if shutil.which(str(self._connection["spark_binary"])) is None:
            found["PATH"] = f"{beside}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        if "PYSPARK_DRIVER_PYTHON" not in os.environ and "spark.pyspark.driver.python" not in self._conf:
            found["PYSPARK_DRIVER_PYTHON"] = sys.executable
        if self.master.startswith("local") and "PYSPARK_PYTHON" not in os.environ:
            found["PYSPARK_PYTHON"] = sys.executable
        return found

    def stop_driver(self, grace_seconds: float) -> bool:
        """Ask a driver below this process to stop, and wait; return whether one was there and has ended.

        The Python driver gets the SIGTERM, not the JVM above it: it ends the micro-batch first. A guard process kills
        what still runs one second after the time is over, also if this process is killed meanwhile.
        """
        process = self._submit_sp
        if process is None:
            return False  # it may be started in the next moment
        if process.poll() is not None:
            return True
        self.guard = subprocess.Popen(  # noqa: S603 - our own interpreter and text
            [sys.executable, "-c", _GUARD, str(process.pid), str(grace_seconds + 1)],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._ask(process.pid)
        deadline = time.monotonic() + grace_seconds
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return process.poll() is not None

    def kill_driver(self) -> None:
        """SIGKILL spark-submit and everything below it."""
        process = self._submit_sp
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def _ask(self, pid: int) -> None:
        """SIGTERM the Python driver; before it exists, the whole group."""
        with contextlib.suppress(psutil.NoSuchProcess):
            below = psutil.Process(pid).children(recursive=True)
            drivers = [child for child in below if self._is_driver(child)]
            for driver in drivers:
                driver.terminate()
            if drivers:
                return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGTERM)

    def _is_driver(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            command = process.cmdline()
            # The JVM's own command line ends with the same arguments; the driver's second word is the file.
            return len(command) > 1 and Path(command[1]).name == self.application_name
        return False
