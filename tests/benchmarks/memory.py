"""Peak memory of driver and executors for micro-batches of different sizes: each a cluster of its own, from /proc."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import sleep

import psutil
from peers import write_pipeline
from psycopg import connect
from report import Figure
from rows import SCHEMA, TABLE

from sandbox.postgres import PostgresServer
from sandbox.spark_cluster import SparkCluster

_DRIVE = Path(__file__).resolve().with_name("drive.py")
STRATEGIES = ("single", "staged", "two_phase")
_MIB = 1 << 20


@dataclass
class Peaks:
    """Most MiB that was resident at once, in the driver (Python and JVM) and in one executor (JVM and workers)."""

    driver: float = 0.0
    executor: float = 0.0
    _executors: dict[int, float] = field(default_factory=dict)

    def look(self, driver: psutil.Process) -> None:
        """Take the processes as they are now."""
        own = [driver, *(child for child in _children(driver) if "java" in _name(child))]
        self.driver = max(self.driver, sum(map(_resident, own)))
        for process in psutil.process_iter(["name", "cmdline"]):
            if "CoarseGrainedExecutorBackend" in " ".join(process.info["cmdline"] or ()):
                total = sum(map(_resident, [process, *_children(process)]))
                self.executor = max(self.executor, total)


def figures(server: PostgresServer, folder: Path, sizes: Sequence[int]) -> Iterator[Figure]:
    """Measure each strategy with each size, and yield the growth from the smallest to the largest."""
    data = {rows: _data(folder, rows) for rows in sizes}
    for strategy in STRATEGIES:
        peaks = {rows: _peaks(server, folder, path, rows, strategy) for rows, path in data.items()}
        for kind in ("driver", "executor"):
            found = {rows: getattr(peak, kind) for rows, peak in peaks.items()}
            small, large = found[min(sizes)], found[max(sizes)]
            name = f"peak memory of the {kind}, {strategy}, one micro-batch of {max(sizes) // 1_000_000} million rows"
            other = f"{min(sizes) // 1_000_000} million rows: {small:.0f} MiB"
            yield Figure(name, large, "MiB", other, large / small, 1.2, less=True, series=found)


def _peaks(server: PostgresServer, folder: Path, data: Path, rows: int, strategy: str) -> Peaks:
    with connect(server.uri("bench"), autocommit=True) as conn:
        conn.execute("DROP TABLE IF EXISTS peer")
        conn.execute(f"CREATE TABLE peer ({TABLE})")
        conn.execute("CHECKPOINT")
    extract = {"sourceType": "file", "connectionParams": {"path": str(data), "format": "parquet"}}
    name = f"memory-{strategy}-{rows}"
    file = write_pipeline(folder, name, extract=extract, schema=SCHEMA, load={"writeStrategy": strategy})
    with SparkCluster(workers=2) as cluster:
        peaks = _drive([cluster.master_url, str(file), server.airflow_uri("bench")])
    with connect(server.uri("bench")) as conn:
        found = conn.execute("SELECT count(*) FROM peer").fetchone()
        assert found == (rows,), found
    print(f"memory: {strategy}, {rows:,} rows: driver {peaks.driver:.0f} MiB, executor {peaks.executor:.0f} MiB")
    return peaks


def _drive(arguments: list[str]) -> Peaks:
    peaks = Peaks()
    command = [sys.executable, str(_DRIVE), *arguments]
    process = subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    driver = psutil.Process(process.pid)
    while process.poll() is None:
        peaks.look(driver)
        sleep(0.1)
    assert process.returncode == 0, process.stderr.read().decode()[-2000:] if process.stderr else ""
    return peaks


def _data(folder: Path, rows: int) -> Path:
    subprocess.run([sys.executable, str(_DRIVE), "--data", str(folder), str(rows)], check=True, env=os.environ)
    return folder / f"rows-{rows}"


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return ""


def _resident(process: psutil.Process) -> float:
    try:
        # Shared pages would be counted once for each forked worker: unique ones are what a process adds.
        return float(process.memory_full_info().uss) / _MIB
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0.0
