"""A triggerer's one window on a ledger: it hears of commits by one connection, and asks by another.

PostgreSQL's notifications say that something was committed; what, the ledger says. Whoever waits for a pipeline is
woken by that pipeline's commits alone, and everybody after each LISTEN, as a notification may have been missed before.
Notifications are a short cut: where none arrive (a pooler in transaction mode, a standby), whoever waits looks from
time to time, as it would anyway.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from time import monotonic
from typing import Any, Final, TypeVar
from uuid import uuid4

import psycopg

from airflow_etl_provider.credentials import RememberedConnections
from airflow_etl_provider.triggers.shared_failure import SharedFailure
from airflow_etl_provider.triggers.source_threads import SourceThreads
from spark_jobs.contracts.credentials import DatabaseConnection
from spark_jobs.contracts.errors import (
    ContendedError,
    DatabaseUnreachableError,
    EtlError,
    LedgerMissingError,
    LoginRefusedError,
    TransientError,
)
from spark_jobs.contracts.reprocess_batches import owning_pipeline
from spark_jobs.contracts.tracker.connect import Connection, classified, classify, connect, session_conninfo
from spark_jobs.contracts.tracker.migrate import require_version
from spark_jobs.contracts.tracker.statements import CHANNEL
from spark_jobs.contracts.watch.condition import AtSource, Condition, LedgerView, Seen, Step, snapshot

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_NAME: Final = "airflow-etl-triggerer"
_HEARS_ITSELF: Final = "etl_hears_itself"
_HEARD_WITHIN_SECONDS: Final = 5.0
_CLOSED_WITHIN_SECONDS: Final = 10.0
_PAUSE_SECONDS: Final = 1.0
_MOST_PAUSE_SECONDS: Final = 30.0
_DEAF_PAUSE_SECONDS: Final = 600.0
# One thread asks for everybody: what takes longer than this keeps the others waiting.
_STATEMENT_TIMEOUT: Final = "30s"


class LedgerWatch:
    """Hears and asks for all triggers of one event loop that wait on one database. See :func:`watching`."""

    def __init__(self, database: DatabaseConnection) -> None:
        self._database = database
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="etl-ledger-watch")
        self._sources = SourceThreads()
        self._credentials = RememberedConnections()
        self._conn: Connection | None = None
        self._checked: set[str] = set()
        self._no_connection = SharedFailure()
        self._listener = asyncio.create_task(self._listen(), name="etl-ledger-watch")
        self.users = 0

    @asynccontextmanager
    async def subscribed(self, pipeline: str) -> AsyncIterator[asyncio.Event]:
        """Yield an event that is set with each commit of a pipeline or its replays, and when one may be missed."""
        changed = asyncio.Event()
        self._waiting[pipeline].add(changed)
        try:
            yield changed
        finally:
            self._waiting[pipeline].discard(changed)
            if not self._waiting[pipeline]:
                del self._waiting[pipeline]

    async def look(self, condition: Condition, schema: str) -> Seen:
        """Look at the ledger as it is now, and at the source where the condition asks for it.

        A source is asked by a thread of its own: while it does not answer, the ledger's has time for the others.

        :raises EtlError: the condition can never hold, or (retryable) the ledger or the source does not answer.
        """
        try:
            step: Step = await self._at_ledger(condition.begin, schema)
        except LedgerMissingError as missing:
            return condition.without_ledger(missing)
        while not isinstance(step, Seen):
            go_on = self._sources.ask(step) if isinstance(step, AtSource) else self._at_ledger(step.ask, schema)
            step = await go_on
        return step

    async def close(self) -> None:
        """Let go of both connections."""
        self._listener.cancel()
        self._thread.submit(self._forget)
        self._thread.shutdown(wait=False)
        self._sources.close()
        await asyncio.wait([self._listener], timeout=_CLOSED_WITHIN_SECONDS)

    async def _at_ledger(self, look: Callable[[LedgerView], Step], schema: str) -> Step:
        def ask(conn: Connection) -> Step:
            with snapshot(conn):
                conn.execute("SELECT set_config('statement_timeout', %s, true)", (_STATEMENT_TIMEOUT,))
                try:
                    return look(LedgerView(conn, schema, self._credentials))
                except TransientError as error:
                    if isinstance(error.__cause__, psycopg.errors.QueryCanceled):
                        raise _too_slow() from error
                    raise

        return await self._asked(ask, schema)

    async def _asked(self, question: Callable[[Connection], _T], schema: str | None = None) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._ask, question, schema, monotonic())

    def _ask(self, question: Callable[[Connection], _T], schema: str | None, asked_at: float) -> _T:
        with classified("Asking the ledger"):
            if self._conn is not None:
                used = self._conn
                try:
                    return self._put(question, used, schema)
                except (psycopg.OperationalError, DatabaseUnreachableError, TransientError):
                    if not used.broken:
                        raise
                # It was lost since it was used last.
            self._conn = self._connect(asked_at)
            return self._put(question, self._conn, schema)

    def _connect(self, asked_at: float) -> Connection:
        self._no_connection.raise_for(asked_at)
        try:
            return connect(self._database, application_name=_NAME)
        except EtlError as error:
            self._no_connection.note(error)
            raise

    def _put(self, question: Callable[[Connection], _T], conn: Connection, schema: str | None) -> _T:
        try:
            if schema is not None and schema not in self._checked:
                require_version(conn, schema)
                self._checked.add(schema)
            return question(conn)
        except BaseException as error:
            # A condition that can never hold says nothing about the connection.
            if conn.broken or not isinstance(error, EtlError):
                self._forget()
            raise

    def _forget(self) -> None:
        if self._conn is not None:
            self._conn.close()
        self._conn = None
        self._checked.clear()

    async def _listen(self) -> None:
        pause = _PAUSE_SECONDS
        while True:
            try:
                async with await self._connected() as conn:
                    if await self._hears(conn):
                        pause = _PAUSE_SECONDS
                        self._wake_all()
                        async for notification in conn.notifies():
                            self._wake(notification.payload)
                    else:
                        pause = _DEAF_PAUSE_SECONDS
                        log.warning(
                            "Notifications from %s do not arrive (a pooler in transaction mode?): waiting tasks look "
                            "at their poke_interval instead",
                            self._database,
                        )
            except Exception as error:  # noqa: BLE001 - whatever it is, who waits must not go deaf over it
                if isinstance(error, psycopg.Error) and isinstance(classify(error), LoginRefusedError):
                    # Who waits looks, is refused as well, and has the connection looked up again.
                    self._wake_all()
                log.warning("No notifications from %s; listening again in %s s: %s", self._database, pause, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _MOST_PAUSE_SECONDS)

    async def _connected(self) -> psycopg.AsyncConnection[Any]:
        conninfo = session_conninfo(self._database, f"{_NAME}-listens")
        connecting = asyncio.ensure_future(
            psycopg.AsyncConnection.connect(conninfo, autocommit=True, prepare_threshold=None)
        )
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            # Half made, it would keep its place at the server until that loses patience.
            with suppress(psycopg.Error):
                await (await connecting).close()
            raise

    async def _hears(self, conn: psycopg.AsyncConnection[Any]) -> bool:
        """LISTEN, and tell whether a notification that the other connection sends comes here.

        One that this connection sent would come with its own answer, also where a pooler lets nothing else through.
        """
        token = uuid4().hex
        await conn.execute(f"LISTEN {CHANNEL}")
        await conn.execute(f"LISTEN {_HEARS_ITSELF}")
        await self._asked(lambda other: other.execute("SELECT pg_notify(%s, %s)", (_HEARS_ITSELF, token)))
        heard = False
        # Closed before anything else is asked: until then it keeps the connection to itself.
        async with aclosing(conn.notifies(timeout=_HEARD_WITHIN_SECONDS)) as notifications:
            async for notification in notifications:
                if heard := notification.payload == token:
                    break
        await conn.execute(f"UNLISTEN {_HEARS_ITSELF}")
        return heard

    def _wake(self, payload: str) -> None:
        try:
            pipeline = str(json.loads(payload)["pipeline_id"])
        except (ValueError, KeyError, TypeError, RecursionError):
            # Of another version, or of somebody else: look, rather than miss it.
            self._wake_all()
            return
        # A replay's commit changes what its pipeline's letters are.
        for about in {pipeline, owning_pipeline(pipeline)}:
            for changed in self._waiting.get(about, ()):
                changed.set()

    def _wake_all(self) -> None:
        for waiting in self._waiting.values():
            for changed in waiting:
                changed.set()


class LookTooSlowError(ContendedError):
    """A look takes longer than others can be kept waiting."""


def _too_slow() -> LookTooSlowError:
    return LookTooSlowError(
        "A look at the ledger was given up",
        found=f"a question that takes longer than {_STATEMENT_TIMEOUT}",
        expected="an answer before others are kept waiting",
        cure="look at a shorter window (last=…), or have the ledger cleaned (dags/etl_batch_tracker_cleanup.py)",
    )


_WATCHES: dict[tuple[int, str], LedgerWatch] = {}


@asynccontextmanager
async def watching(database: DatabaseConnection) -> AsyncIterator[LedgerWatch]:
    """Yield the event loop's watch over a database: the same for everybody, closed with the last one."""
    key = (id(asyncio.get_running_loop()), database.conninfo())
    watch = _WATCHES.get(key)
    if watch is None:
        watch = _WATCHES[key] = LedgerWatch(database)
    watch.users += 1
    try:
        yield watch
    finally:
        watch.users -= 1
        if not watch.users:
            del _WATCHES[key]
            await watch.close()
