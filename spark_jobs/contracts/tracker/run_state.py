"""How a run is: one answer for everybody who asks, by the clock of the ledger's server alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from psycopg.rows import dict_row
from pydantic import BaseModel, ConfigDict

from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.run_request import RunState
from spark_jobs.contracts.tracker.connect import Connection, classified, query

SILENT_AFTER_SECONDS: Final = 120
"""How long a driver may say nothing before it counts as silent.

It beats every ten seconds. Twelve beats in a row are missed by no restart of a server, no failover of a minute and no
pause of a machine that is merely busy. The same limit is what `prepared resolve` and replays take a driver for gone by.
"""

SILENCE: Final = """extract(epoch FROM clock_timestamp() - greatest(
    coalesce(run.heartbeat_at, run.registered_at),
    CASE WHEN run.state = 'running' THEN pg_postmaster_start_time() END))::float"""
"""SQL: seconds since ``run`` last gave a sign of life. While its server was down a driver could not give any."""


NEWEST_RUN: Final = """coalesce(pipeline.newest_run_id, (
    SELECT own.run_id FROM {schema}.pipeline_run own WHERE own.pipeline_id = pipeline.pipeline_id
    ORDER BY own.registered_at DESC LIMIT 1))"""
"""SQL: the id of the newest run of ``pipeline``. By the fence: a clock may have been set back between two runs. A run
that was given up has lost its place there, and is the newest until another is registered."""


class RunPhase(StrEnum):
    """What can be said of a run."""

    NEVER_STARTED = "never_started"
    """There is no run: the pipeline was never started."""
    REGISTERED = "registered"
    """Somebody has started it; its driver has not come up yet."""
    RUNNING = "running"
    SILENT = "silent"
    """Its driver came up, never said how it ended, and has said nothing for :data:`SILENT_AFTER_SECONDS`."""
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"
    FENCED = "fenced"
    """A newer run took over, or it was given up."""


_ADVICE: Final = {
    RunPhase.NEVER_STARTED: "start it",
    RunPhase.REGISTERED: "its driver has not come up: look at what starts it (spark-submit, the cluster's queue)",
    RunPhase.SILENT: "its driver was killed, ran out of memory or lost its machine or network: run it again",
}


class RunLife(BaseModel):
    """A run's life so far. Ages are seconds by the server's clock."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    phase: RunPhase
    run_id: str | None = None
    pipeline_id: str | None = None
    application_id: str | None = None
    """Spark's."""
    trigger: str | None = None
    ui_url: str | None = None
    """Of Spark's own UI, which is there while the run is."""
    registered_at: datetime | None = None
    started_at: datetime | None = None
    """When its driver came up first; None when none ever did, however the run ended."""
    heartbeat_at: datetime | None = None
    ended_at: datetime | None = None
    silent_seconds: float | None = None
    """Since its last sign of life; None once it has ended."""
    exit_code: int | None = None
    error: dict[str, Any] | None = None

    @property
    def advice(self) -> str:
        """What to do about it, in words; empty where nothing is."""
        return _ADVICE.get(self.phase, "")


@dataclass(frozen=True, slots=True)
class NewestRun:
    """A pipeline's newest run. :param request: as it is stored, unchecked; None where there is no run."""

    life: RunLife
    request: dict[str, Any] | None


_COLUMNS: Final = f"""run.run_id, run.state, run.application_id, run.trigger, run.ui_url, run.registered_at,
    run.started_at, run.heartbeat_at, run.ended_at, run.exit_code, run.error,
    CASE WHEN run.ended_at IS NULL THEN {SILENCE} END AS silent_seconds"""
_LIFE: Final = f"SELECT run.pipeline_id, {_COLUMNS} FROM {{schema}}.pipeline_run run"  # noqa: S608
_OF_RUN: Final = f"{_LIFE} WHERE run.run_id = %s"
_NEWEST: Final = f"{_LIFE} WHERE run.run_id = (SELECT {NEWEST_RUN} FROM {{schema}}.pipeline WHERE pipeline_id = %s)"  # noqa: S608
_NEWEST_OF: Final = f"""
SELECT pipeline.pipeline_id, run.request, {_COLUMNS}
FROM {{schema}}.pipeline LEFT JOIN {{schema}}.pipeline_run run ON run.run_id = {NEWEST_RUN}
WHERE pipeline.pipeline_id = ANY (%s)"""  # noqa: S608
_NEWEST_REQUEST: Final = f"""
SELECT run.request FROM {{schema}}.pipeline_run run
WHERE run.run_id = (SELECT {NEWEST_RUN} FROM {{schema}}.pipeline WHERE pipeline_id = %s)"""  # noqa: S608 - constants


def run_phase(state: RunState | None, silent_seconds: float | None) -> RunPhase:
    """Tell what can be said of a run.

    :param state: ``pipeline_run.state``; None when there is no run.
    :param silent_seconds: :data:`SILENCE`, of a run that is ``running``.
    """
    if state is None:
        return RunPhase.NEVER_STARTED
    if state == "running" and silent_seconds is not None and silent_seconds > SILENT_AFTER_SECONDS:
        return RunPhase.SILENT
    return RunPhase(state)


def run_life(conn: Connection, schema: str, run_id: str) -> RunLife:
    """Return a run's life.

    :raises ConfigError: if no such run is registered.
    """
    found = _read(conn, schema, _OF_RUN, run_id)
    if found is None:
        raise ConfigError(
            f"Run {run_id!r} is not registered in schema {schema!r}",
            cure="check that the connection and the tracker schema are those of the run",
        )
    return found


def newest_run_life(conn: Connection, schema: str, pipeline_id: str) -> RunLife:
    """Return the life of a pipeline's newest run; ``never_started`` where the ledger knows none."""
    unknown = RunLife(phase=run_phase(None, None), pipeline_id=pipeline_id)
    return _read(conn, schema, _NEWEST, pipeline_id) or unknown


def newest_runs(conn: Connection, schema: str, pipeline_ids: Sequence[str]) -> dict[str, NewestRun]:
    """Return the newest runs of those pipelines that the ledger knows, by the pipelines' ids."""
    with classified("Reading how runs are"):
        rows = query(conn, schema, _NEWEST_OF, (list(pipeline_ids),), row_factory=dict_row).fetchall()
    return {row["pipeline_id"]: NewestRun(request=row.pop("request"), life=_life(row)) for row in rows}


def newest_request(conn: Connection, schema: str, pipeline_id: str) -> dict[str, Any] | None:
    """Return the stored request of a pipeline's newest run, unchecked; None where the ledger knows none."""
    with classified(f"Looking up the newest run of pipeline {pipeline_id!r}"):
        row = query(conn, schema, _NEWEST_REQUEST, (pipeline_id,)).fetchone()
    return None if row is None else dict(row[0])


def _read(conn: Connection, schema: str, statement: str, key: str) -> RunLife | None:
    with classified("Reading how a run is"):
        row: dict[str, Any] | None = query(conn, schema, statement, (key,), row_factory=dict_row).fetchone()
    return None if row is None else _life(row)


def _life(row: dict[str, Any]) -> RunLife:
    return RunLife(phase=run_phase(row.pop("state"), row["silent_seconds"]), **row)
