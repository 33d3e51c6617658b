"""Commits start DAGs: each at least once, in order, over crashes at any moment, by the same ids."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Asset, AssetWatcher
from airflow.triggers.shared_stream import AckTimeout
from ledger_rows import LedgerRows
from triggerer import Running, Triggerer

from airflow_etl_provider.triggers import commit_stream
from airflow_etl_provider.triggers.batch_committed import BatchCommittedTrigger
from sandbox.postgres import PostgresServer
from spark_jobs.contracts.errors import ConfigError

PATIENCE = 60.0
KEY = ("orders", "etl/warehouse/etl/orders")


@pytest.fixture
def triggerer(monkeypatch: pytest.MonkeyPatch) -> Triggerer:
    monkeypatch.setattr(commit_stream, "_SETTLED_SECONDS", 0.01)
    monkeypatch.setattr(commit_stream, "_AGAIN_SECONDS", 0.05)
    return Triggerer(monkeypatch)


def trigger(**changes: Any) -> BatchCommittedTrigger:
    # Nobody looks a second time because so much time has passed.
    return BatchCommittedTrigger(**{"pipeline": "orders", "poll_seconds": 86_400.0, **changes})


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, PATIENCE))


async def commit(rows: LedgerRows, *ids: int) -> None:
    for number in ids:
        await asyncio.to_thread(rows.commit, number)


async def kept(triggerer: Triggerer, batch_id: int, key: tuple[str, str] = KEY) -> None:
    """Return once the state store says that everything up to a batch is told."""
    while (cursor := triggerer.values.get(key)) is None or cursor["sent"] or cursor["done"]["batch_id"] != batch_id:
        await asyncio.sleep(0.01)


async def listening(rows: LedgerRows) -> None:
    question = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'UNLISTEN%%' AND state = 'idle'"
    while not (await asyncio.to_thread(rows.sql, question))[0][0]:
        await asyncio.sleep(0.02)


def test_airflow_takes_it_for_an_asset() -> None:
    asset = Asset("orders", watchers=[AssetWatcher(name="commits", trigger=trigger())])
    assert asset.watchers[0].trigger.serialize()[1]["pipeline"] == "orders"


def test_each_commit_has_an_event(rows: LedgerRows, triggerer: Triggerer) -> None:
    async def work() -> None:
        async with triggerer.running(trigger()) as running:
            await kept(triggerer, -1)
            for number in range(3):
                await commit(rows, number)
                event = await running.event()
                assert event["id"] == f"orders/q/{number}-{number}"
                assert (event["rows"], event["batches"]) == (10, 1)
                await kept(triggerer, number)

    run(work())


def test_a_burst_has_one_event_while_another_is_on_its_way(rows: LedgerRows, triggerer: Triggerer) -> None:
    async def work() -> None:
        async with triggerer.running(trigger()) as running:
            await kept(triggerer, -1)
            await commit(rows, 0)
            seq, first = await running.fired.get()
            await commit(rows, *range(1, 30))
            assert running.fired.empty()
            running.streams.confirm_persisted([seq])
            assert first["id"] == "orders/q/0-0"
            second = await running.event()
            assert (second["id"], second["rows"]) == ("orders/q/1-29", 290)
            assert second["start_offsets"] == {"t": {"0": 1}}
            assert second["end_offsets"] == {"t": {"0": 30}}

    run(work())


def test_it_begins_with_now_unless_told_otherwise(rows: LedgerRows, triggerer: Triggerer) -> None:
    rows.commit(0)

    async def work() -> None:
        async with triggerer.running(trigger()) as running:
            await kept(triggerer, 0)
            await commit(rows, 1)
            assert (await running.event())["id"] == "orders/q/1-1"
        triggerer.values.clear()
        async with triggerer.running(trigger(start_from="beginning")) as running:
            assert (await running.event())["id"] == "orders/q/0-1"

    run(work())


def test_now_is_the_first_time_that_it_watched(rows: LedgerRows, triggerer: Triggerer) -> None:
    """A pause before the first commit: what comes meanwhile is not from before anybody watched."""

    async def work() -> None:
        async with triggerer.running(trigger()):
            await kept(triggerer, -1)
        await commit(rows, 0, 1)
        async with triggerer.running(trigger()) as running:
            assert (await running.event())["id"] == "orders/q/0-1"

    run(work())


def test_an_event_that_was_not_stored_is_repeated_as_it_was(rows: LedgerRows, triggerer: Triggerer) -> None:
    async def work() -> None:
        async with triggerer.running(trigger()) as running:
            await kept(triggerer, -1)
            await commit(rows, 0)
            lost = await running.unstored()
        await commit(rows, 1, 2)
        async with triggerer.running(trigger()) as running:
            assert await running.event() == lost
            assert (await running.event())["id"] == "orders/q/1-2"
            await kept(triggerer, 2)
        async with triggerer.running(trigger()) as running:
            await commit(rows, 3)
            assert (await running.event())["id"] == "orders/q/3-3"

    run(work())


def test_an_event_that_airflow_cannot_store_in_time_is_repeated(rows: LedgerRows, triggerer: Triggerer) -> None:
    async def work() -> None:
        async with triggerer.running(trigger(), ack_timeout=0.2) as running:
            await kept(triggerer, -1)
            await commit(rows, 0)
            late = await running.unstored()
            with pytest.raises(AckTimeout):
                await running.task
        # Airflow starts the trigger again.
        async with triggerer.running(trigger()) as running:
            assert await running.event() == late

    run(work())


def test_what_airflow_confirms_to_nobody_is_repeated(
    rows: LedgerRows, triggerer: Triggerer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who pauses the DAG takes the trigger from its asset; until it is stopped, its events are dropped."""
    monkeypatch.setattr(commit_stream, "_SETTLED_SECONDS", 3600)

    async def work() -> None:
        async with triggerer.running(trigger()) as running:
            await kept(triggerer, -1)
            await commit(rows, 0)
            dropped = await running.event()
        async with triggerer.running(trigger()) as running:
            assert await running.event() == dropped

    run(work())


