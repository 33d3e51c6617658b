"""Starts DAGs when a pipeline commits: the trigger of an :class:`airflow.sdk.AssetWatcher`.

Two halves talk to each other through Airflow's shared stream, which says (in its ack mode) when an event is stored.
:class:`_CommitStream` reads the ledger; the trigger, which alone reaches the asset's state store, keeps for it where it
has got to. No stream is shared: each trigger has one of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from airflow.triggers.base import BaseEventTrigger, TriggerEvent
from airflow.triggers.shared_stream import AdvanceItem, SharedStreamProducer
from airflow.utils.log.logging_mixin import LoggingMixin
from asgiref.sync import sync_to_async
from pydantic import BaseModel, ConfigDict

from airflow_etl_provider.hooks.ledger import LedgerHook
from airflow_etl_provider.triggers.ledger_watch import LedgerWatch, watching
from spark_jobs.contracts.errors import ConfigError, EtlError
from spark_jobs.contracts.watch.commits import CommitsAfter, NewestCommit, Position
from spark_jobs.contracts.watch.condition import Condition, Seen

_AGAIN_SECONDS: Final = 10.0
# Whoever pauses the last DAG takes the trigger from its asset first, and stops it a second or two later. Meanwhile
# Airflow confirms events that it gives to nobody.
_SETTLED_SECONDS: Final = 5.0

StartFrom: TypeAlias = Literal["now", "beginning"]


class _Sent(BaseModel):
    """A range that was told of, or was about to be: told once more, it has the same id."""

    model_config = ConfigDict(frozen=True)

    after: Position
    end: Position


class _Cursor(BaseModel):
    """What the asset's state store keeps.

    :param done: everything up to here is told for certain. :param sent: what comes next, perhaps told, perhaps not.
    """

    model_config = ConfigDict(frozen=True)

    done: Position
    sent: _Sent | None = None


@dataclass(frozen=True, eq=False)
class _Recall:
    """Asks where it had got to; None: nobody has ever watched. No answer (False) where the store has none."""

    answer: asyncio.Future[_Cursor | Literal[False] | None]


@dataclass(frozen=True, eq=False)
class _Keep:
    """Asks to keep where it has got to; answered by whether that is kept."""

    cursor: _Cursor
    answer: asyncio.Future[bool]


@dataclass(frozen=True, eq=False)
class _Tell:
    """Asks to tell Airflow."""

    payload: dict[str, Any]
    stored: asyncio.Event = field(default_factory=asyncio.Event)


_Wish: TypeAlias = _Recall | _Keep | _Tell
_Raw: TypeAlias = tuple[_Wish, _Wish]


def _behind(cursor: _Cursor) -> tuple[int, int]:
    return cursor.done.epoch, cursor.done.batch_id


class BatchCommittedTrigger(BaseEventTrigger):
    """Tells of a pipeline's commits, each at least once, in the order of the commits.

    An event is about the commits since the event before, of one query and ten thousand at most. The next one is sent
    when Airflow has stored it, about six seconds later. So a single commit has an event of its own, while a burst, or
    what was committed during a pause, has a few events and not ten thousand DAG runs. Its payload
    (``triggering_asset_events[…].extra["payload"]``) is the value of
    :class:`~spark_jobs.contracts.watch.commits.CommitsAfter`: a range of batches with rows, offsets, watermark and
    event times.

    Where it has got to is kept in the asset's state store, and moves only after Airflow has stored the event: a crash,
    a restart or a pause repeats the last event at most, and loses none. A repeated event has the same ``id``. A new
    checkpoint, an older one that is brought back, and a cleanup of old batches change nothing about that; a ledger that
    was restored, or made anew, is told from its beginning. As long as the ledger, the connection or Airflow's API does
    not answer, it says so in its log and asks again.

    Airflow runs a watcher while a DAG that the asset schedules is unpaused. Between the pause and the DAG file's next
    parsing it stores events that start no run; the run that comes next has them.

    :param pipeline: its id; one that has never run is waited for.
    :param ledger_conn_id: Airflow connection to the ledger's PostgreSQL. :param tracker_schema: the ledger's schema.
    :param start_from: what to tell of where nobody has watched before: what is committed from ``now`` on (from the
        first time that the ledger answers), or everything from the ``beginning``.
    :param empty_batches: whether commits that wrote no row into the target are told, too.
    :param poll_seconds: how long at most between two looks; it looks with each notification of a commit anyway.
    :raises ConfigError: a value that cannot be used.
    """

    def __init__(
        self,
        *,
        pipeline: str,
        ledger_conn_id: str = "warehouse",
        tracker_schema: str = "etl",
        start_from: StartFrom = "now",
        empty_batches: bool = False,
        poll_seconds: float = 60.0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        CommitsAfter.of(pipeline=pipeline)
        if start_from not in ("now", "beginning") or not poll_seconds > 0:
            raise ConfigError(
                f"Commits of {pipeline!r} cannot be watched",
                found=f"start_from={start_from!r}, poll_seconds={poll_seconds!r}",
                expected="start_from 'now' or 'beginning', poll_seconds above 0",
            )
        self.pipeline = pipeline
        self.ledger_conn_id = ledger_conn_id
        self.tracker_schema = tracker_schema
        self.start_from = start_from
        self.empty_batches = empty_batches
        self.poll_seconds = poll_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return how the trigger is made again."""
        names = ("pipeline", "ledger_conn_id", "tracker_schema", "start_from", "empty_batches", "poll_seconds")
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        return path, {name: getattr(self, name) for name in names}

    def shared_stream_key(self) -> Hashable:
        """Return a key that no other trigger has: whoever shares a stream fails with it."""
        return (*self.serialize()[1].values(), self.trigger_id)

    @classmethod
    def create_shared_stream_producer(cls, kwargs: dict[str, Any]) -> SharedStreamProducer:
        """Return what reads the ledger."""
        return _CommitStream(**kwargs)

    async def filter_shared_stream(self, shared_stream: AsyncIterator[_Wish]) -> AsyncIterator[TriggerEvent]:
        """Tell, recall and keep, as the stream asks for it."""
        async for wish in shared_stream:
            if isinstance(wish, _Recall):
                wish.answer.set_result(await self._recalled())
            elif isinstance(wish, _Keep):
                wish.answer.set_result(await self._kept(wish.cursor))
            else:
                yield TriggerEvent(wish.payload)  # type: ignore[no-untyped-call]

    def run(self) -> AsyncIterator[TriggerEvent]:
        """Refuse: without Airflow's confirmation of what is stored, events would be lost.

        :raises ConfigError: always.
        """
        raise ConfigError(
            "BatchCommittedTrigger runs in Airflow's triggerer only, for an asset",
            cure="give it to an AssetWatcher; a task waits with StreamingQueryProgressSensor",
        )

    @property
    def _cursor_key(self) -> str:
        # Not the other parameters: who changes one of them goes on where he was.
        return f"etl/{self.tracker_schema}/{self.pipeline}"

    def _stores(self) -> list[Any]:
        if self.asset_state_store is None:
            raise ConfigError("BatchCommittedTrigger watches no asset", cure="give it to an AssetWatcher")
        # Airflow has one trigger for all assets that watch the same; each event goes to all of them.
        return list(self.asset_state_store._by_name.values())

    async def _recalled(self) -> _Cursor | Literal[False] | None:
        """Return the cursor of the asset that is furthest behind: an asset that was added today has none."""
        try:
            found = [await store.aget(self._cursor_key) for store in self._stores()]
            cursors: list[_Cursor] = [_Cursor.model_validate(one) for one in found if one is not None]
        except Exception as error:  # noqa: BLE001 - whatever the API server's trouble is, the watcher outlives it
            self.log.warning("%s: where it had got to cannot be read, asking again: %s", self.pipeline, error)
            return False
        cursors.sort(key=_behind)
        return cursors[0] if cursors else None

    async def _kept(self, cursor: _Cursor) -> bool:
        try:
            for store in self._stores():
                await store.aset(self._cursor_key, cursor.model_dump(mode="json"))
        except Exception as error:  # noqa: BLE001 - as above
            self.log.warning("%s: where it has got to cannot be stored, trying again: %s", self.pipeline, error)
            return False
        return True


