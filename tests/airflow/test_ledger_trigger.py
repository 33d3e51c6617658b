"""Waiting in the triggerer: woken by commits, on one connection, whatever becomes of the server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.triggers.base import TaskSuccessEvent, TriggerEvent
from ledger_rows import LedgerRows
from transaction_pooler import transaction_pooler

from airflow_etl_provider.triggers.ledger import LedgerTrigger
from airflow_etl_provider.triggers.ledger_watch import LedgerWatch, watching
from sandbox.postgres import PostgresServer
from spark_jobs.contracts.errors import TransientError
from spark_jobs.contracts.watch import registry
from spark_jobs.contracts.watch.query_progress import QueryProgress

if TYPE_CHECKING:
    from tests.conftest import Database

# Nothing here is looked at a second time because so much time has passed.
NEVER = 86_400.0
PATIENCE = 60.0


def trigger(batch_id: int = 0, pipeline: str = "orders", **changes: Any) -> LedgerTrigger:
    condition = registry.to_json(QueryProgress.of(pipeline=pipeline, batch_id=batch_id))
    made = LedgerTrigger(**{"condition": condition, "ledger_conn_id": "warehouse", "poll_seconds": NEVER, **changes})
    path, arguments = made.serialize()
    assert path == "airflow_etl_provider.triggers.ledger.LedgerTrigger"
    # As another triggerer makes it again.
    return LedgerTrigger(**arguments)


async def event_of(waiting: LedgerTrigger) -> TriggerEvent:
    async with contextlib.aclosing(waiting.run()) as events:  # type: ignore[type-var]
        return await anext(events)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, PATIENCE))


async def sessions(rows: LedgerRows, name: str, wanted: int) -> None:
    """Return once so many sessions of that name are there."""
    question = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND datname = current_database()"
    while (await asyncio.to_thread(rows.sql, question, name))[0][0] != wanted:
        await asyncio.sleep(0.02)


async def listening(rows: LedgerRows) -> None:
    """Return once somebody hears of commits: what follows is no look at the beginning."""
    question = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'UNLISTEN%%' AND state = 'idle'"
    while not (await asyncio.to_thread(rows.sql, question))[0][0]:
        await asyncio.sleep(0.02)


def test_what_is_there_fires_at_once(rows: LedgerRows) -> None:
    rows.commit(0)
    event = run(event_of(trigger()))
    assert event.payload["status"] == "satisfied"
    assert event.payload["value"]["batch_id"] == 0


def test_a_commit_wakes_who_waits_for_it(rows: LedgerRows) -> None:
    async def work() -> TriggerEvent:
        waiting = asyncio.create_task(event_of(trigger(1)))
        await listening(rows)
        await asyncio.to_thread(rows.commit, 0)
        await asyncio.to_thread(rows.commit, 1)
        return await waiting

    assert run(work()).payload["value"]["batch_id"] == 1


def test_only_its_own_pipeline_wakes_it(rows: LedgerRows) -> None:
    rows.start("returns", "r2")

    async def work() -> None:
        async with (
            watching(rows.connection) as watch,
            watch.subscribed("orders") as orders,
            watch.subscribed("returns") as returns,
        ):
            # Whoever waits looks after each LISTEN.
            await asyncio.gather(orders.wait(), returns.wait())
            orders.clear()
            returns.clear()
            await asyncio.to_thread(rows.commit, 0)
            await orders.wait()
            assert not returns.is_set()
            await asyncio.to_thread(rows.commit, 0, "returns", "r2")
            await returns.wait()

    run(work())


def test_a_message_of_another_version_wakes_everybody(rows: LedgerRows) -> None:
    async def work() -> None:
        async with watching(rows.connection) as watch, watch.subscribed("orders") as orders:
            await orders.wait()
            orders.clear()
            await asyncio.to_thread(rows.sql, "SELECT pg_notify('etl_batch', 'hello')")
            await orders.wait()

    run(work())


def test_all_share_one_connection_that_listens_and_one_that_asks(rows: LedgerRows) -> None:
    async def work() -> None:
        waiting = [asyncio.create_task(event_of(trigger(0))) for _ in range(200)]
        await listening(rows)
        await sessions(rows, "airflow-etl-triggerer-listens", 1)
        await sessions(rows, "airflow-etl-triggerer", 1)
        await asyncio.to_thread(rows.commit, 0)
        events = await asyncio.gather(*waiting)
        assert {event.payload["status"] for event in events} == {"satisfied"}
        await sessions(rows, "airflow-etl-triggerer-listens", 0)
        await sessions(rows, "airflow-etl-triggerer", 0)

    run(work())


def test_a_lost_connection_is_replaced_and_nothing_is_missed(rows: LedgerRows) -> None:
    async def work() -> TriggerEvent:
        waiting = asyncio.create_task(event_of(trigger()))
        await listening(rows)
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'airflow-etl-%%'"
        await asyncio.to_thread(rows.sql, end)
        # Committed while nobody may be listening.
        await asyncio.to_thread(rows.commit, 0)
        return await waiting

    assert run(work()).payload["status"] == "satisfied"


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        server.create_database("books")
        yield server


def test_a_server_that_is_down_for_a_while(own_server: PostgresServer, connections: Callable[..., None]) -> None:
    rows = LedgerRows(own_server.airflow_uri("books"))
    rows.start()
    connections(warehouse=rows.airflow_uri)

    async def work() -> TriggerEvent:
        waiting = asyncio.create_task(event_of(trigger()))
        late = asyncio.create_task(event_of(trigger(poll_seconds=0.2)))
        await listening(rows)
        await asyncio.to_thread(own_server.kill)
        # One that looks meanwhile finds nobody, and asks again.
        looking = asyncio.create_task(event_of(trigger(poll_seconds=0.2)))
        await asyncio.sleep(0.5)
        assert not looking.done()
        await asyncio.to_thread(own_server.start)
        await asyncio.to_thread(rows.commit, 0)
        events = await asyncio.gather(waiting, late, looking)
        assert {event.payload["status"] for event in events} == {"satisfied"}
        return events[0]

    run(work())


def test_through_a_pooler_it_looks_from_time_to_time(
    database: Database, connections: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    direct = LedgerRows(database.airflow_uri)
    direct.start()
    with transaction_pooler(database.server.port) as pooler:
        connections(warehouse=database.airflow_uri.replace(f":{database.server.port}/", f":{pooler.port}/"))

        async def work() -> TriggerEvent:
            waiting = asyncio.create_task(event_of(trigger(poll_seconds=0.2)))
            while "do not arrive" not in caplog.text:
                await asyncio.sleep(0.05)
            await asyncio.to_thread(direct.commit, 0)
            return await waiting

        with caplog.at_level(logging.WARNING):
            assert run(work()).payload["status"] == "satisfied"


def test_when_time_is_over_it_says_what_was_seen_last(rows: LedgerRows) -> None:
    rows.commit(0)
    over = (datetime.now(UTC) + timedelta(seconds=0.3)).isoformat()
    event = run(event_of(trigger(7, give_up_at=over)))
    assert event.payload["status"] == "timeout"
    assert "micro-batch 0 of 7 is committed" in event.payload["message"]


def test_a_server_that_never_answers_is_asked_until_time_is_over(
    own_server: PostgresServer, connections: Callable[..., None]
) -> None:
    connections(warehouse=own_server.airflow_uri("books"))
    own_server.stop()
    over = (datetime.now(UTC) + timedelta(seconds=0.5)).isoformat()
    event = run(event_of(trigger(poll_seconds=0.1, give_up_at=over)))
    assert event.payload["status"] == "timeout"
    assert "does not answer" in event.payload["message"]


def test_a_server_that_swallows_what_it_is_sent_is_tried_once_for_all(connections: Callable[..., None]) -> None:
    asked = []

    def swallow(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                asked.append(listener.accept()[0])

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=swallow, args=(listener,), daemon=True).start()
        port = listener.getsockname()[1]
        connections(warehouse=f"postgres://me@127.0.0.1:{port}/books?connect_timeout=2&gssencmode=disable")
        over = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()

        async def wait_for(number: int) -> list[TriggerEvent]:
            return await asyncio.gather(*(event_of(trigger(give_up_at=over)) for _ in range(number)))

        events = run(wait_for(50))
        listener.shutdown(socket.SHUT_RDWR)
    assert {event.payload["status"] for event in events} == {"timeout"}
    # Not by each of them: by the one who asks, and the one who listens.
    assert len(asked) <= 4
    for one in asked:
        one.close()


def test_what_can_never_come_true_ends_the_wait(rows: LedgerRows, connections: Callable[..., None]) -> None:
    event = run(event_of(trigger(pipeline="oders")))
    assert event.payload["status"] == "error"
    assert "pipelines such as orders" in event.payload["message"]
    event = run(event_of(trigger(tracker_schema="elsewhere")))
    assert event.payload["status"] == "error"
    event = run(event_of(trigger(condition={"kind": "Weather"})))
    assert "Weather" in event.payload["message"]


def test_a_question_that_never_gets_its_answer_does_not_keep_others_waiting(
    rows: LedgerRows, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_etl_provider.triggers.ledger_watch._STATEMENT_TIMEOUT", "50ms")
    with database.connect() as conn:
        conn.execute("LOCK TABLE etl.batch_tracker")
        event = run(event_of(trigger(poll_seconds=0.05)))
    assert event.payload["status"] == "error"
    assert "a question that takes longer than" in event.payload["message"]


def test_a_connection_that_is_gone_is_looked_up_until_time_is_over(rows: LedgerRows) -> None:
    over = (datetime.now(UTC) + timedelta(seconds=0.3)).isoformat()
    event = run(event_of(trigger(ledger_conn_id="nowhere", give_up_at=over)))
    assert event.payload["status"] == "timeout"
    assert "nowhere" in event.payload["message"]


def test_a_password_that_is_changed(
    rows: LedgerRows, database: Database, connections: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_etl_provider.triggers.ledger._AGAIN_SECONDS", 0.1)
    rows.sql("CREATE ROLE rotated LOGIN SUPERUSER PASSWORD 'one'")
    address = database.airflow_uri.replace(f"{database.server.user}:{database.server.password}@", "rotated:{}@")
    connections(warehouse=address.format("one"))

    async def work() -> TriggerEvent:
        waiting = asyncio.create_task(event_of(trigger()))
        await listening(rows)
        await asyncio.to_thread(rows.sql, "ALTER ROLE rotated PASSWORD 'two'")
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'rotated'"
        await asyncio.to_thread(rows.sql, end)
        await asyncio.to_thread(rows.commit, 0)
        connections(warehouse=address.format("two"))
        return await waiting

    try:
        assert run(work()).payload["status"] == "satisfied"
    finally:
        rows.sql("DROP ROLE rotated")


def test_passwords_that_are_changed_now_and_then(
    rows: LedgerRows, database: Database, connections: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each refusal has its own grace: what was refused once, and let in since, was not refused all that time."""
    grace = 1.0
    monkeypatch.setattr("airflow_etl_provider.triggers.ledger._AGAIN_SECONDS", 0.05)
    monkeypatch.setattr("airflow_etl_provider.triggers.ledger._GRACE_SECONDS", grace)
    rows.sql("CREATE ROLE rotated LOGIN SUPERUSER PASSWORD 'one'")
    address = database.airflow_uri.replace(f"{database.server.user}:{database.server.password}@", "rotated:{}@")
    connections(warehouse=address.format("one"))
    refused = asyncio.Event()

    async def rotate(waiting: LedgerTrigger, password: str) -> None:
        monkeypatch.setattr(waiting.log, "warning", lambda *_: refused.set())
        refused.clear()
        await asyncio.to_thread(rows.sql, f"ALTER ROLE rotated PASSWORD '{password}'")
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'rotated'"
        await asyncio.to_thread(rows.sql, end)
        await refused.wait()
        connections(warehouse=address.format(password))
        await listening(rows)

    async def work() -> TriggerEvent:
        waiting = trigger()
        event = asyncio.create_task(event_of(waiting))
        await listening(rows)
        await rotate(waiting, "two")
        await asyncio.sleep(grace * 1.2)
        await rotate(waiting, "three")
        await asyncio.to_thread(rows.commit, 0)
        return await event

    try:
        assert run(work()).payload["status"] == "satisfied"
    finally:
        rows.sql("DROP ROLE rotated")