def test_wherever_it_crashes_nothing_is_lost(rows: LedgerRows, triggerer: Triggerer) -> None:
    """The triggerer is killed after each request to the API server, one after the other."""

    async def until_crash(requests: int) -> None:
        async with triggerer.running(trigger(start_from="beginning")) as running:
            answered = 0
            real = triggerer.asend

            async def counted(message: Any) -> Any:
                nonlocal answered
                if answered == requests:
                    await asyncio.Event().wait()
                answered += 1
                return await real(message)

            triggerer.asend = counted  # type: ignore[method-assign]
            try:
                storing = asyncio.create_task(_store_all(running))
                while answered < requests:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.05)
                storing.cancel()
            finally:
                triggerer.asend = real  # type: ignore[method-assign]

    async def work() -> None:
        for number in range(8):
            await commit(rows, number)
            # Recalled; a first position kept; an event announced; an event settled.
            await until_crash(1 + number % 4 if number else 2)
        async with triggerer.running(trigger(start_from="beginning")) as running:
            storing = asyncio.create_task(_store_all(running))
            await kept(triggerer, 7)
            storing.cancel()

    run(work())
    told = [range(event["first_batch_id"], event["last_batch_id"] + 1) for event in triggerer.stored]
    assert sorted({number for each in told for number in each}) == list(range(8))
    # What came twice came as it was: an id has one range, and ranges of different ids do not overlap.
    once = {event["id"]: event for event in triggerer.stored}
    assert all(once[event["id"]] == event for event in triggerer.stored)
    assert sum(event["batches"] for event in once.values()) == 8


async def _store_all(running: Running) -> None:
    while True:
        await running.event()


def test_a_commit_without_rows_is_silent(rows: LedgerRows, triggerer: Triggerer) -> None:
    async def work() -> None:
        rows.sql("UPDATE etl.batch_tracker SET record_count = 0, written_rows = 0, sink_rows = 0")
        async with triggerer.running(trigger(start_from="beginning")) as running:
            await kept(triggerer, -1)
            await commit(rows, 2)
            # The first event of all; those without rows are in its range if it had not passed them by before.
            event = await running.event()
            assert (event["last_batch_id"], event["rows"]) == (2, 10)
            assert event["first_batch_id"] == event["after"]["batch_id"] + 1
        triggerer.values.clear()
        async with triggerer.running(trigger(start_from="beginning", empty_batches=True)) as running:
            assert (await running.event())["id"] == "orders/q/0-2"

    rows.commit(0)
    rows.commit(1)
    run(work())


def test_all_assets_that_share_it_go_on_from_the_one_furthest_behind(rows: LedgerRows, triggerer: Triggerer) -> None:
    async def work() -> None:
        async with triggerer.running(trigger()) as running:
            await kept(triggerer, -1)
            await commit(rows, 0)
            await running.event()
            await kept(triggerer, 0)
        # Another asset watches the same from now on.
        async with triggerer.running(trigger(), "orders", "sales") as running:
            await commit(rows, 1)
            assert (await running.event())["id"] == "orders/q/1-1"
            await kept(triggerer, 1, ("sales", KEY[1]))
            await kept(triggerer, 1)

    run(work())


def test_an_api_server_that_is_away_is_asked_again(rows: LedgerRows, triggerer: Triggerer) -> None:
    triggerer.refusals = 3

    async def work() -> None:
        async with triggerer.running(trigger()) as running:
            await kept(triggerer, -1)
            triggerer.refusals = 2
            await commit(rows, 0)
            assert (await running.event())["id"] == "orders/q/0-0"
            await kept(triggerer, 0)

    run(work())


def test_servers_pipelines_and_ledgers_that_are_not_there_yet(
    tmp_path: Path, connections: Callable[..., None], triggerer: Triggerer
) -> None:
    with PostgresServer() as server:
        rows = LedgerRows(server.airflow_uri("books"))
        connections(warehouse=rows.airflow_uri)
        server.create_database("other")

        async def work() -> None:
            async with triggerer.running(trigger(poll_seconds=0.1)) as running:
                await asyncio.sleep(0.3)
                await asyncio.to_thread(server.create_database, "books")
                await kept(triggerer, -1)
                await asyncio.to_thread(rows.start, "returns", "r2")
                await asyncio.to_thread(rows.start)
                await commit(rows, 0)
                assert (await running.event())["id"] == "orders/q/0-0"
                await kept(triggerer, 0)
                await asyncio.to_thread(server.kill)
                await asyncio.sleep(0.3)
                await asyncio.to_thread(server.start)
                await commit(rows, 1)
                assert (await running.event())["id"] == "orders/q/1-1"

        run(work())


def test_a_lost_connection_loses_no_commit(rows: LedgerRows, triggerer: Triggerer) -> None:
    async def work() -> None:
        async with triggerer.running(trigger()) as running:
            await kept(triggerer, -1)
            await listening(rows)
            end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'airflow-etl-%%'"
            await asyncio.to_thread(rows.sql, end)
            await commit(rows, 0)
            assert (await running.event())["id"] == "orders/q/0-0"

    run(work())


@pytest.mark.parametrize("wrong", [{"start_from": "tomorrow"}, {"poll_seconds": 0}, {"pipeline": ""}])
def test_what_cannot_be_watched_is_said_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        trigger(**wrong)


def test_a_task_cannot_wait_with_it() -> None:
    with pytest.raises(ConfigError, match="AssetWatcher"):
        trigger().run()
