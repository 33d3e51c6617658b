"""Passing faults within a run: ridden out from the checkpoint, told in log, ledger and result; or left alone."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pipeline_runs import Pipelines, file_pipeline, write_lines

from sandbox.postgres import PostgresServer
from spark_jobs.contracts.config.retry import Retry
from spark_jobs.contracts.credentials import DatabaseConnection
from spark_jobs.contracts.errors import (
    BreakerOpenError,
    DatabaseUnreachableError,
    EtlError,
    FencedError,
    TransientError,
)
from spark_jobs.contracts.exit_codes import ExitCode
from spark_jobs.contracts.run_request import RunRequest
from spark_jobs.contracts.tracker.connect import connect
from spark_jobs.contracts.tracker.migrate import migrate
from spark_jobs.contracts.tracker.runs import register_run
from spark_jobs.runtime.breaker import RunBreaker
from spark_jobs.runtime.retry import Retries
from spark_jobs.runtime.stopping import Stop

SOON = {"maxAttempts": 9, "initialDelayMs": 10, "maxDelayMs": 20}


class Outage(Stop):
    """Something happens when the ``nth`` micro-batch begins, and something else in the ``waits``-th wait after it."""

    def __init__(
        self,
        fault: Callable[[], None] = lambda: None,
        cure: Callable[[], None] = lambda: None,
        *,
        nth: int = 1,
        waits: int = 1,
    ) -> None:
        super().__init__()
        self._fault, self._cure = fault, cure
        self._nth, self._waits = nth, waits
        self.batches = self.waited = 0

    def enter_batch(self) -> None:
        super().enter_batch()
        self.batches += 1
        if self.batches == self._nth:
            self._fault()

    def wait(self, seconds: float) -> None:
        self.waited += 1
        if self.waited == self._waits:
            self._cure()
        super().wait(seconds)


@dataclass(frozen=True)
class Own:
    """A database on that server."""

    server: PostgresServer
    name: str

    @property
    def airflow_uri(self) -> str:
        return self.server.airflow_uri(self.name)

    def connect(self, **options: Any) -> Any:
        return self.server.connect(self.name, **options)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server that these tests may stop."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def runs(server: PostgresServer, spark: Any, tmp_path: Path) -> Iterator[Pipelines]:
    name = f"retry_{uuid.uuid4().hex[:12]}"
    server.create_database(name)
    yield Pipelines(Own(server, name), tmp_path, spark)
    server.drop_database(name)


def pipeline(runs: Pipelines, inbox: Path, *, files: int = 3, load: Any = None, **handling: Any) -> dict[str, Any]:
    """A pipeline of one file a micro-batch."""
    for number in range(files):
        write_lines(inbox / f"{number}.json", *[{"id": number * 10 + i} for i in range(10)])
    streaming = {"maxFilesPerTrigger": 1}
    config = file_pipeline("flaky", inbox, runs.checkpoints, schema="id INT", load=load, streaming=streaming)
    return {**config, "errorHandlingConfig": handling}


def ids(runs: Pipelines) -> list[int]:
    return [number for (number,) in runs.rows("SELECT id FROM result ORDER BY id")]


@pytest.mark.parametrize("strategy", ["single", "staged", "two_phase"])
def test_a_server_that_is_away_for_a_while_is_ridden_out(
    runs: Pipelines, server: PostgresServer, inbox: Path, strategy: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = pipeline(runs, inbox, load={"writeStrategy": strategy}, retryConfig=SOON, circuitBreakerConfig={})
    outage = Outage(server.stop, lambda: server.start() and None, nth=2, waits=3)
    with caplog.at_level(logging.INFO):
        ended = runs.run(config, stop=outage)
    assert ended.error is None, str(ended.error)
    assert ended.result is not None
    assert (ended.result.batches, ended.result.retries, ended.result.dead_letters) == (3, 3, 0)
    assert ids(runs) == list(range(30))
    kept = runs.rows("SELECT kind, attempt, error ->> 'type' FROM etl.run_retry ORDER BY at")
    # The first is told by the server that goes down, or by nobody any more.
    assert kept[0][:2] == ("write", 1)
    assert kept[1:] == [("write", 2, "DatabaseUnreachableError"), ("write", 3, "DatabaseUnreachableError")]
    told = [record.getMessage() for record in caplog.records if "event=retry " in record.getMessage()]
    assert len(told) == 3
    assert "kind=write attempt=1 of=9 wait_seconds=0.0" in told[0]
    assert runs.one("SELECT count(*) FROM etl.dead_letter") == 0
    assert runs.one("SELECT coalesce(max(failures), 0) FROM etl.circuit_breaker") == 0
    assert runs.one("SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()") == 0


def test_a_server_that_is_stopped_for_half_a_minute_is_ridden_out(
    runs: Pipelines, server: PostgresServer, inbox: Path
) -> None:
    waits = {"initialDelaySeconds": 5, "maxDelaySeconds": 10, "maxAttempts": 9}
    config = pipeline(runs, inbox, retryConfig=waits, circuitBreakerConfig={"failureThreshold": 10})
    back = Timer(30, server.start)

    def stop() -> None:
        server.stop()
        back.start()

    ended = runs.run(config, stop=Outage(stop, nth=2))
    back.join()
    assert ended.error is None, str(ended.error)
    assert ended.result is not None
    assert (ended.result.batches, ended.result.dead_letters) == (3, 0)
    assert ids(runs) == list(range(30))
    assert runs.one("SELECT count(*) FROM etl.dead_letter") == 0
    assert runs.one("SELECT sum(wait_ms) FROM etl.run_retry") >= 25_000


class Heard(RunBreaker):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def enter(self) -> None:
        self.told.append("enter")

    def succeeded(self) -> None:
        self.told.append("succeeded")

    def failed(self, error: EtlError) -> None:
        self.told.append(type(error).__name__)


@pytest.mark.parametrize("asked", [False, True])
def test_a_system_that_was_not_asked_has_not_answered(asked: bool) -> None:
    copy, target = Heard(), Heard()
    retries = Retries(None, Stop(), {"write": target, "publish": copy})

    def work() -> None:
        if asked:
            retries.answered("publish")
        raise DatabaseUnreachableError("It is away")

    with pytest.raises(DatabaseUnreachableError):
        retries.call(work)
    assert target.told == ["enter", "DatabaseUnreachableError"]
    assert copy.told == ["enter", *(["succeeded"] if asked else [])]


def test_attempts_count_anew_after_a_committed_batch(runs: Pipelines, inbox: Path) -> None:
    config = pipeline(runs, inbox, retryConfig={**SOON, "maxAttempts": 2})
    ended = runs.run(config, stop=Faults(runs))
    assert ended.error is None, str(ended.error)
    assert ended.result is not None
    assert (ended.result.batches, ended.result.retries) == (3, 3)
    assert runs.rows("SELECT DISTINCT attempt FROM etl.run_retry") == [(1,)]
    assert ids(runs) == list(range(30))


class Faults(Outage):
    """Every other micro-batch meets a full disk, until the wait after it."""

    def __init__(self, runs: Pipelines) -> None:
        super().__init__()
        self._runs = runs

    def enter_batch(self) -> None:
        super().enter_batch()
        if self.batches % 2:
            disk_full(self._runs)

    def wait(self, seconds: float) -> None:
        disk_free(self._runs)
        super().wait(seconds)


def disk_full(runs: Pipelines) -> None:
    """Let each insert into the target fail as it does on a full disk."""
    runs.execute(
        "CREATE OR REPLACE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN RAISE EXCEPTION 'no space left' USING ERRCODE = '53100'; END$$",
        "CREATE TABLE IF NOT EXISTS result (id integer)",
        "CREATE OR REPLACE TRIGGER full_disk BEFORE INSERT ON result EXECUTE FUNCTION full_disk()",
    )


def disk_free(runs: Pipelines) -> None:
    runs.execute("DROP TRIGGER IF EXISTS full_disk ON result")


def test_a_server_that_stays_away_is_left_alone(runs: Pipelines, server: PostgresServer, inbox: Path) -> None:
    config = pipeline(runs, inbox, retryConfig=SOON, circuitBreakerConfig={"failureThreshold": 3})
    outage = Outage(server.stop, nth=2)
    try:
        ended = runs.run(config, stop=outage)
    finally:
        server.start()
    assert isinstance(ended.error, BreakerOpenError)
    assert ended.exit_code is ExitCode.BREAKER_OPEN
    assert "breaker open until" in str(ended.error)
    assert server.password not in str(ended.error)
    assert outage.waited == 2  # after the third failure nothing is waited for any more
    assert runs.one("SELECT state FROM etl.pipeline_run") == "running"  # nobody could be told
    runs.finish(config)
    assert ids(runs) == list(range(30))


def test_without_settings_a_run_makes_one_attempt(runs: Pipelines, server: PostgresServer, inbox: Path) -> None:
    config = pipeline(runs, inbox)
    del config["errorHandlingConfig"]
    outage = Outage(server.stop)
    try:
        ended = runs.run(config, stop=outage)
    finally:
        server.start()
    assert ended.exit_code in (ExitCode.DATABASE_UNREACHABLE, ExitCode.TRANSIENT)
    assert outage.waited == 0


def test_after_the_last_attempt_the_run_ends_with_what_failed(runs: Pipelines, inbox: Path) -> None:
    config = pipeline(runs, inbox, retryConfig={**SOON, "write": {"maxAttempts": 3}})
    ended = runs.run(config, stop=Outage(lambda: disk_full(runs)))
    assert isinstance(ended.error, TransientError)
    assert "53100" in str(ended.error)
    assert ended.result is not None
    assert (ended.result.state, ended.result.retries, ended.result.batches) == ("failed", 2, 0)
    disk_free(runs)
    runs.finish(config)
    assert ids(runs) == list(range(30))


def test_pipelines_of_one_database_share_its_breaker(runs: Pipelines, inbox: Path) -> None:
    breaker = {"failureThreshold": 2, "resetTimeoutSeconds": 3600}
    config = pipeline(runs, inbox, retryConfig=SOON, circuitBreakerConfig=breaker)
    other = {**config, "pipelineId": "other"}
    other["streamingConfigJson"] = {**config["streamingConfigJson"], "checkpointLocation": str(runs.checkpoints / "o")}
    ended = runs.run(config, stop=Outage(lambda: disk_full(runs)))
    assert ended.exit_code is ExitCode.BREAKER_OPEN
    assert ended.result is not None
    assert runs.rows("SELECT state, exit_code, error ->> 'system' FROM etl.pipeline_run") == [
        ("failed", 16, f"postgresql://127.0.0.1:{runs.database.server.port}/{runs.database.name}")
    ]
    disk_free(runs)
    refused = Outage()
    assert runs.run(other, stop=refused).exit_code is ExitCode.BREAKER_OPEN
    assert refused.batches == 0
    runs.execute("UPDATE etl.circuit_breaker SET reopen_at = now()")
    runs.finish(other)
    assert ids(runs) == list(range(30))
    assert runs.rows("SELECT from_state, to_state, pipeline_id FROM etl.circuit_breaker_event ORDER BY event_id") == [
        ("closed", "open", "flaky"),
        ("open", "half-open", "other"),
        ("half-open", "closed", "other"),
    ]
    runs.finish(config)


def test_failures_of_runs_that_make_one_attempt_add_up(runs: Pipelines, inbox: Path) -> None:
    """Although the database takes the word of each end."""
    config = pipeline(runs, inbox, circuitBreakerConfig={"failureThreshold": 2})
    disk_full(runs)
    assert [runs.run(config).exit_code for _ in range(3)] == [
        ExitCode.TRANSIENT,
        ExitCode.BREAKER_OPEN,
        ExitCode.BREAKER_OPEN,
    ]


def test_a_source_that_comes_late_is_waited_for_and_blames_no_target(runs: Pipelines, inbox: Path) -> None:
    config = pipeline(
        runs,
        inbox / "late",
        retryConfig={"maxAttempts": 1, "read": SOON},
        circuitBreakerConfig={"failureThreshold": 1},
    )
    (inbox / "late").rename(inbox / "hidden")
    ended = runs.run(config, stop=Outage(cure=lambda: (inbox / "hidden").rename(inbox / "late") and None, waits=2))
    assert ended.error is None, str(ended.error)
    assert runs.rows("SELECT kind, attempt FROM etl.run_retry ORDER BY at") == [("read", 1), ("read", 2)]
    assert ids(runs) == list(range(30))
    assert runs.rows("SELECT * FROM etl.circuit_breaker") == []


def test_a_request_to_stop_ends_the_wait(runs: Pipelines, inbox: Path) -> None:
    config = pipeline(runs, inbox, retryConfig={"initialDelaySeconds": 600, "maxDelaySeconds": 600})
    outage = Outage(lambda: disk_full(runs))
    outage._cure = outage.ask
    ended = runs.run(config, stop=outage)
    assert ended.exit_code is ExitCode.STOPPED_ROLLED_BACK
    assert runs.rows("SELECT state, exit_code FROM etl.pipeline_run") == [("stopped", 31)]
    assert runs.one("SELECT wait_ms BETWEEN 300000 AND 600000 FROM etl.run_retry")
    disk_free(runs)
    runs.finish(config)
    assert ids(runs) == list(range(30))


def test_a_newer_run_ends_the_waiting_one(runs: Pipelines, inbox: Path) -> None:
    config = pipeline(runs, inbox, retryConfig=SOON)

    def take_over() -> None:
        disk_free(runs)
        database = DatabaseConnection.from_airflow("warehouse", runs.database.airflow_uri)
        request = RunRequest(run_id="newer", pipeline_id="flaky", config={}, started_by="me")
        with connect(database, application_name="test") as conn:
            register_run(conn, "etl", request)

    ended = runs.run(config, stop=Outage(lambda: disk_full(runs), take_over))
    assert isinstance(ended.error, FencedError)
    assert ended.exit_code is ExitCode.FENCED
    assert runs.rows("SELECT count(*) FROM result") == [(0,)]


def test_an_altered_target_is_looked_at_anew(runs: Pipelines, inbox: Path) -> None:
    runs.execute("CREATE TABLE result (id integer)")
    config = pipeline(runs, inbox, retryConfig=SOON)
    altered = Outage(lambda: runs.execute("ALTER TABLE result ALTER COLUMN id TYPE bigint"), nth=2)
    ended = runs.run(config, stop=altered)
    assert ended.error is None, str(ended.error)
    assert ids(runs) == list(range(30))
    assert runs.one("SELECT error ->> 'type' FROM etl.run_retry") == "TargetAlteredError"


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    attempts=st.integers(1, 5),
    initial=st.integers(1, 20),
    longer=st.integers(0, 20),
    multiplier=st.floats(1, 4),
    jitter=st.booleans(),
    strategy=st.sampled_from(["exponential", "fixed"]),
)
def test_waits_grow_as_configured_and_never_beyond_the_longest(
    ledger: Any, attempts: int, initial: int, longer: int, multiplier: float, jitter: bool, strategy: str
) -> None:
    chosen = Retry(
        strategy=strategy,
        max_attempts=attempts,
        initial_delay_ms=initial,
        max_delay_ms=initial + longer,
        backoff_multiplier=multiplier,
        jitter=jitter,
    )
    retries = Retries(chosen, Stop())
    made = 0

    def work() -> None:
        nonlocal made
        made += 1
        raise DatabaseUnreachableError("It does not answer")

    with pytest.raises(DatabaseUnreachableError):
        retries.call(work)
    assert made == attempts
    ledger.execute("TRUNCATE etl.run_retry")
    retries.record(ledger, "etl", "r")
    waits = [wait for (wait,) in ledger.execute("SELECT wait_ms FROM etl.run_retry ORDER BY attempt")]
    assert len(waits) == attempts - 1
    growth = multiplier if strategy == "exponential" else 1.0
    for number, wait in enumerate(waits):
        full = min(initial * growth**number, initial + longer)
        assert (full / 2 if jitter else full) - 0.51 <= wait <= full + 0.51


@pytest.fixture
def ledger(database: Any) -> Iterator[Any]:
    """A connection to a ledger with one run."""
    with connect(DatabaseConnection.from_airflow("w", database.airflow_uri), application_name="test") as conn:
        migrate(conn, "etl")
        register_run(conn, "etl", RunRequest(run_id="r", pipeline_id="p", config={}, started_by="me"))
        yield conn
