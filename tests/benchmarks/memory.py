"""Peak memory of driver and executors for micro-batches of different sizes: each a cluster of its own, from /proc.

An executor's JVM grows with what it reads, to its heap's limit and beyond, also where the rows go nowhere. What the
sink adds is therefore measured beside Spark's no-op sink on the same rows.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
_NO_OP = "Spark's no-op sink"
_MIB = 1 << 20


@dataclass
class Peaks:
    """Most MiB that was resident at once: in the driver (Python and JVM), an executor's JVM, its Python workers."""

    driver: float = 0.0
    jvm: float = 0.0
    workers: float = 0.0

    def look(self, driver: psutil.Process) -> None:
        """Take the processes as they are now."""
        own = [driver, *(child for child in _children(driver) if "java" in _name(child))]
        self.driver = max(self.driver, sum(map(_resident, own)))
        for process in psutil.process_iter(["name", "cmdline"]):
            if "CoarseGrainedExecutorBackend" in " ".join(process.info["cmdline"] or ()):
                self.jvm = max(self.jvm, _resident(process))
                self.workers = max(self.workers, sum(map(_resident, _children(process))))


def figures(server: PostgresServer, folder: Path, sizes: Sequence[int]) -> Iterator[Figure]:
    """Measure each strategy with each size, and yield how driver and workers grow, and the JVM beside the no-op's."""
    data = {rows: _data(folder, rows) for rows in sizes}
    no_op = {rows: _no_op(path, rows) for rows, path in data.items()}
    yield _growth("executor's JVM", _NO_OP, {rows: peaks.jvm for rows, peaks in no_op.items()}, None)
    for strategy in STRATEGIES:
        peaks = {rows: _peaks(server, folder, path, rows, strategy) for rows, path in data.items()}
        yield _growth("driver", strategy, {rows: peak.driver for rows, peak in peaks.items()}, 1.2)
        yield _growth("executor's Python workers", strategy, {rows: peak.workers for rows, peak in peaks.items()}, 1.2)
        own, other = peaks[max(sizes)].jvm, no_op[max(sizes)].jvm
        yield Figure(_name_of("executor's JVM", strategy, sizes), own, "MiB", f"{_NO_OP}: {other:.0f} MiB", own / other,
                     1.2, less=True, series={rows: peak.jvm for rows, peak in peaks.items()})  # fmt: skip


def _growth(kind: str, what: str, found: dict[int, float], goal: float | None) -> Figure:
    small, large = found[min(found)], found[max(found)]
    other = f"{min(found) // 1_000_000} million rows: {small:.0f} MiB"
    name = _name_of(kind, what, list(found))
    return Figure(name, large, "MiB", other, large / small, goal, less=True, series=found)


def _name_of(kind: str, what: str, sizes: Sequence[int]) -> str:
    return f"peak memory of the {kind}, {what}, one micro-batch of {max(sizes) // 1_000_000} million rows"


def _no_op(data: Path, rows: int) -> Peaks:
    with SparkCluster(workers=2) as cluster:
        peaks = _drive(["--no-op", cluster.master_url, str(data)])
    _tell(_NO_OP, rows, peaks)
    return peaks


def _tell(what: str, rows: int, peaks: Peaks) -> None:
    print(
        f"memory: {what}, {rows:,} rows: driver {peaks.driver:.0f} MiB, executor's JVM {peaks.jvm:.0f} MiB, "
        f"its Python workers {peaks.workers:.0f} MiB",
        flush=True,
    )


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
    _tell(strategy, rows, peaks)
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
