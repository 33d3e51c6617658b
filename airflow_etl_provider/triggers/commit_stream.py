"""Reads a pipeline's commits from its ledger, for the trigger that tells Airflow of them.

One range of commits is on its way at a time: kept as *sent*, told, stored by Airflow, kept as *done*.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from airflow.triggers.shared_stream import AdvanceItem, SharedStreamProducer
from airflow.utils.log.logging_mixin import LoggingMixin
from asgiref.sync import sync_to_async
from pydantic import BaseModel, ConfigDict

from airflow_etl_provider.hooks.ledger import LedgerHook
from airflow_etl_provider.triggers.ledger_watch import LedgerWatch, watching
from spark_jobs.contracts.errors import EtlError
from spark_jobs.contracts.watch.commits import CommitsAfter, NewestCommit, Position
from spark_jobs.contracts.watch.condition import Condition, Seen

_AGAIN_SECONDS: Final = 10.0
# Whoever pauses the last DAG takes the trigger from its asset first, and stops it a second or two later. Meanwhile
# Airflow confirms events that it gives to nobody.
_SETTLED_SECONDS: Final = 5.0

StartFrom: TypeAlias = Literal["now", "beginning"]


class Sent(BaseModel):
    """A range that was told of, or was about to be: told once more, it has the same id."""

    model_config = ConfigDict(frozen=True)

    after: Position
    end: Position


class Cursor(BaseModel):
    """What the asset's state store keeps.

    :param done: everything up to here is told for certain. :param sent: what comes next, perhaps told, perhaps not.
    """

    model_config = ConfigDict(frozen=True)

    done: Position
    sent: Sent | None = None


@dataclass(frozen=True, eq=False)
class Recall:
    """Asks where it had got to: None where nobody has ever watched, False where the state store does not answer."""

    answer: asyncio.Future[Cursor | Literal[False] | None]


@dataclass(frozen=True, eq=False)
class Keep:
    """Asks to keep where it has got to; answered by whether that is kept."""

    cursor: Cursor
    answer: asyncio.Future[bool]


@dataclass(frozen=True, eq=False)
class Tell:
    """Asks to tell Airflow."""

    payload: dict[str, Any]
    stored: asyncio.Event = field(default_factory=asyncio.Event)


Wish: TypeAlias = Recall | Keep | Tell
_Raw: TypeAlias = tuple[Wish, Wish]


class CommitStream(SharedStreamProducer, LoggingMixin):
    """Reads a ledger for one ``BatchCommittedTrigger``, whose parameters it has."""

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
            if isinstance(item.broker_payload, Tell) and item.outcome.is_clean:
                item.broker_payload.stored.set()

    async def _from_ledger(self) -> AsyncIterator[Wish]:
        # Airflow is asked for the connection, and would block the triggerer's loop meanwhile.
        database = await sync_to_async(lambda: self._hook.database)()
        async with watching(database) as watch, watch.subscribed(self._pipeline) as changed:
            recall = Recall(asyncio.get_running_loop().create_future())
            yield recall
            cursor = await recall.answer
            if cursor is False:
                return
            if cursor is None:
                cursor = Cursor(done=await self._start(watch))
                async for keep in self._kept(cursor):
                    yield keep
            while True:
                if cursor.sent is None:
                    seen, sent = await self._next(watch, changed, cursor.done)
                    cursor = Cursor(done=cursor.done, sent=sent)
                    async for keep in self._kept(cursor):
                        yield keep
                else:
                    sent = cursor.sent
                    seen = await self._once_more(watch, sent)
                # Else the ledger has nothing of what was told, or was about to be.
                if seen.done:
                    tell = Tell(seen.value)
                    yield tell
                    await tell.stored.wait()
                    await asyncio.sleep(_SETTLED_SECONDS)
                cursor = Cursor(done=sent.end)
                async for keep in self._kept(cursor):
                    yield keep

    async def _kept(self, cursor: Cursor) -> AsyncIterator[Wish]:
        while True:
            keep = Keep(cursor, asyncio.get_running_loop().create_future())
            yield keep
            if await keep.answer:
                return
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _start(self, watch: LedgerWatch) -> Position:
        if self._start_from == "beginning":
            return Position()
        newest = await self._answer(watch, NewestCommit.of(pipeline=self._pipeline))
        return Position(**newest.value)

    async def _once_more(self, watch: LedgerWatch, sent: Sent) -> Seen:
        return await self._answer(watch, CommitsAfter.of(pipeline=self._pipeline, after=sent.after, through=sent.end))

    async def _next(self, watch: LedgerWatch, changed: asyncio.Event, after: Position) -> tuple[Seen, Sent]:
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
                return seen, Sent(after=Position(**value["after"]), end=end)
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
