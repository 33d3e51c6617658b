"""Drivers as processes of their own, to be stopped or killed at a chosen moment."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, sleep

from sandbox.spark_cluster import spark_environ

_SECONDS = 120
QUICK = ("--conf", "spark.ui.enabled=false", "--master", "local[2]")


def java_environ() -> dict[str, str]:
    """What a driver needs to find Java."""
    return {name: spark_environ()[name] for name in ("JAVA_HOME", "SPARK_LOCAL_IP")}


@contextmanager
def under_watch(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Nothing of the process's group stays, and its pipes are closed."""
    try:
        with process:
            try:
                yield process
            finally:
                kill_group(process)
    finally:
        process.wait(_SECONDS)


def kill_group(process: subprocess.Popen[str]) -> None:
    """SIGKILL for driver and JVM at once, as the kernel's killer or a lost machine does it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def wait_for_line(process: subprocess.Popen[str], word: str) -> str:
    """Read standard error (standard output where both are one) up to a line with ``word``."""
    seen = []
    output = process.stderr or process.stdout
    assert output is not None
    for line in output:
        seen.append(line)
        if word in line:
            return line
    raise AssertionError(f"{word!r} never came:\n" + "".join(seen[-200:]))


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    """Ask again and again until the condition holds; a process that ends meanwhile is an error."""
    deadline = monotonic() + _SECONDS
    while not condition():
        if process is not None and process.poll() is not None:
            assert process.stderr is not None
            raise AssertionError(f"ended with {process.returncode}:\n{process.stderr.read()}")
        assert monotonic() < deadline, "it did not come to pass"
        sleep(0.02)
