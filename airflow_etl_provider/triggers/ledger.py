"""Waits in the triggerer until a condition over the ledger holds."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, Final

from airflow.triggers.base import BaseTrigger, TaskSuccessEvent, TriggerEvent
from asgiref.sync import sync_to_async

from airflow_etl_provider.hooks.ledger import LedgerHook
from airflow_etl_provider.triggers.ledger_watch import LedgerWatch, LookTooSlowError, watching
from spark_jobs.contracts.errors import ConnectionMissingError, EtlError, LoginRefusedError
from spark_jobs.contracts.watch import registry
from spark_jobs.contracts.watch.condition import Condition

# How long a connection may be missing, or its login refused, and how long until it is looked up again.
_GRACE_SECONDS: Final = 600.0
_AGAIN_SECONDS: Final = 10.0
# Who waits says so again after so long, whatever it waits for.
_TOLD_AGAIN_SECONDS: Final = 1800.0
_SLOW_LOOKS: Final = 3
BACKSTOP: Final = timedelta(minutes=2)
"""How much later than ``give_up_at`` Airflow's own limit for a deferral is: that is for a triggerer that is gone. The
trigger's comes first, and says what was seen."""


SETTLING_SECONDS: Final = 10.0
"""How long after its start the trigger of a task that goes on in a worker fires at the earliest.

Airflow 3.3 fails a task that goes on before its scheduler has heard that the process which deferred it has ended:
"finished with state success, but the task instance's state attribute is queued" (apache/airflow#67287, #72716). To hear
it takes the scheduler seconds.
"""


class LedgerTrigger(BaseTrigger):
    """Fires once a condition holds, can never hold, or time is over.

    It looks at once, with each commit of the pipeline, and from time to time; after a restart of the database or of the
    triggerer it looks again. All triggers of a triggerer share one connection that listens, and one that asks. A ledger
    that does not answer is asked again until time is over.

    :param condition: :func:`spark_jobs.contracts.watch.registry.to_json` of it.
    :param ledger_conn_id: Airflow connection to the ledger's PostgreSQL. :param tracker_schema: the ledger's schema.
    :param poll_seconds: how long at most between two looks.
    :param give_up_at: when to stop waiting, ISO 8601 with a zone; never when None.
    :param end_from_trigger: whether the task succeeds with the condition, without a worker; its XCom is what was seen.
    :param settle_seconds: how long after its start it fires at the earliest, see :data:`SETTLING_SECONDS`; a success
        without a worker is not held up.
    """

    def __init__(
        self,
        *,
        condition: dict[str, Any],
        ledger_conn_id: str,
        tracker_schema: str = "etl",
        poll_seconds: float = 60.0,
        give_up_at: str | None = None,
        end_from_trigger: bool = False,
        settle_seconds: float = 0.0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.condition = condition
        self.ledger_conn_id = ledger_conn_id
        self.tracker_schema = tracker_schema
        self.poll_seconds = poll_seconds
        self.give_up_at = give_up_at
        self.end_from_trigger = end_from_trigger
        self.settle_seconds = settle_seconds
        self._refused_since: float | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return how the trigger is made again."""
        names = ("condition", "ledger_conn_id", "tracker_schema", "poll_seconds", "give_up_at", "end_from_trigger")
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        return path, {name: getattr(self, name) for name in (*names, "settle_seconds")}

    def ledger(self) -> LedgerHook:
        """Return the ledger that is looked at."""
        return LedgerHook(self.ledger_conn_id, schema=self.tracker_schema)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until it holds."""
        began = monotonic()
        event = await self._event()
        if not isinstance(event, TaskSuccessEvent):
            await asyncio.sleep(max(self.settle_seconds - (monotonic() - began), 0))
        yield event

    async def _event(self) -> TriggerEvent:
        while True:
            try:
                return await self._waited()
            except (LoginRefusedError, ConnectionMissingError) as error:
                # A password that is changed, an API server that is away: the task itself had a connection that worked.
                self._refused_since = self._refused_since or monotonic()
                left = self._seconds_left()
                if left <= 0:
                    return _event({"status": "timeout", "message": str(error)})
                if monotonic() - self._refused_since > _GRACE_SECONDS:
                    return _event({"status": "error", "message": str(error)})
                self.log.warning("Looking the connection up again: %s", error)
                await asyncio.sleep(min(_AGAIN_SECONDS, left))
            except EtlError as error:
                return _event({"status": "error", "message": str(error)})

    async def _waited(self) -> TriggerEvent:
        condition = registry.from_json(self.condition)
        hook = self.ledger()
        # Airflow is asked for the connection, and would block the triggerer's loop meanwhile.
        database = await sync_to_async(lambda: hook.database)()
        async with watching(database) as watch, watch.subscribed(condition.pipeline) as changed:
            return await self._until(condition, watch, changed)

    async def _until(self, condition: Condition, watch: LedgerWatch, changed: asyncio.Event) -> TriggerEvent:
        said, told_at, slow = "", 0.0, 0
        while True:
            changed.clear()
            pause = self.poll_seconds
            try:
                seen = await watch.look(condition, self.tracker_schema)
            except EtlError as error:
                # One question is asked at a time: one that never gets its answer keeps all others waiting.
                slow = slow + 1 if isinstance(error, LookTooSlowError) else 0
                if not error.retryable or slow >= _SLOW_LOOKS:
                    raise
                message = str(error)
                if not slow:
                    # The commit that woke it was not seen: there may be no other.
                    pause = min(pause, _AGAIN_SECONDS)
            else:
                slow = 0
                # Whoever lets it in has not refused it for ten minutes, however often passwords are changed.
                self._refused_since = None
                message = seen.message
                if seen.done:
                    self.log.info("%s", message)
                    return self._satisfied(message, seen.value)
            if message != said or monotonic() - told_at > _TOLD_AGAIN_SECONDS:
                self.log.info("%s", message)
                said, told_at = message, monotonic()
            if (left := self._seconds_left()) <= 0:
                return _event({"status": "timeout", "message": message})
            # Not all at once, where many began together.
            with suppress(TimeoutError):
                pause *= random.uniform(0.8, 1.0)  # noqa: S311 - no secret
                await asyncio.wait_for(changed.wait(), min(pause, left))

    def _satisfied(self, message: str, value: dict[str, Any]) -> TriggerEvent:
        if self.end_from_trigger:
            return TaskSuccessEvent(xcoms={"return_value": value})
        return _event({"status": "satisfied", "message": message, "value": value})

    def _seconds_left(self) -> float:
        if self.give_up_at is None:
            return float("inf")
        return (datetime.fromisoformat(self.give_up_at) - datetime.now(UTC)).total_seconds()


def _event(payload: dict[str, Any]) -> TriggerEvent:
    return TriggerEvent(payload)  # type: ignore[no-untyped-call]
