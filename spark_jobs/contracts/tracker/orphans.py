"""What drivers that are gone have left, of all pipelines, cleared away without a driver.

The same as each run does for its own pipeline when it starts: decided batches are finished, undecided prepared
transactions rolled back, staging tables dropped, letters of abandoned replays given back, expired progress removed.
Never what a driver that is alive still needs, and never what others have made.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final
from uuid import UUID

from psycopg import sql
from psycopg.rows import class_row

from spark_jobs.contracts.cleanup import Orphan, SweepReport, SweepRequest
from spark_jobs.contracts.errors import EtlError
from spark_jobs.contracts.redaction import masked
from spark_jobs.contracts.reprocess_batches import owning_pipeline
from spark_jobs.contracts.tracker.cleanup import require_pipelines
from spark_jobs.contracts.tracker.connect import Connection, classified, query, set_local_role
from spark_jobs.contracts.tracker.left_behind import (
    LeftBehind,
    left_behind,
    resolve_left_behind,
    take_right_of_silent,
)
from spark_jobs.contracts.tracker.progress_retention import ProgressExpiry
from spark_jobs.contracts.tracker.replays import release
from spark_jobs.contracts.tracker.run_state import NEWEST_RUN, SILENCE
from spark_jobs.contracts.tracker.short_deletes import BusyError, number, server_time_before, short_delete
from spark_jobs.contracts.tracker.staging_names import StagingName, staging_of
from spark_jobs.logs.events import log_event

log = logging.getLogger("etl.cleanup")

_MINUTES_A_DAY: Final = 1_440
_ALIVE_SINCE: Final = f"{SILENCE} <= extract(epoch FROM clock_timestamp() - %(before)s)"
_DRIVERS: Final = f"""
SELECT pipeline.pipeline_id, pipeline.epoch, newest_run_id = epoch_run_id AS may_commit,
       run.ended_at IS NOT NULL AS ended, run.ended_at IS NULL AND {_ALIVE_SINCE} AS alive,
       (SELECT newest.request -> 'config' -> 'load' ->> 'role' FROM {{schema}}.pipeline_run newest
        WHERE newest.run_id = {NEWEST_RUN}) AS role
