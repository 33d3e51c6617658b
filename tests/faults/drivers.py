"""Real drivers, each a session of its own, that can be killed, stopped and woken at a fault point."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from pipeline_runs import VARIABLE, Pipelines

from sandbox.spark_cluster import spark_environ
from spark_jobs import faults
from spark_jobs.contracts.replay import ReplayRequest
from spark_jobs.contracts.reprocess_batches import ReprocessRequest

_STANDBY = Path(__file__).with_name("standby.py")
_ROOT = _STANDBY.parent.parent.parent
_SECONDS = 120

Order = Mapping[str, Any] | ReplayRequest | ReprocessRequest


@dataclass(frozen=True)
class Answer:
    """How a driver ended by itself."""

    exit_code: int
    error: str


@dataclass
class Driver:
    """A driver that waits for its order."""

    process: subprocess.Popen[str]
    pipelines: Pipelines
    faults_file: Path

    def ready(self) -> None:
        """Wait until its Spark session is there."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.strip() == "READY", line + self.log()

    def order(self, config: Order, fault: str = "", **more: Any) -> None:
        """Let it run the pipeline, or the replay, with a fault on the way."""
        assert self.process.stdin is not None
        if isinstance(config, ReplayRequest):
            order = {"replay": config.model_dump(mode="json"), "faults": fault}
        elif isinstance(config, ReprocessRequest):
            order = {"reprocess": config.model_dump(mode="json"), "faults": fault}
        else:
            order = {"pipeline": str(self.pipelines.path(config)), "faults": fault, **more}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Answer:
        """Wait for its own end."""
        assert self.process.stdout is not None
        lines = self.process.stdout.read().splitlines()
        self.process.wait(_SECONDS)
        assert lines, f"ended with {self.process.returncode} and no answer\n{self.log()}"
        return Answer(**json.loads(lines[-1]))

    def run(self, config: Order, **more: Any) -> Answer:
        self.ready()
        self.order(config, **more)
        return self.answer()

    def killed_at(self, config: Order, point: str) -> None:
        """Run until the fault point is reached, where everything of the driver gets SIGKILL."""
        self.ready()
        self.order(config, f"{point} kill-driver")
        self.process.wait(_SECONDS)
        assert self.fired(), f"{point} was not reached: ended with {self.process.returncode}\n{self.log()}"
        self.end()

    def fired(self) -> str:
        """Return the fault that fired, empty when none did."""
        file = Path(f"{self.faults_file}.fired")
        return file.read_text().strip() if file.exists() else ""

    def stopped_at(self, config: Mapping[str, Any], point: str) -> None:
        """Run until the fault point is reached, where the driver, its JVM and who reached the point get SIGSTOP."""
        self.ready()
        self.order(config, f"{point} stop-driver")
        deadline = time.monotonic() + _SECONDS
        while not (self.fired() and self._is_stopped()):
            assert time.monotonic() < deadline, f"{point} was not reached\n{self.log()}"
            assert self.process.poll() is None, self.log()
            time.sleep(0.02)

    def _is_stopped(self) -> bool:
        # Spark's Python workers have a process group of their own, and stop only when one of them reached the point.
        group = [member for member in self.members() if os.getpgid(member.pid) == self.process.pid]
        return all(member.status() == psutil.STATUS_STOPPED for member in group)

    def wake(self) -> None:
        """Let it go on where it was stopped."""
        for member in self.members():
            member.send_signal(signal.SIGCONT)

    def members(self) -> list[psutil.Process]:
        """Return every process of the driver's session: Python, JVM, workers."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError, PermissionError):
                if os.getsid(process.pid) == self.process.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def end(self) -> None:
        """SIGKILL to whatever is left of it."""
        for member in self.members():
            with suppress(psutil.Error):
                member.kill()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()

    def log(self) -> str:
        """Return the end of what it said."""
        return "\n".join(Path(f"{self.faults_file}.log").read_text(errors="replace").splitlines()[-40:])


@dataclass
class Garage:
    """Keeps one driver ready while another one runs."""

    pipelines: Pipelines
    environ: Mapping[str, str] = field(default_factory=dict)
    _drivers: list[Driver] = field(default_factory=list)
    _next: Driver | None = None

    def driver(self, *, another: bool = True) -> Driver:
        """Return a driver that starts, or has started; ``another`` one starts meanwhile."""
        driver = self._next or self._start()
        self._next = self._start() if another else None
        return driver

    def _start(self) -> Driver:
        folder = self.pipelines.folder / "drivers"
        folder.mkdir(exist_ok=True)
        faults_file = folder / f"{len(self._drivers)}.faults"
        environ = {
            **os.environ,
            **spark_environ(),
            "PYTHONPATH": str(_ROOT),
            VARIABLE: self.pipelines.database.airflow_uri,
            faults.VARIABLE: str(faults_file),
            **self.environ,
        }
        with Path(f"{faults_file}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, str(_STANDBY)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environ,
                text=True,
                start_new_session=True,
            )
        driver = Driver(process, self.pipelines, faults_file)
        self._drivers.append(driver)
        return driver

    def __enter__(self) -> Garage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for driver in self._drivers:
            driver.end()
