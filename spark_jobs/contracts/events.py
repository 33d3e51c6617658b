"""Progress events, sent with ``NOTIFY`` in the transaction that they tell of: no event without its commit.

They are hints for whoever watches; the ledger is what counts.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from spark_jobs.contracts.errors import ContractVersionError
from spark_jobs.contracts.run_request import CONTRACT_VERSION, EndState
from spark_jobs.contracts.tracker.statements import CHANNEL, MAX_NOTIFY_BYTES

__all__ = ["CHANNEL", "BatchCommitted", "Event", "RunFinished", "read_event"]


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    version: int = CONTRACT_VERSION
    pipeline_id: str
    run_id: str

    def payload(self) -> str:
        """Return the JSON text for ``NOTIFY``.

        :raises ValueError: if it is longer than PostgreSQL takes.
        """
        # ASCII only, so that its length is the same in every database encoding.
        text = json.dumps(self.model_dump(mode="json"), ensure_ascii=True, separators=(",", ":"))
        if len(text) > MAX_NOTIFY_BYTES:
            raise ValueError(f"a progress event of {len(text)} bytes; PostgreSQL takes {MAX_NOTIFY_BYTES}")
        return text


class BatchCommitted(_Event):
    """A micro-batch was committed; ``rows`` were written to the target."""

    event: Literal["batch_committed"] = "batch_committed"
    query_id: str
    batch_id: int
    epoch: int
    rows: int
    watermark: datetime | None = None


class RunFinished(_Event):
    """A run ended, well or not."""

    event: Literal["run_finished"] = "run_finished"
    state: EndState
    exit_code: int


Event = BatchCommitted | RunFinished


class _Envelope(RootModel[BatchCommitted | RunFinished]):
    root: BatchCommitted | RunFinished = Field(discriminator="event")


def read_event(payload: str) -> Event:
    """Read what came on the channel.

    :raises ContractVersionError: if it is not an event of this version.
    """
    event: Event | None
    try:
        event = _Envelope.model_validate_json(payload).root
    except ValidationError:
        event = None
    if event is None or event.version != CONTRACT_VERSION:
        raise ContractVersionError(
            f"A message on channel {CHANNEL} cannot be read",
            found=payload[:200],
            expected=f"a progress event of contract version {CONTRACT_VERSION}",
            cure="install the same version of airflow-etl-provider where Spark runs and where it is watched",
        )
    return event
