"""spark-submit for one pipeline run: secrets in its environment only, a driver that is asked before it is killed."""

from __future__ import annotations

import contextlib
import importlib.util
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
from spark_jobs.contracts.errors import ConfigError

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


# A standalone cluster runs no Python driver, but a JVM one that starts Python.
_PYTHON_RUNNER = "org.apache.spark.deploy.PythonRunner"
# Its client hands its whole environment to the master: what a driver may need, and nothing else.
_FOR_THE_MASTER = ("SPARK_", "PYSPARK_", "HADOOP_", "JAVA_", "LC_", "PATH", "HOME", "LANG", "TMPDIR", "KRB5")


def spark_core() -> Path:
    """Return Spark's own jar, of SPARK_HOME or of the installed pyspark.

    :raises ConfigError: there is none.
    """
    installed = importlib.util.find_spec("pyspark")
    beside = [str(Path(installed.origin).parent)] if installed and installed.origin else []
    for home in filter(None, [os.environ.get("SPARK_HOME"), *beside]):
        if found := sorted(Path(home, "jars").glob("spark-core_*.jar")):
            return found[0]
    raise ConfigError(
        "Spark's own jar was not found, by which a Python driver starts on a standalone cluster",
        expected="spark-core_*.jar in the directory jars of SPARK_HOME or of pyspark",
        cure="install pyspark where Airflow's worker runs, or set SPARK_HOME, the same as on the cluster's nodes",
    )


class PipelineSubmitHook(SparkSubmitHook):
    """The Spark provider's hook, with five things of its own.

    * ``process_environment`` reaches the spark-submit process and nothing else. The base class turns ``env_vars`` into
      ``--conf`` arguments on Kubernetes and YARN, where everybody can read them.
    * spark-submit leads a process group of its own. Airflow signals the task's whole group; a JVM that gets that
      SIGTERM closes the Spark session in the middle of a micro-batch.
    * :meth:`stop_driver` asks the Python driver to stop, so that it commits or rolls back, before anything is killed.
    * ``heard`` knows which retries a driver below this process has told of.
    * A standalone cluster in cluster mode gets a driver that it takes, and nothing of this process's environment that
      could be a secret.

    ``deferred`` says that nobody waits for the driver here: ``post_submit_commands`` are not run after the submit.
    """

    process_environment: Mapping[str, str]
    heard: DriverLines
    application_name: str
    guard: subprocess.Popen[bytes] | None
    deferred: bool

    @classmethod
    def taking_over(
        cls, hook: SparkSubmitHook, *, application: Path, environment: Mapping[str, str], deferred: bool = False
    ) -> Self:
        """Return this kind of hook with everything that ``hook`` has resolved from its arguments and connection.

        :param application: the file that spark-submit runs; the driver is recognised by it.
        :param environment: variables, secrets among them, for the spark-submit process.
        """
        taken = cls.__new__(cls)
        taken.__dict__.update(hook.__dict__)
        taken.process_environment = environment
        taken.application_name = application.name
        taken.guard = None
        taken.deferred = deferred
        taken.heard = DriverLines()
        return taken

    @property
    def master(self) -> str:
        """The Spark master's URL."""
        return str(self._connection["master"])

    @property
    def is_cluster_mode(self) -> bool:
        """Whether the driver runs on the cluster and not below this process."""
        return bool(self.deploy_mode == "cluster")

    @property
    def deploy_mode(self) -> str | None:
        """``client``, ``cluster``, or nothing said."""
        found: str | None = self._connection["deploy_mode"]
        return found

    @property
    def is_yarn(self) -> bool:
        """Whether the cluster is YARN."""
        return self.master.startswith("yarn")

    @property
    def is_kubernetes(self) -> bool:
        """Whether the cluster is Kubernetes."""
        return self.master.startswith("k8s")

    @property
    def is_standalone_cluster(self) -> bool:
        """Whether the driver runs on a standalone cluster."""
        return self.is_cluster_mode and self.master.startswith("spark://")

    @property
    def namespace(self) -> str | None:
        """Where Kubernetes keeps the driver."""
        found: str | None = self._connection["namespace"]
        return found

    def submit(self, application: str = "", **kwargs: Any) -> str | None:
        """Run spark-submit in a process group of its own; see the base class."""
        if self.is_standalone_cluster:
            kwargs["env"] = {k: v for k, v in os.environ.items() if k.startswith(_FOR_THE_MASTER)}
        if self.deferred:
            self._post_submit_commands_done = True
        try:
            return super().submit(application, start_new_session=True, **kwargs)
        finally:
            if self.deferred:
                self._post_submit_commands_done = False
            if self._submit_sp is not None:
                self._submit_sp.stdout.close()

    def _process_spark_submit_log(self, itr: Iterator[str]) -> None:
        super()._process_spark_submit_log(self.heard.listening(itr))

    def _build_spark_submit_command(self, application: str) -> list[str]:
        command = super()._build_spark_submit_command(application)
        # The base class gives `_env` to the process that it starts next.
        self._env = {**self._python_environment(), **(self._env or {}), **self.process_environment}
        return self._by_python_runner(command, application) if self.is_standalone_cluster else command

    def _by_python_runner(self, command: list[str], application: str) -> list[str]:
        arguments = list(self._application_args or [])
        options = command[: len(command) - len(arguments) - 1]
        return [*options, "--class", _PYTHON_RUNNER, str(spark_core()), application, self._py_files or "", *arguments]

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