class _CommitStream(SharedStreamProducer, LoggingMixin):
    """Reads a ledger for one :class:`BatchCommittedTrigger`, whose parameters it has."""

    def __init__(
        self,
        *,
        pipeline: str,
        ledger_conn_id: str,
        tracker_schema: str,
        start_from: StartFrom,
        empty_batches: bool,
        poll_seconds: float,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._pipeline = pipeline
        self._hook = LedgerHook(ledger_conn_id, schema=tracker_schema)
        self._start_from = start_from
        self._empty_batches = empty_batches
        self._poll_seconds = poll_seconds
        self._said = ""

    async def open_stream(self) -> AsyncIterator[_Raw]:
        """Yield what the trigger shall do, for ever."""
        while True:
            try:
                async for wish in self._from_ledger():
                    yield wish, wish
            except Exception as error:  # noqa: BLE001 - an asset that nobody watches any more would stay silent for ever
                self._say(f"{self._pipeline}: commits cannot be watched, trying again: {error}", logging.WARNING)
            # A connection that was changed is looked up again.
            self._hook = LedgerHook(self._hook.conn_id, schema=self._hook.schema)
            await asyncio.sleep(_AGAIN_SECONDS)

    async def advance(self, batch: Sequence[AdvanceItem]) -> None:
        """Note what Airflow has stored."""
        for item in batch:
            # Else the trigger has failed with it; Airflow starts it again, and the event is repeated.
            if isinstance(item.broker_payload, _Tell) and item.outcome.is_clean:
                item.broker_payload.stored.set()

    async def _from_ledger(self) -> AsyncIterator[_Wish]:
        # Airflow is asked for the connection, and would block the triggerer's loop meanwhile.
        database = await sync_to_async(lambda: self._hook.database)()
        async with watching(database) as watch, watch.subscribed(self._pipeline) as changed:
            recall = _Recall(asyncio.get_running_loop().create_future())
            yield recall
            cursor = await recall.answer
            if cursor is False:
                return
            if cursor is None:
                cursor = _Cursor(done=await self._start(watch))
                async for keep in self._kept(cursor):
                    yield keep
            while True:
                if cursor.sent is None:
                    seen, sent = await self._next(watch, changed, cursor.done)
                    cursor = _Cursor(done=cursor.done, sent=sent)
                    async for keep in self._kept(cursor):
                        yield keep
                else:
                    sent = cursor.sent
                    seen = await self._once_more(watch, sent)
                # Else the ledger has nothing of what was told, or was about to be.
                if seen.done:
                    tell = _Tell(seen.value)
                    yield tell
                    await tell.stored.wait()
                    await asyncio.sleep(_SETTLED_SECONDS)
                cursor = _Cursor(done=sent.end)
                async for keep in self._kept(cursor):
                    yield keep

    async def _kept(self, cursor: _Cursor) -> AsyncIterator[_Wish]:
        while True:
            keep = _Keep(cursor, asyncio.get_running_loop().create_future())
            yield keep
            if await keep.answer:
                return
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _start(self, watch: LedgerWatch) -> Position:
        if self._start_from == "beginning":
            return Position()
        newest = await self._answer(watch, NewestCommit.of(pipeline=self._pipeline))
        return Position(**newest.value)

    async def _once_more(self, watch: LedgerWatch, sent: _Sent) -> Seen:
        return await self._answer(watch, CommitsAfter.of(pipeline=self._pipeline, after=sent.after, through=sent.end))

    async def _next(self, watch: LedgerWatch, changed: asyncio.Event, after: Position) -> tuple[Seen, _Sent]:
        """Wait for commits after a position, and return what they are."""
        while True:
            changed.clear()
            seen = await self._answer(watch, CommitsAfter.of(pipeline=self._pipeline, after=after))
            self._say(seen.message)
            if not seen.done:
                with suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), self._poll_seconds)
                continue
            value = seen.value
            end = Position(epoch=value["epoch"], batch_id=value["last_batch_id"], query_id=value["query_id"])
            if value["rows"] or self._empty_batches:
                return seen, _Sent(after=Position(**value["after"]), end=end)
            after = end

    async def _answer(self, watch: LedgerWatch, condition: Condition) -> Seen:
        """Look until the ledger answers.

        :raises EtlError: not retryable: a login that is refused, a ledger of another version.
        """
        while True:
            try:
                return await watch.look(condition, self._hook.schema)
            except EtlError as error:
                if not error.retryable:
                    raise
                self._say(f"{self._pipeline}: asking again: {error}", logging.WARNING)
            await asyncio.sleep(min(self._poll_seconds, _AGAIN_SECONDS))

    def _say(self, message: str, level: int = logging.INFO) -> None:
        if message != self._said:
            self.log.log(level, "%s", message)
        self._said = message