def test_a_commit_whose_look_fails_is_looked_at_again_soon(rows: LedgerRows, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have been the last one: whoever waited for another would wait until the next poll."""
    monkeypatch.setattr("airflow_etl_provider.triggers.ledger._AGAIN_SECONDS", 0.05)
    look, failing = LedgerWatch.look, asyncio.Event()

    async def sometimes(self: LedgerWatch, *arguments: Any) -> Any:
        if failing.is_set():
            failing.clear()
            # As a server without a free connection answers.
            raise TransientError("The ledger cannot be asked")
        return await look(self, *arguments)

    async def work() -> TriggerEvent:
        monkeypatch.setattr(LedgerWatch, "look", sometimes)
        waiting = asyncio.create_task(event_of(trigger()))
        await listening(rows)
        failing.set()
        await asyncio.to_thread(rows.commit, 0)
        return await waiting

    assert run(work()).payload["status"] == "satisfied"


@pytest.mark.parametrize("payload", ['{"pipeline_id": ["x"]}', "[" * 7900, "7", "\x01"])
def test_no_message_makes_it_deaf(rows: LedgerRows, payload: str) -> None:
    async def work() -> TriggerEvent:
        waiting = asyncio.create_task(event_of(trigger()))
        await listening(rows)
        await asyncio.to_thread(rows.sql, "SELECT pg_notify('etl_batch', %s)", payload)
        await asyncio.to_thread(rows.commit, 0)
        return await waiting

    assert run(work()).payload["status"] == "satisfied"


def test_a_ledger_that_is_made_later(database: Database, connections: Callable[..., None]) -> None:
    rows = LedgerRows(database.airflow_uri)
    connections(warehouse=database.airflow_uri)
    first_run = registry.to_json(QueryProgress.of(pipeline="orders", batch_id=0, wait_for_first_run=True))

    async def work() -> TriggerEvent:
        waiting = asyncio.create_task(event_of(trigger(condition=first_run)))
        await listening(rows)
        await asyncio.to_thread(rows.start)
        await asyncio.to_thread(rows.commit, 0)
        return await waiting

    assert run(work()).payload["status"] == "satisfied"


def test_it_may_end_the_task_itself(rows: LedgerRows) -> None:
    rows.commit(0)
    event = run(event_of(trigger(end_from_trigger=True)))
    assert isinstance(event, TaskSuccessEvent)
    assert event.xcoms is not None
    assert event.xcoms["return_value"]["batch_id"] == 0  # type: ignore[index,call-overload]


def test_it_lets_airflow_hear_that_the_task_was_deferred(rows: LedgerRows) -> None:
    rows.commit(0)
    began = time.monotonic()
    assert run(event_of(trigger(settle_seconds=1.5))).payload["status"] == "satisfied"
    assert run(event_of(trigger(pipeline="oders", settle_seconds=1.5))).payload["status"] == "error"
    assert time.monotonic() - began >= 3
    # Nothing goes on in a worker then.
    assert isinstance(run(event_of(trigger(end_from_trigger=True, settle_seconds=NEVER))), TaskSuccessEvent)


def test_who_leaves_early_takes_nothing_away_from_others(rows: LedgerRows) -> None:
    async def work() -> TriggerEvent:
        waiting = asyncio.create_task(event_of(trigger()))
        leaving = asyncio.create_task(event_of(trigger()))
        await listening(rows)
        leaving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await leaving
        await asyncio.to_thread(rows.commit, 0)
        return await waiting

    assert run(work()).payload["status"] == "satisfied"
