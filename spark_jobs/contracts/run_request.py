"""What whoever starts a run leaves for the driver, and what the run leaves for whoever started it."""

from __future__ import annotations

import getpass
import socket
from datetime import datetime
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spark_jobs.contracts.config.durations import parse_duration
from spark_jobs.contracts.config.load import Load
from spark_jobs.contracts.errors import ContractVersionError
from spark_jobs.contracts.replay import ReplayRequest
from spark_jobs.contracts.reprocess_batches import ReprocessRequest

CONTRACT_VERSION: Final = 2
"""Raised whenever a driver of the version before could misread a request."""

RunState = Literal["registered", "running", "finished", "failed", "stopped", "fenced"]
EndState = Literal["finished", "failed", "stopped", "fenced"]
Resume = Literal["none", "from_ledger", "accept_new_checkpoint"]


class RunRequest(BaseModel):
    """One start of a pipeline. Kept in ``pipeline_run.request``; holds names of credentials, never a secret."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    run_id: str = Field(min_length=1, max_length=255)
    pipeline_id: str = Field(min_length=1, max_length=255)
    config: dict[str, Any]
    """The pipeline's JSON, variables already put in."""
    started_by: str
    resume: Resume = "none"
    replay: ReplayRequest | None = None
    """Of a run that replays dead letters of another pipeline, whose configuration is ``config``."""
    reprocess: ReprocessRequest | None = None
    """Of a run that does micro-batches of another pipeline again, whose configuration is ``config``."""
    tracker_schema: str = "etl"
    contract_version: int = CONTRACT_VERSION

    @property
    def takeover_ms(self) -> int:
        """``load.takeoverTimeout`` in milliseconds."""
        text = self.config.get("load", {}).get("takeoverTimeout") or Load.model_fields["takeover_timeout"].default
        return max(int(parse_duration(text).total_seconds() * 1000), 1)

    @classmethod
    def from_row(cls, request: dict[str, Any]) -> Self:
        """Read a stored request.

        :raises ContractVersionError: if it was written by another version of the contract, or cannot be read.
        """
        version = request.get("contract_version")
        if version != CONTRACT_VERSION:
            raise _version_error(f"contract version {version!r}")
        try:
            return cls.model_validate(request)
        except ValidationError as error:
            fields = ", ".join(".".join(map(str, problem["loc"])) for problem in error.errors(include_input=False))
            raise _version_error(f"a request of version {version} with unfitting {fields}") from None


class RunResult(BaseModel):
    """What a run did. Row counts are numbers of rows; durations are seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    pipeline_id: str
    state: RunState
    batches: int
    duplicates: int
    rows: dict[str, int]
    """By kind: source, passed, rejected, dead_lettered, late, filtered, deduplicated, sink, written, …"""
    start_offsets: Any = None
    end_offsets: Any = None
    watermark: datetime | None = None
    duration_seconds: float
    ledger: Literal["balanced", "unbalanced"]
    dead_letters: int
    retries: int = 0
    """Attempts that failed and were followed by another one."""


def _version_error(found: str) -> ContractVersionError:
    return ContractVersionError(
        "The run's request was written by another version of this package",
        found=found,
        expected=f"contract version {CONTRACT_VERSION}",
        cure="install the same version of airflow-etl-provider where the run is started and where Spark runs it",
    )


def user_at_host() -> str:
    """Return who runs this process, and where: what a run, or a letter that is given up, names."""
    return f"{getpass.getuser()}@{socket.gethostname()}"
