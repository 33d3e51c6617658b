"""Kill something at random times, again and again, while pipelines run on a real cluster; then compare."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from sandbox.class_archive import quick_java
from sandbox.jars import jars
from sandbox.kafka import KafkaBroker
from sandbox.postgres import PostgresServer
from sandbox.spark_cluster import SparkCluster, spark_environ
from tests.chaos.workload import CREDENTIAL, KINDS, PARTITIONS, TOPIC, Kind, RecordProducer, records_in
from tests.tcp_proxy import TcpProxy

_ROOT = Path(__file__).resolve().parent.parent.parent
_START_SECONDS = 8
_RUN_SECONDS = 240
_ATTEMPTS = 12
_LETTERS = (
    "SELECT stage, (source->>'partition')::int, (source->>'offset')::int FROM etl.dead_letter WHERE pipeline_id = %s"
)


@dataclass
class Results:
    """What the whole run showed."""

    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    restarts: int = 0
    finished_runs: int = 0
    batches_under_fire: int = 0
    records: int = 0
    dead_letters: int = 0
    rows_lost: int = 0
    rows_twice: int = 0
    orphans: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not (self.rows_lost or self.rows_twice or self.orphans or self.problems)

    def told(self) -> dict[str, object]:
        return asdict(self) | {"kills": dict(self.kills), "good": self.good}


class Chaos:
    """Servers, a producer and drivers; a context manager."""

    def __init__(self, seed: int, kinds: Sequence[Kind] = KINDS, say: Callable[[str], None] = print) -> None:
        self.results = Results(seed)
        self._random = random.Random(seed)
        self._kinds = list(kinds)
        self._say = say
        self._stack = ExitStack()

    def __enter__(self) -> Chaos:
        enter = self._stack.enter_context
        try:
            self._folder = Path(enter(tempfile.TemporaryDirectory(prefix="etl-chaos-", ignore_cleanup_errors=True)))
            self._postgres = enter(PostgresServer())
            self._postgres.create_database("chaos")
            with self._postgres.connect("chaos") as connection:
                for kind in self._kinds:
                    connection.execute(kind.table.encode())
            self._proxy = enter(TcpProxy(self._postgres.port))
            self._kafka = enter(KafkaBroker())
            self._kafka.create_topic(TOPIC, partitions=PARTITIONS)
            # Executors find the package where the driver has it.
            environ = {"PYTHONPATH": str(_ROOT)}
            self._cluster = enter(SparkCluster(workers=2, environ=environ))
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, seconds: float) -> Results:
        """Kill for so long, at least once and with a batch committed, then let every pipeline finish, and compare."""
        producer = RecordProducer(self._kafka, self.results.seed)
        began, number = time.monotonic(), 0
        try:
            # On a slow machine the first run may not be under way when a short time is over.
            while time.monotonic() < (end := began + seconds * (1 if self.results.kills and self._batches() else 3)):
                self._under_fire(self._kinds[number % len(self._kinds)], end)
                number += 1
        finally:
            self.results.records = producer.stop()
        self.results.batches_under_fire = self._batches()
        for kind in self._kinds:
            self._finish(kind)
        self._compare()
        return self.results

    def _under_fire(self, kind: Kind, deadline: float) -> None:
        driver = self._driver(kind)
        due = self._first_kill(kind, driver, deadline)
        limit = time.monotonic() + _RUN_SECONDS
        try:
            while driver.poll() is None and time.monotonic() < limit:
                if time.monotonic() < min(due, deadline):
                    time.sleep(0.05)
                    continue
                if time.monotonic() >= deadline:
                    break
                self._kill(kind, driver)
                due = time.monotonic() + self._random.uniform(1, 6)
            if driver.poll() is None and time.monotonic() >= limit:
                self.results.problems.append(f"{kind.name} did not end within {_RUN_SECONDS} s")
        finally:
            _end(driver)
        self.results.restarts += 1
        self.results.finished_runs += driver.returncode == 0

    def _first_kill(self, kind: Kind, driver: subprocess.Popen[bytes], deadline: float) -> float:
        # One kill in five may come while the run starts, which takes most of a short run's time; the others among its
        # micro-batches, or a run under fire would never commit one.
        if self._random.random() < 0.2:
            return time.monotonic() + self._random.uniform(0, 2 * _START_SECONDS)
        while driver.poll() is None and time.monotonic() < deadline:
            if b"event=batch_committed" in self._log(kind).read_bytes():
                break
            time.sleep(0.05)
        return time.monotonic() + self._random.uniform(0, 3)

    def _kill(self, kind: Kind, driver: subprocess.Popen[bytes]) -> None:
        choices: dict[str, Callable[[], bool]] = {
            "driver": lambda: _end(driver),
            "executor": lambda: self._kill_executor("CoarseGrainedExecutorBackend"),
            "python worker": lambda: self._kill_executor("pyspark.daemon"),
            "postgresql": self._crash_postgres,
            "connections": lambda: self._proxy.cut() > 0,
            "kafka": self._restart_kafka,
        }
        name = self._random.choice(list(choices))
        if choices[name]():
            self.results.kills[name] += 1
            self._say(f"kill {sum(self.results.kills.values()):4}  {name:14} under {kind.name}")

    def _kill_executor(self, word: str) -> bool:
        found = []
        for worker in self._cluster.workers:
            with suppress(psutil.Error):
                for child in psutil.Process(worker.pid).children(recursive=True):
                    with suppress(psutil.Error):
                        if any(word in part for part in child.cmdline()):
                            found.append(child)
        if not found:
            return False
        with suppress(psutil.Error):
            self._random.choice(found).kill()
        return True

    def _crash_postgres(self) -> bool:
        self._postgres.kill()
        self._postgres.start()
        return True

    def _restart_kafka(self) -> bool:
        self._kafka.kill()
        self._kafka.start()
        return True

    def _finish(self, kind: Kind) -> None:
        for _ in range(_ATTEMPTS):
            driver = self._driver(kind, batch=20_000)
            try:
                driver.wait(_RUN_SECONDS)
            except subprocess.TimeoutExpired:
                self.results.problems.append(f"{kind.name} did not finish in peace")
                return
            finally:
                _end(driver)
            self.results.restarts += 1
            if driver.returncode == 0:
                self.results.finished_runs += 1
                return
        end = self._log(kind).read_text(errors="replace")[-1500:]
        self.results.problems.append(f"{kind.name} ends with {driver.returncode} in peace: {end}")

    def _compare(self) -> None:
        records = records_in(self._kafka)
        if len(records) != self.results.records:
            self.results.problems.append(f"{self.results.records} records were sent, the topic holds {len(records)}")
        with self._postgres.connect("chaos") as connection:
            for kind in self._kinds:
                expected, found = kind.expected(records), Counter(connection.execute(kind.query).fetchall())
                wanted = kind.expected_letters(records)
                letters = Counter(connection.execute(_LETTERS, [kind.name]).fetchall())
                lost = (expected - found).total() + (wanted - letters).total()
                twice = (found - expected).total() + (letters - wanted).total()
                self.results.rows_lost += lost
                self.results.rows_twice += twice
                self.results.dead_letters += letters.total()
                read = "SELECT coalesce(sum(source_rows), 0)::bigint FROM etl.batch_tracker WHERE pipeline_id = %s"
                [(told,)] = connection.execute(read, [kind.name]).fetchall()
                if told != len(records):
                    self.results.problems.append(f"{kind.name}: the ledger tells of {told} rows of {len(records)}")
                self._say(
                    f"{kind.name:18} {expected.total():8} rows and {wanted.total():6} dead letters expected, "
                    f"{lost} lost, {twice} twice"
                )
            [(self.results.orphans,)] = connection.execute("SELECT count(*) FROM pg_prepared_xacts").fetchall()

    def _batches(self) -> int:
        with self._postgres.connect("chaos") as connection:
            [(ledger,)] = connection.execute("SELECT to_regclass('etl.batch_tracker') IS NOT NULL").fetchall()
            if not ledger:
                return 0
            [(count,)] = connection.execute("SELECT count(*) FROM etl.batch_tracker").fetchall()
            return int(count)

    def _log(self, kind: Kind) -> Path:
        return self._folder / f"{kind.name}.log"

    def _driver(self, kind: Kind, batch: int = 100) -> subprocess.Popen[bytes]:
        file = self._folder / f"{kind.name}.json"
        file.write_text(json.dumps(kind.pipeline(self._kafka.bootstrap_servers, self._folder / "checkpoints", batch)))
        uri = self._postgres.airflow_uri("chaos").replace(f":{self._postgres.port}/", f":{self._proxy.port}/")
        settings = {
            "spark.driver.host": "127.0.0.1",
            "spark.executor.memory": "512m",
            "spark.ui.enabled": "false",
            "spark.sql.shuffle.partitions": "2",
            "spark.driver.extraJavaOptions": quick_java(),
            "spark.executor.extraJavaOptions": quick_java(),
        }
        command = ["spark-submit", "--master", self._cluster.master_url, "--driver-memory", "512m"]
        command += ["--jars", ",".join(jar.as_uri() for jar in jars("spark-kafka"))]
        for name, value in settings.items():
            command += ["--conf", f"{name}={value}"]
        environ = {**spark_environ(), f"AIRFLOW_CONN_{CREDENTIAL.upper()}": uri, "PYTHONPATH": str(_ROOT)}
        command += [str(_ROOT / "spark_jobs" / "run_pipeline.py"), str(file)]
        with self._log(kind).open("wb") as log:
            return subprocess.Popen(
                command, env=environ, stdout=log, stderr=subprocess.STDOUT, cwd=self._folder, start_new_session=True
            )


def _end(driver: subprocess.Popen[bytes]) -> bool:
    """SIGKILL to driver and JVM at once."""
    lived = driver.poll() is None
    with suppress(ProcessLookupError):
        os.killpg(driver.pid, signal.SIGKILL)
    driver.wait(30)
    return lived
