"""Peak memory of a driver for micro-batches of different sizes: each in a process of its own, read from /proc."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from time import sleep

import psutil


def driver_peak(program: Path, arguments: list[str]) -> float:
    """Run a driver and return the peak MiB of its Python process and its JVM together."""
    process = subprocess.Popen(
        [sys.executable, str(program), *arguments], env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    peaks: dict[int, float] = {}
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        for member in _driver(watched):
            peaks[member.pid] = max(peaks.get(member.pid, 0.0), _peak(member.pid))
        sleep(0.1)
    assert process.returncode == 0, process.stderr.read().decode()[-2000:] if process.stderr else ""
    return sum(peaks.values())


def _driver(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *(child for child in process.children() if "java" in child.name())]
    except psutil.NoSuchProcess:
        return []


def _peak(pid: int) -> float:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0
