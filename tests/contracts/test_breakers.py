"""Circuit breakers in the ledger: shared by runs and pipelines, by the server's clock, changed atomically."""

from __future__ import annotations

import json
import threading
import uuid
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from spark_jobs.cli.breakers import breakers as command
from spark_jobs.contracts.breaker import Breaker, MemoryStorage, copy_system, kafka_system, postgres_system
from spark_jobs.contracts.config.circuit_breaker import CircuitBreaker
from spark_jobs.contracts.config.dead_letters import DeadLetterQueue
from spark_jobs.contracts.credentials import DatabaseConnection
from spark_jobs.contracts.errors import BreakerOpenError, ConfigError, DatabaseUnreachableError, TransientError
from spark_jobs.contracts.exit_codes import ExitCode
from spark_jobs.contracts.tracker.breakers import PostgresStorage, breakers, reset

SYSTEM = "postgresql://db:5432/shop"
AWAY = DatabaseUnreachableError("The server does not answer")


@pytest.fixture
def breaker(tracker: Any) -> Any:
    """Make breakers as runs do: each with sessions of its own."""

    def made(run_id: str = "r1", pipeline_id: str = "orders", system: str = SYSTEM, **given: Any) -> Breaker:
        chosen = CircuitBreaker(**{"failure_threshold": 3, "reset_timeout_seconds": 60, **given})
        storage = PostgresStorage(
            partial(tracker.connect, "breaker"),
            "etl",
            system,
            run_id=run_id,
            pipeline_id=pipeline_id,
            reset_seconds=chosen.reset_timeout_seconds,
        )
        return Breaker(chosen, storage)

    return made


def fail(one: Breaker, times: int = 1) -> None:
    for _ in range(times):
        one.failed(AWAY)


def let_time_pass(tracker: Any) -> None:
    """As if the breaker had been opened long ago."""
    tracker.conn.execute(
        "UPDATE etl.circuit_breaker SET opened_at = opened_at - interval '1 hour', "
        "reopen_at = reopen_at - interval '1 hour'"
    )


def moves(tracker: Any) -> list[tuple[str, ...]]:
    rows = tracker.conn.execute("SELECT from_state, to_state FROM etl.circuit_breaker_event ORDER BY event_id")
    return [tuple(row) for row in rows]


def test_it_opens_at_the_threshold_and_says_until_when(tracker: Any, breaker: Any) -> None:
    one = breaker()
    fail(one, 2)
    one.enter()
    with pytest.raises(BreakerOpenError) as opened:
        one.failed(AWAY)
    error = opened.value
    assert error.exit_code is ExitCode.BREAKER_OPEN == 16
    assert error.retryable
    assert not error.tried_again_in_run
    assert error.system == SYSTEM
    assert error.until > datetime.now(UTC)
    assert f"breaker open until {error.until.isoformat(timespec='milliseconds')}" in str(error)
    assert "does not answer" in str(error)
    assert error.to_json()["until"] == error.until.isoformat()
    with pytest.raises(BreakerOpenError, match="does not answer"):
        one.enter()
    assert moves(tracker) == [("closed", "open")]


def test_a_success_between_failures_counts_from_the_beginning(breaker: Any) -> None:
    one = breaker()
    fail(one, 2)
    one.succeeded()
    fail(one, 2)
    one.enter()


def test_failures_of_two_pipelines_add_up_and_both_are_refused(tracker: Any, breaker: Any) -> None:
    orders, returns = breaker("r1", "orders"), breaker("r2", "returns")
    fail(orders)
    fail(returns)
    with pytest.raises(BreakerOpenError):
        fail(orders)
    with pytest.raises(BreakerOpenError):
        returns.enter()
    breaker("r3", "returns", system="postgresql://other:5432/shop").enter()
    (found,) = breakers(tracker.conn, "etl")
    assert (found.state, found.failures, found.last_failure) == ("open", 3, "The server does not answer")
    [event] = found.events
    assert (event["run_id"], event["pipeline_id"], event["reason"]) == ("r1", "orders", "The server does not answer")