FROM {{schema}}.pipeline LEFT JOIN {{schema}}.pipeline_run run ON run.run_id = epoch_run_id
WHERE pipeline.pipeline_id = ANY (%(pipelines)s)"""  # noqa: S608 - constants
_DECIDED: Final = """
SELECT pipeline_id, batch_id FROM {schema}.batch_decision WHERE decided_at < %(before)s"""
_TABLES: Final = """
SELECT c.relname, pg_get_userbyid(c.relowner) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relkind = 'r' AND starts_with(c.relname, 'stage_') ORDER BY c.relname"""
# A replay that is being opened has its run's row first.
_ABANDONED: Final = f"""
SELECT r.pipeline_id, r.replay_id FROM {{schema}}.dead_letter_replay r
WHERE r.state = 'open' AND r.requested_at < %(before)s AND NOT EXISTS (
    SELECT FROM {{schema}}.pipeline_run run
    WHERE run.pipeline_id = r.pipeline_id || '/replay/' || r.replay_id AND run.ended_at IS NULL
      AND run.state IN ('registered', 'running') AND {_ALIVE_SINCE}
)
ORDER BY r.requested_at"""  # noqa: S608 - constants
_HELD: Final = """
SELECT (SELECT count(*) FROM {schema}.dead_letter_single WHERE status = 'replaying' AND replay_id = %(replay_id)s)
    + (SELECT coalesce(sum(letters), 0) FROM {schema}.dead_letter_bundle
       WHERE status = 'replaying' AND replay_id = %(replay_id)s)"""
_DONE: Final = {"decided": "committed", "undecided": "rolled back"}
_ALIVE: Final = "its driver is alive"


@dataclass(frozen=True, slots=True)
class _Driver:
    pipeline_id: str
    epoch: int
    may_commit: bool | None
    ended: bool
    alive: bool | None
    role: str | None


def sweep_orphans(conn: Connection, schema: str, request: SweepRequest) -> SweepReport:
    """Clear away what drivers that are gone have left; with ``dry_run`` say what there is.

    What cannot be cleared away is a problem of its pipeline alone: the others are swept all the same.

    :raises ConfigError: a pipeline that the ledger does not know.
    """
    require_pipelines(conn, schema, request.pipelines)
    before = server_time_before(conn, request.older_than_minutes / _MINUTES_A_DAY)
    sweep = _Sweep(conn, schema, request, before)
    found = [*sweep.prepared(), *sweep.staging(), *sweep.replays(), *sweep.progress()]
    for orphan in found:
        if orphan.state != "kept" and not request.dry_run:
            fields = orphan.model_dump(include={"kind", "name", "state", "letters", "rows"}, exclude_defaults=True)
            log_event(log, logging.INFO, "orphan_cleared", pipeline=orphan.pipeline_id, **fields)
    return SweepReport(dry_run=request.dry_run, orphans=tuple(found), problems=sweep.problems)


@dataclass(slots=True)
class _Sweep:
    conn: Connection
    schema: str
    request: SweepRequest
    before: datetime
    problems: dict[str, dict[str, Any]] = field(default_factory=dict)

    def prepared(self) -> Iterator[Orphan]:
        """Finish decided batches and roll back undecided parts of pipelines where one of them is old enough."""
        found = left_behind(self.conn, self.schema, silence=self._silence)
        with classified("Reading the decided micro-batches"):
            decided = set(query(self.conn, self.schema, _DECIDED, {"before": self.before}).fetchall())
        pipelines = [one for one in dict.fromkeys(item.pipeline_id for item in found) if self._wanted(one)]
        drivers = self._drivers(pipelines)
        for pipeline_id in pipelines:
            own = [item for item in found if item.pipeline_id == pipeline_id]
            if not any(self._due(item, decided) for item in own):
                yield from map(self._kept, own)
            elif self.request.dry_run:
                yield from (self._kept(item) if item.state == "running" else _shown(item) for item in own)
            else:
                yield from self._resolved(pipeline_id, self._role(drivers.get(pipeline_id)))
                yield from (self._kept(item) for item in own if item.state == "running")

    def staging(self) -> Iterator[Orphan]:
        """Drop the staging tables of drivers that cannot commit any more."""
        with classified("Looking for staging tables"):
            owners = dict(self.conn.execute(_TABLES, {"schema": self.schema}).fetchall())
            known = query(self.conn, self.schema, "SELECT pipeline_id FROM {schema}.pipeline").fetchall()
        tables = staging_of(owners, [row[0] for row in known], self.schema)
        wanted = [table for table in tables if self._wanted(table.pipeline_id)]
        drivers = self._drivers([table.pipeline_id for table in wanted])
        for table in wanted:
            driver, owner = drivers.get(table.pipeline_id), owners[table.name]
            why = self._attempt(table.pipeline_id, partial(self._drop, table, driver, owner))
            state = "kept" if why else "dropped"
            yield Orphan(kind="staging", pipeline_id=table.pipeline_id, name=table.name, state=state, why=why)

    def replays(self) -> Iterator[Orphan]:
        """Give back the letters of replays without a driver."""
        with classified("Looking for abandoned replays"):
            rows = query(self.conn, self.schema, _ABANDONED, {"before": self.before}).fetchall()
        for pipeline_id, replay_id in rows:
            if self._wanted(pipeline_id):
                yield self._replay(pipeline_id, replay_id)

    def progress(self) -> Iterator[Orphan]:
        """Remove progress that has expired."""
        if self.request.progress_days is None:
            return
        before = server_time_before(self.conn, self.request.progress_days)
        expiry = ProgressExpiry(self.conn, self.schema, before)
        for pipeline_id in filter(self._wanted, expiry.pipelines()):
            yield from self._expired(expiry, pipeline_id)

    def _expired(self, expiry: ProgressExpiry, pipeline_id: str) -> Iterator[Orphan]:
        rows = 0

        def remove() -> str:
            nonlocal rows
            if self.request.dry_run:
                rows = expiry.count(pipeline_id)
                return ""
            rows, stopped = expiry.remove(pipeline_id)
            if isinstance(stopped, EtlError):
                raise stopped
            return "another session is using the rest" if stopped else ""

        why = self._attempt(pipeline_id, remove)
        if rows or why:
            state = "removed" if rows else "kept"
            about = {"pipeline_id": pipeline_id, "name": "query_progress", "state": state, "why": why, "rows": rows}
            yield Orphan.model_validate({"kind": "progress", **about})

    def _replay(self, pipeline_id: str, replay_id: UUID) -> Orphan:
        letters = number(self.conn, self.schema, _HELD, {"replay_id": replay_id})

        def give_back() -> str:
            nonlocal letters
            letters = release(self.conn, self.schema, [replay_id])
            return ""

        why = "" if self.request.dry_run else self._attempt(pipeline_id, give_back)
        state = "kept" if why else "given back"
        return Orphan(
            kind="replay", pipeline_id=pipeline_id, name=str(replay_id), state=state, why=why, letters=letters
        )

    def _resolved(self, pipeline_id: str, role: str | None) -> Iterator[Orphan]:
        done: list[LeftBehind] = []

        def resolve() -> str:
            done.extend(resolve_left_behind(self.conn, self.schema, pipeline_id, role=role, silence=self._silence))
            return ""

        why = self._attempt(pipeline_id, resolve)
        yield from map(_shown, done)
        if why:
            yield Orphan(kind="prepared", pipeline_id=pipeline_id, name="", state="kept", why=why)

    def _drop(self, table: StagingName, driver: _Driver | None, owner: str) -> str:
        """Drop a staging table; return why it stays, "" if it went."""
        if driver is None or table.epoch > driver.epoch:
            return "its epoch is none that the ledger has given: was the database restored?"
        if table.epoch == driver.epoch and driver.alive:
            return _ALIVE
        if self.request.dry_run:
            return ""
        if table.epoch == driver.epoch and driver.may_commit and not driver.ended and not self._lost_its_right(driver):
            return _ALIVE
        role = self._role(driver) or (owner if owner != self.conn.info.user else None)
        try:
            with short_delete(self.conn, "Dropping a staging table"):
                set_local_role(self.conn, role)
                self.conn.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(self.schema, table.name)))
        except BusyError:
            return "another session is using it"
        return ""

    def _lost_its_right(self, driver: _Driver) -> bool:
        if take_right_of_silent(self.conn, self.schema, driver.pipeline_id, silence=self._silence):
            return True
        # It has woken up, or it has ended or was replaced before its right could be taken.
        now = self._drivers([driver.pipeline_id]).get(driver.pipeline_id)
        return now is None or now.epoch > driver.epoch or now.ended or not now.may_commit

    def _attempt(self, pipeline_id: str, work: Callable[[], str]) -> str:
        """Do something for one pipeline; return why it could not be done, which is then a problem of that pipeline."""
        try:
            return work()
        except EtlError as error:
            self.problems.setdefault(pipeline_id, masked(error.to_json()))
            log_event(log, logging.ERROR, "orphan_not_cleared", pipeline=pipeline_id, error=str(error))
            return error.what

    @property
    def _silence(self) -> timedelta:
        return timedelta(minutes=self.request.older_than_minutes)

    def _drivers(self, pipelines: list[str]) -> dict[str, _Driver]:
        values = {"before": self.before, "pipelines": pipelines}
        with classified("Reading the fences"):
            cursor = query(self.conn, self.schema, _DRIVERS, values, row_factory=class_row(_Driver))
            return {driver.pipeline_id: driver for driver in cursor.fetchall()}

    def _wanted(self, pipeline_id: str) -> bool:
        chosen = self.request.pipelines
        return not chosen or pipeline_id in chosen or owning_pipeline(pipeline_id) in chosen

    def _due(self, item: LeftBehind, decided: set[tuple[str, int]]) -> bool:
        if item.state == "running":
            return False
        return (item.pipeline_id, item.batch_id) in decided or (item.since is not None and item.since < self.before)

    def _role(self, driver: _Driver | None) -> str | None:
        return self.request.role or (driver.role if driver else None)

    def _kept(self, item: LeftBehind) -> Orphan:
        why = _ALIVE if item.state == "running" else f"nothing older than {self.request.older_than_minutes:g} minutes"
        return _shown(item, "kept", why)


def _shown(item: LeftBehind, state: str | None = None, why: str = "") -> Orphan:
    values = {
        "kind": "prepared" if item.name else "decided",
        "pipeline_id": item.pipeline_id,
        "name": item.name or str(item.batch_id),
        "state": state or _DONE.get(item.state, item.state),
        "why": why,
    }
    return Orphan.model_validate(values)
