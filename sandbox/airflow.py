"""A real Airflow: API server, scheduler, triggerer and DAG processor in a home and on ports of its own."""

from __future__ import annotations

import json
import os
import re
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from sandbox.airflow_api import AirflowApi
from sandbox.errors import SandboxError
from sandbox.ports import free_port
from sandbox.processes import ServerProcess
from sandbox.spark_cluster import spark_environ


class Airflow(AirflowApi):
    """``airflow standalone`` with everything of its own, and the REST API's client for it; a context manager.

    :param home: AIRFLOW_HOME: metadata, logs, the generated password. Kept.
    :param dags: the DAG folder; ``dags`` in ``home`` when None.
    :param connections: connection id to its value in Airflow's URI or JSON form; handed over by environment.
    :param environ: added to the environment of all components.
    :param metadata: SQLAlchemy address of the metadata; SQLite in ``home`` when None.
    """

    user = "admin"

    def __init__(
        self,
        home: Path,
        *,
        dags: Path | None = None,
        connections: Mapping[str, str] | None = None,
        environ: Mapping[str, str] | None = None,
        metadata: str | None = None,
    ) -> None:
        self.home = home
        self.dags = dags or home / "dags"
        self.plugins = home / "plugins"
        self.port = free_port()
        self.environ = {
            **_without_airflow(spark_environ()),
            **_settings(home, self.dags, self.port, metadata),
            **{f"AIRFLOW_CONN_{name.upper()}": value for name, value in (connections or {}).items()},
            **(environ or {}),
        }
        self._process: ServerProcess | None = None
        self._others: list[ServerProcess] = []
        super().__init__(self.url)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Return the address of the UI."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """Return the file with the output of all components."""
        return self.home / "standalone.log"

    @property
    def password(self) -> str:
        """Return the password that Airflow made for :attr:`user`.

        :raises SandboxError: there is none yet.
        """
        kept = self.home / "simple_auth_manager_passwords.json.generated"
        try:
            return str(json.loads(kept.read_text())[self.user])
        except (OSError, ValueError, KeyError) as error:
            raise SandboxError("Airflow has made no password yet", found=str(error)) from error

    def start(self, *, seconds: float = 300) -> Self:
        """Start all components and wait until all say that they are healthy.

        :raises SandboxError: they do not within ``seconds``.
        """
        # Python does not see a folder of modules that was not there when it began.
        for folder in (self.dags, self.plugins):
            folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "airflow", "standalone"]
        self._process = ServerProcess("Airflow", [*command], log=self.log, environ=self.environ, cwd=self.home)
        self._process.wait_until(self.is_healthy, seconds=seconds)
        return self

    def stop(self) -> None:
        """Stop all components, with every task that still runs and every process of such a task."""
        for process in self._others:
            process.stop(seconds=15)
        self._others.clear()
        if self._process is None:
            return
        started = _descendants(self._process.pid)
        self._process.stop(seconds=15)
        self._process = None
        # A task's own processes may have left the group.
        _, alive = psutil.wait_procs(started, timeout=2)
        for left in alive:
            left.kill()
        psutil.wait_procs(alive, timeout=5)

    def reread(self) -> None:
        """Have the DAG files parsed soon that make DAGs of other files, such as pipelines that were dropped in now."""
        for file in self.dags.glob("etl_pipelines.py"):
            file.touch()

    def wait_released(self, run_id: str, task_id: str, *, seconds: float = 60) -> None:
        """Wait until the scheduler has seen a task that is to wait leave its executor.

        A task that is resumed before that, quicker than a person can, fails: the scheduler takes the executor's
        report of the first part for that of the second ("finished with state success, but … is queued").

        :raises SandboxError: the time is up.
        """
        told = re.compile(f"Received executor event .*task_id={task_id!r}, run_id={re.escape(repr(run_id))}")
        if self._process is None:
            raise SandboxError("Airflow does not run")
        self._process.wait_until(lambda: told.search(self.log.read_text(errors="replace")) is not None, seconds=seconds)

    def kill_component(self, name: str) -> None:
        """End ``scheduler``, ``triggerer``, ``dag-processor`` or ``api-server`` with SIGKILL, as a crash would.

        :raises SandboxError: it does not run.
        """
        roots = [process.pid for process in (self._process, *self._others) if process]
        running = [process for root in roots for process in _family(root)]
        found = [process for process in running if name in _command(process)[-2:]]
        if not found:
            raise SandboxError(f"Airflow's {name} does not run")
        for process in found:
            process.kill()

    def start_component(self, name: str) -> None:
        """Start a component that was killed: as ``airflow standalone`` would, which does not do it again."""
        command = [sys.executable, "-m", "airflow", name]
        self._others.append(ServerProcess(name, [*command], log=self.log, environ=self.environ, cwd=self.home))


def _command(process: psutil.Process) -> list[str]:
    try:
        found: list[str] = process.cmdline()
    except psutil.Error:
        # It has ended meanwhile.
        return []
    return found


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return found


def _family(pid: int) -> list[psutil.Process]:
    """Return a process and all that came of it; nothing where it has ended."""
    try:
        return [psutil.Process(pid), *_descendants(pid)]
    except psutil.NoSuchProcess:
        return []


def _without_airflow(environ: Mapping[str, str]) -> dict[str, str]:
    """Leave out what another Airflow of this shell, or a test's, would set."""
    return {name: value for name, value in environ.items() if not name.startswith("AIRFLOW")}


def _settings(home: Path, dags: Path, port: int, metadata: str | None) -> dict[str, str]:
    sections = {
        "core": {
            "dags_folder": str(dags),
            "load_examples": "False",
            "executor": "LocalExecutor",
            "parallelism": "4",
            "execution_api_server_url": f"http://127.0.0.1:{port}/execution/",
            "fernet_key": "",
        },
        "api": {
            "host": "127.0.0.1",
            "port": str(port),
            "base_url": f"http://127.0.0.1:{port}",
            "workers": "1",
            "secret_key": secrets.token_hex(16),
        },
        "api_auth": {"jwt_secret": secrets.token_hex(32)},
        "dag_processor": {
            # New and changed files are seen soon. The others are not parsed again and again: that took a quarter of two
            # cores; see `reread`.
            "refresh_interval": "5",
            "min_file_process_interval": "30",
            "parsing_processes": "1",
            "print_stats_interval": "0",
        },
        "logging": {
            "worker_log_server_port": str(free_port()),
            "trigger_log_server_port": str(free_port()),
            "base_log_folder": str(home / "logs"),
        },
        "scheduler": {"enable_health_check": "False"},
        # On a busy machine the API server's first answer may take longer than the five seconds that there are else.
        "workers": {"execution_api_timeout": "60"},
    }
    if metadata is not None:
        sections["database"] = {"sql_alchemy_conn": metadata}
    named = {
        f"AIRFLOW__{section.upper()}__{option.upper()}": value
        for section, options in sections.items()
        for option, value in options.items()
    }
    return named | {"AIRFLOW_HOME": str(home), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "no_proxy": _no_proxy()}


def _no_proxy() -> str:
    return ",".join(filter(None, [os.environ.get("no_proxy"), "127.0.0.1", "localhost"]))