def test_after_its_time_one_probe_closes_it(tracker: Any, breaker: Any) -> None:
    one = breaker(failure_threshold=1)
    with pytest.raises(BreakerOpenError):
        fail(one)
    let_time_pass(tracker)
    one.enter()
    one.succeeded()
    assert moves(tracker) == [("closed", "open"), ("open", "half-open"), ("half-open", "closed")]
    breaker("r2").enter()
    assert tracker.one("SELECT failures FROM etl.circuit_breaker") == 0


def test_a_probe_that_fails_opens_it_for_another_while(tracker: Any, breaker: Any) -> None:
    one = breaker(failure_threshold=1)
    with pytest.raises(BreakerOpenError):
        fail(one)
    let_time_pass(tracker)
    one.enter()
    with pytest.raises(BreakerOpenError) as again:
        fail(one)
    assert again.value.until > datetime.now(UTC)
    assert moves(tracker) == [("closed", "open"), ("open", "half-open"), ("half-open", "open")]


@pytest.mark.parametrize("most", [1, 2])
def test_of_many_runs_at_once_only_so_many_probe(tracker: Any, breaker: Any, most: int) -> None:
    with pytest.raises(BreakerOpenError):
        fail(breaker(failure_threshold=1, half_open_max_attempts=most))
    let_time_pass(tracker)
    start, through, refused = threading.Barrier(5), [], []

    def run(number: int) -> None:
        one = breaker(f"run {number}", half_open_max_attempts=most)
        start.wait()
        try:
            one.enter()
            through.append(one)
        except BreakerOpenError as error:
            refused.append(error)

    runs = [threading.Thread(target=run, args=(number,)) for number in range(5)]
    for thread in runs:
        thread.start()
    for thread in runs:
        thread.join()
    assert len(through) == most
    assert all("other runs are trying it" in str(error) for error in refused)
    for one in through:
        one.enter()  # whoever has a place keeps it: the task asks, and then its driver
        one.succeeded()
    assert tracker.one("SELECT state FROM etl.circuit_breaker") == "closed"
    assert tracker.one("SELECT count(*) FROM etl.circuit_breaker_probe") == 0
    assert moves(tracker) == [("closed", "open"), ("open", "half-open"), ("half-open", "closed")]


def test_a_probe_whose_run_died_is_given_up(tracker: Any, breaker: Any) -> None:
    with pytest.raises(BreakerOpenError):
        fail(breaker(failure_threshold=1))
    let_time_pass(tracker)
    breaker("dies").enter()
    with pytest.raises(BreakerOpenError):
        breaker("later").enter()
    tracker.conn.execute("UPDATE etl.circuit_breaker_probe SET expires_at = now() - interval '1 second'")
    breaker("later").enter()


def test_what_another_run_has_done_meanwhile_stays(tracker: Any, breaker: Any) -> None:
    slow = breaker("slow", failure_threshold=1)
    slow.enter()
    with pytest.raises(BreakerOpenError):
        fail(breaker(failure_threshold=1))
    slow.succeeded()  # of what it began before
    assert tracker.one("SELECT state FROM etl.circuit_breaker") == "open"


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from(["fail", "succeed", "enter", "pass"]), max_size=12))
def test_the_shared_breaker_does_what_one_in_a_process_does(tracker: Any, breaker: Any, steps: list[str]) -> None:
    system = f"kafka://{uuid.uuid4()}"
    given_settings = {"failure_threshold": 2, "reset_timeout_seconds": 60}
    shared = breaker(system=system, **given_settings)
    own = Breaker(CircuitBreaker(**given_settings), MemoryStorage(system, 60))
    for step in steps:
        if step == "pass":
            let_time_pass(tracker)
            own.storage.opened_at = datetime.fromtimestamp(0, UTC)
        else:
            assert _outcome(shared, step) == _outcome(own, step)
        assert shared.storage.state == own.storage.state
        shared.storage.release()


