"""A real Spark standalone cluster: a master and workers as processes of their own, on pyspark's jars."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sandbox.jars import pyspark_home
from sandbox.java import java_home
from sandbox.ports import free_port
from sandbox.processes import Command, ServerProcess


def spark_environ(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment in which ``spark-submit`` and Spark's daemons find Java, Spark and this Python."""
    found = {
        "JAVA_HOME": str(java_home()),
        "SPARK_HOME": str(pyspark_home()),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYSPARK_PYTHON": sys.executable,
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
    }
    return {**os.environ, **found, **(extra or {})}


class SparkCluster:
    """One master and ``workers`` workers, each a host of its own where the system has the addresses; a context manager.

    :param cores: cores of each worker.
    :param memory: memory of each worker, in Spark's spelling.
    :param environ: added to the workers' environment.
    """

    def __init__(
        self, workers: int = 2, *, cores: int = 1, memory: str = "2g", environ: Mapping[str, str] | None = None
    ) -> None:
        self.port = free_port()
        self.ui_port = free_port()
        self.rest_port = free_port()
        self._wanted = workers
        self._cores = cores
        self._memory = memory
        self._environ = spark_environ({"SPARK_DAEMON_MEMORY": "512m", **(environ or {})})
        self._folder: Path | None = None
        self._master: ServerProcess | None = None
        self.workers: list[ServerProcess] = []

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def master_url(self) -> str:
        """Return ``spark://127.0.0.1:PORT``."""
        return f"spark://127.0.0.1:{self.port}"

    @property
    def ui_url(self) -> str:
        """Return the address of the master's page."""
        return f"http://127.0.0.1:{self.ui_port}"

    def start(self) -> Self:
        """Start master and workers and wait until all have joined.

        :raises SandboxError: one does not start.
        """
        ports = ["--port", str(self.port), "--webui-port", str(self.ui_port)]
        # Off by default; with it, drivers in cluster mode can be asked about and killed.
        rest = f"-Dspark.master.rest.enabled=true -Dspark.master.rest.port={self.rest_port}"
        self._environ["SPARK_MASTER_OPTS"] = f"{rest} -Dspark.master.rest.host=127.0.0.1"
        self._master = self._run("Spark's master", "master.Master", ["--host", "127.0.0.1", *ports])
        self._master.wait_until(lambda: bool(self.state()))
        for _ in range(self._wanted):
            self.add_worker()
        self._master.wait_until(lambda: self.state().get("aliveworkers") == self._wanted)
        return self

    def add_worker(self) -> ServerProcess:
        """Start one more worker, without waiting for it to join."""
        number = len(self.workers) + 1
        size = ["--cores", str(self._cores), "--memory", self._memory]
        places = ["--webui-port", str(free_port()), "--work-dir", str(self._place() / f"worker-{number}")]
        # Spark starts a speculative copy of a task on another host only; Linux answers on all of 127.0.0.0/8.
        host = f"127.0.0.{number}" if sys.platform == "linux" else "127.0.0.1"
        arguments = ["--host", host, *size, *places, self.master_url]
        worker = self._run(f"Spark's worker {number}", "worker.Worker", arguments)
        self.workers.append(worker)
        return worker

    def state(self) -> dict[str, Any]:
        """Return what the master says of itself, its workers and applications; empty while it does not answer."""
        try:
            with urllib.request.urlopen(f"{self.ui_url}/json/", timeout=5) as answer:
                told: dict[str, Any] = json.load(answer)
                return told
        except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError):
            # ValueError: the page comes up before what it shows.
            return {}

    def stop(self) -> None:
        """Stop workers, executors and master."""
        for worker in self.workers:
            worker.stop(seconds=10)
        self.workers.clear()
        if self._master is not None:
            self._master.stop(seconds=10)
            self._master = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _place(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="etl-spark-"))
        return self._folder

    def _run(self, name: str, main: str, arguments: list[str]) -> ServerProcess:
        command: Command = [pyspark_home() / "bin" / "spark-class", f"org.apache.spark.deploy.{main}", *arguments]
        log = self._place() / f"{main}-{len(self.workers)}.log"
        return ServerProcess(name, command, log=log, environ=self._environ, cwd=self._place())
