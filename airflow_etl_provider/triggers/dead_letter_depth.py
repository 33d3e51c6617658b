"""Waits in the triggerer for a number of dead letters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from airflow_etl_provider.hooks.ledger import LedgerHook
from spark_jobs.contracts.errors import EtlError


@dataclass(frozen=True)
class Depth:
    """What is counted, and when it is enough. One of ``at_most`` and ``at_least`` is set."""

    pipeline_id: str | None
    ledger_conn_id: str
    tracker_schema: str
    at_most: int | None
    at_least: int | None
    statuses: tuple[str, ...]
    stages: tuple[str, ...]
    error_classes: tuple[str, ...]

    def look(self) -> list[dict[str, Any]]:
        """Return the letters there are now, by kind.

        :raises EtlError: the ledger cannot be read.
        """
        counts = LedgerHook(self.ledger_conn_id, schema=self.tracker_schema).count_letters(
            self.pipeline_id, statuses=self.statuses, stages=self.stages, error_classes=self.error_classes
        )
        return [count.model_dump(mode="json") for count in counts]

    def satisfied_by(self, counts: list[dict[str, Any]]) -> bool:
        """Tell whether these are few, or many, enough."""
        letters = sum(int(count["letters"]) for count in counts)
        if self.at_most is not None:
            return letters <= self.at_most
        return letters >= (self.at_least or 0)

    @classmethod
    def from_json(cls, arguments: dict[str, Any]) -> Depth:
        """Return what :meth:`to_json` has written."""
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in arguments.items()}
        return cls(**fields)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a trigger's arguments."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


class DeadLetterDepthTrigger(BaseTrigger):
    """Fires once enough, or few enough, dead letters wait.

    A ledger that does not answer is asked again; one that cannot be read at all ends the wait with its error.

    :param poll_seconds: how long between two looks. The others as :class:`Depth`.
    """

    def __init__(self, *, poll_seconds: float = 60.0, **depth: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.poll_seconds = poll_seconds
        self.depth = Depth.from_json(depth)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return how the trigger is made again."""
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        return path, {**self.depth.to_json(), "poll_seconds": self.poll_seconds}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until it is enough."""
        while True:
            try:
                # A look takes milliseconds, and psycopg would block the triggerer's loop meanwhile.
                counts = await sync_to_async(self.depth.look)()
            except EtlError as error:
                if not error.retryable:
                    yield TriggerEvent({"status": "error", "message": str(error)})  # type: ignore[no-untyped-call]
                    return
                self.log.warning("The ledger does not answer; asking again in %s s. %s", self.poll_seconds, error)
            else:
                if self.depth.satisfied_by(counts):
                    yield TriggerEvent({"status": "satisfied", "counts": counts})  # type: ignore[no-untyped-call]
                    return
            await asyncio.sleep(self.poll_seconds)