def _outcome(one: Breaker, step: str) -> str:
    try:
        {"fail": partial(one.failed, AWAY), "succeed": one.succeeded, "enter": one.enter}[step]()
    except BreakerOpenError:
        return "open"
    return "through"


def test_systems_are_named_without_user_and_secret() -> None:
    database = DatabaseConnection.from_airflow("w", "postgres://loader:Pq7xQz@db.example/shop?sslmode=require")
    assert postgres_system(database) == "postgresql://db.example:5432/shop"
    assert postgres_system(database.model_copy(update={"host": "::1", "port": 5433})) == "postgresql://[::1]:5433/shop"
    assert kafka_system("b:9092, a:9092") == kafka_system("a:9092,b:9092") == "kafka://a:9092,b:9092"


@pytest.mark.parametrize(
    ("queue", "system"),
    [
        ({"dlqType": "files", "bucketPath": "s3a://letters/of/orders"}, "s3a://letters"),
        ({"dlqType": "files", "bucketPath": "/var/letters"}, None),
        ({"dlqType": "files", "bucketPath": "file:///var/letters"}, None),
        ({"dlqType": "kafka", "topic": "letters"}, "kafka://from-the-connection:9092"),
        ({"dlqType": "kafka", "topic": "letters", "bootstrapServers": "own:9092"}, "kafka://own:9092"),
        ({"dlqType": "postgresql"}, None),
    ],
)
def test_where_a_copy_goes_has_a_breaker_if_it_is_a_system_outside(queue, system):
    secrets = {"kafka.bootstrap.servers": "from-the-connection:9092"}
    assert copy_system(DeadLetterQueue.model_validate(queue), secrets) == system


def test_the_first_failure_opens_it_by_hand_or_by_trip(tracker: Any, breaker: Any) -> None:
    with pytest.raises(BreakerOpenError, match="met a fault"):
        breaker().trip(TransientError("It met a fault"))
    assert reset(tracker.conn, "etl", SYSTEM, by="anna", reason="the disk is larger now") == "open"
    breaker().enter()
    (found,) = breakers(tracker.conn, "etl", SYSTEM)
    assert found.state == "closed"
    assert found.events[0]["reason"] == "reset by anna: the disk is larger now"


class TestCommand:
    @pytest.fixture
    def run(self, database: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", database.airflow_uri)
        monkeypatch.setenv("ETL_CONNECTION", "warehouse")
        monkeypatch.setenv("COLUMNS", "160")
        app = typer.Typer()
        app.command()(command)
        return lambda *arguments: CliRunner().invoke(app, list(arguments))

    def test_list_and_reset(self, run: Any, tracker: Any, breaker: Any) -> None:
        assert "no system has failed yet" in run("list").output
        with pytest.raises(BreakerOpenError):
            fail(breaker(failure_threshold=1))
        table = run("list").output
        for shown in (SYSTEM, "open", "The server does not answer"):
            assert shown in table
        [found] = json.loads(run("list", "--json").output)
        assert (found["state"], found["failures"], len(found["events"])) == ("open", 1, 1)
        [closed] = json.loads(run("reset", SYSTEM, "--by", "anna", "--reason", "moved", "--json").output)
        assert closed["state"] == "closed"
        assert closed["events"][0]["reason"] == "reset by anna: moved"
        assert tracker.one("SELECT to_state FROM etl.circuit_breaker_event ORDER BY event_id DESC LIMIT 1") == "closed"

    @pytest.mark.parametrize(
        "arguments", [("open",), ("reset",), ("reset", SYSTEM), ("reset", SYSTEM, "--reason", " "), ("list", "nobody")]
    )
    def test_what_is_wrong_is_said(self, run: Any, tracker: Any, arguments: tuple[str, ...]) -> None:
        assert tracker
        assert isinstance(run(*arguments).exception, ConfigError)
