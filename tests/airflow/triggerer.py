"""A triggerer around one asset's trigger, its database in the test's hands: events are stored when the test says so.

The shared stream and the state store's accessors are Airflow's own, and used as its ``TriggerRunner`` uses them; only
the API server is a dictionary here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from airflow.sdk import Asset
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import AssetStateStoreResult, ErrorResponse, OKResponse
from airflow.sdk.execution_time.context import AssetStateStoreAccessors
from airflow.triggers.base import BaseEventTrigger
from airflow.triggers.shared_stream import AckTimeout, SharedStreamManager


@dataclass
class Triggerer:
    """What outlives a triggerer: the state store, and the events that were stored."""

    monkeypatch: pytest.MonkeyPatch
    values: dict[tuple[str, str], Any] = field(default_factory=dict)
    stored: list[dict[str, Any]] = field(default_factory=list)
    refusals: int = 0
    """How many requests the API server refuses."""

    def __post_init__(self) -> None:
        self.monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", self, raising=False)

    async def asend(self, message: Any) -> Any:
        if self.refusals:
            self.refusals -= 1
            raise RuntimeError("API server is away")
        if message.type.startswith("Set"):
            self.values[message.name, message.key] = message.value
            return OKResponse(ok=True)
        if (message.name, message.key) in self.values:
            return AssetStateStoreResult(value=self.values[message.name, message.key])
        return ErrorResponse(error="ASSET_STORE_NOT_FOUND")

    @asynccontextmanager
    async def running(
        self, trigger: BaseEventTrigger, *assets: str, ack_timeout: float = 300.0
    ) -> AsyncIterator[Running]:
        """Run the trigger; the end of the block is a crash: nothing is tidied up that a crash would not."""
        path, arguments = trigger.serialize()
        assert path == f"{type(trigger).__module__}.{type(trigger).__qualname__}"
        made = type(trigger)(**arguments)
        made.trigger_id = 7
        watched = [Asset(name=name, uri=f"x://{name}") for name in assets or ("orders",)]
        made.asset_state_store = AssetStateStoreAccessors(inlets=watched)
        running = Running(self, made, SharedStreamManager(ack_timeout=ack_timeout))
        running.task = asyncio.create_task(running.run())
        try:
            yield running
        finally:
            running.task.cancel()
            with contextlib.suppress(asyncio.CancelledError, AckTimeout):
                await running.task


@dataclass
class Running:
    """One run of the trigger."""

    triggerer: Triggerer
    trigger: BaseEventTrigger
    streams: SharedStreamManager
    fired: asyncio.Queue[tuple[int, dict[str, Any]]] = field(default_factory=asyncio.Queue)
    task: asyncio.Task[None] = field(init=False)

    async def run(self) -> None:
        key = self.trigger.shared_stream_key()
        stream = self.streams.subscribe(trigger_id=7, trigger=self.trigger, key=key)
        try:
            async for event in self.trigger.filter_shared_stream(stream):
                seq = self.streams.bind_pending_event(trigger_id=7, key=key)
                assert seq is not None
                self.fired.put_nowait((seq, event.payload))
        finally:
            await self.streams.unsubscribe(7, key)

    async def event(self) -> dict[str, Any]:
        """Return the next event, which the database has stored then."""
        seq, payload = await self.fired.get()
        self.triggerer.stored.append(payload)
        self.streams.confirm_persisted([seq])
        return payload

    async def unstored(self) -> dict[str, Any]:
        """Return the next event, which is never stored."""
        return (await self.fired.get())[1]
