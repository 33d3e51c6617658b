"""A thousand deferred sensors in one event loop, as a triggerer has them: idle, and woken by commits."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import Iterator
from statistics import median
from time import monotonic, process_time
from typing import Any

from report import Figure

from sandbox.postgres import PostgresServer

_SENSORS = 1000
_IDLE_SECONDS = 60.0
_COMMITS = 100
_POLL_SECONDS = 60.0
_DATABASE = "sensors"


def figures(server: PostgresServer) -> Iterator[Figure]:
    """Measure, and yield the core's share when idle, the connections, and the time from a commit to the event."""
    os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="airflow-home-"))
    os.environ |= {"AIRFLOW__CORE__UNIT_TEST_MODE": "True", "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    server.create_database(_DATABASE)
    os.environ["AIRFLOW_CONN_SENSORS"] = server.airflow_uri(_DATABASE)
    # Airflow reads its settings when it is imported.
    from tests.airflow.ledger_rows import LedgerRows

    logging.getLogger("airflow_etl_provider").setLevel(logging.WARNING)
    rows = LedgerRows(server.airflow_uri(_DATABASE))
    for number in range(_SENSORS):
        rows.start(f"pipeline-{number}", f"run-{number}")
    share, listening, milliseconds = asyncio.run(_measure(rows))
    name = f"{_SENSORS} deferred sensors, each of a pipeline of its own"
    yield Figure(f"{name}: core, idle", share * 100, "%", "a core", share, 0.05, less=True)
    yield Figure(f"{name}: connections that listen", listening, "", "one", listening, 1, less=True)
    figure = f"{name}: from the commit to the event, median"
    yield Figure(figure, milliseconds, "ms", "100 ms", milliseconds / 100, 1, less=True)


async def _measure(rows: Any) -> tuple[float, float, float]:
    waiting = {number: asyncio.create_task(_event(number)) for number in range(_SENSORS)}
    # Each has looked once, and once more after the LISTEN.
    await asyncio.sleep(20)
    began, used = monotonic(), process_time()
    await asyncio.sleep(_IDLE_SECONDS)
    share = (process_time() - used) / (monotonic() - began)
    question = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'airflow-etl-triggerer-listens'"
    listening = (await asyncio.to_thread(rows.sql, question))[0][0]
    seconds = []
    for number in range(_COMMITS):
        commit = asyncio.to_thread(rows.commit, 0, f"pipeline-{number}", f"run-{number}")
        # The event may be there before the thread has closed its connection.
        committed, seen = await asyncio.gather(commit, _when(waiting.pop(number)))
        seconds.append(seen - committed)
        await asyncio.sleep(0.05)
    for task in waiting.values():
        task.cancel()
    await asyncio.gather(*waiting.values(), return_exceptions=True)
    return share, float(listening), median(seconds) * 1000


async def _when(task: asyncio.Task[Any]) -> float:
    await task
    return monotonic()


async def _event(number: int) -> Any:
    from airflow_etl_provider.triggers.ledger import LedgerTrigger
    from spark_jobs.contracts.watch import registry
    from spark_jobs.contracts.watch.query_progress import QueryProgress

    condition = registry.to_json(QueryProgress.of(pipeline=f"pipeline-{number}", batch_id=0))
    trigger = LedgerTrigger(condition=condition, ledger_conn_id="sensors", poll_seconds=_POLL_SECONDS)
    async for event in trigger.run():
        return event
    return None
