"""The life of a run: registered by whoever starts it, claimed by its driver, ended once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg.types.json import Jsonb

from spark_jobs.contracts.errors import ConfigError, FencedError
from spark_jobs.contracts.events import RunFinished
from spark_jobs.contracts.run_request import EndState, RunRequest
from spark_jobs.contracts.tracker.connect import Connection, classified, query, raw, short_transaction
from spark_jobs.contracts.tracker.fence import (
    LOCK_TIMEOUT_MS,
    check_fence,
    end_older_sessions,
    fenced,
    with_fence_row,
)
from spark_jobs.contracts.tracker.statements import application_name, notify

__all__ = [
    "LOCK_TIMEOUT_MS",
    "application_name",
    "check_fence",
    "claim_epoch",
    "finish_run",
    "heartbeat",
    "read_request",
    "register_run",
]


def register_run(conn: Connection, schema: str, request: RunRequest, *, lock_timeout_ms: int | None = None) -> None:
    """Make this the pipeline's newest run: from now on no commit of an older run succeeds.

    Waits for a commit under way. A driver that is frozen within its commit is not waited for longer than
    ``lock_timeout_ms`` (the request's ``load.takeoverTimeout`` unless given): its session is ended. The same request
    again changes nothing.

    :raises FencedError: if the run was registered before, and a newer one since.
    :raises ConfigError: if the run id is taken by another request.
    :raises TransientError: if another session keeps the pipeline's row.
    """
    pipeline_id = request.pipeline_id
    with_fence_row(
        conn,
        schema,
        pipeline_id,
        lambda: _register(conn, schema, request),
        lambda: _epoch(conn, schema, pipeline_id),
        lock_timeout_ms=request.takeover_ms if lock_timeout_ms is None else lock_timeout_ms,
    )


def claim_epoch(
    conn: Connection, schema: str, pipeline_id: str, run_id: str, *, lock_timeout_ms: int = LOCK_TIMEOUT_MS
) -> int:
    """Take the pipeline's next epoch for the driver that calls, and end older drivers' open transactions.

    A driver that the cluster starts again takes a further one, which fences the first.

    :returns: the epoch, from 1.
    :raises FencedError: if the run is not the newest, or has ended.
    :raises TransientError: if another session keeps the pipeline's row.
    """
    epoch = with_fence_row(
        conn,
        schema,
        pipeline_id,
        lambda: _claim(conn, schema, pipeline_id, run_id),
        lambda: _epoch_while_newest(conn, schema, pipeline_id, run_id),
        lock_timeout_ms=lock_timeout_ms,
    )
    # They cannot commit any more, but may hold locks on the target.
    with classified(f"Ending the older sessions of pipeline {pipeline_id!r}"):
        end_older_sessions(conn, schema, pipeline_id, epoch - 1)
    return epoch


def read_request(conn: Connection, schema: str, run_id: str) -> RunRequest:
    """Return what the run was started with.

    :raises ConfigError: if no such run is registered.
    :raises ContractVersionError: if another version of this package registered it.
    """
    with classified(f"Reading the request of run {run_id!r}"):
        row = query(conn, schema, "SELECT request FROM {schema}.pipeline_run WHERE run_id = %s", (run_id,)).fetchone()
    if row is None:
        raise ConfigError(
            f"Run {run_id!r} is not registered in schema {schema!r}",
            expected="a run that the operator or `etl-pipeline run` registered there",
            cure="check that driver and starter name the same connection and tracker schema",
        )
    return RunRequest.from_row(row[0])


def heartbeat(
    conn: Connection,
    schema: str,
    run_id: str,
    application_id: str | None = None,
    *,
    trigger: str | None = None,
    ui_url: str | None = None,
) -> None:
    """Say that the run's driver lives.

    :param application_id: Spark's; as the others kept once given. :param trigger: how the query starts its
        micro-batches. :param ui_url: of Spark's UI.
    """
    with short_transaction(conn, f"The heartbeat of run {run_id!r}"):
        query(
            conn,
            schema,
            "UPDATE {schema}.pipeline_run SET heartbeat_at = clock_timestamp(), "
            "application_id = coalesce(%s::text, application_id), trigger = coalesce(%s::text, trigger), "
            "ui_url = coalesce(%s::text, ui_url) WHERE run_id = %s",
            (application_id, trigger, ui_url, run_id),
        )


def finish_run(
    conn: Connection,
    schema: str,
    run_id: str,
    state: EndState,
    exit_code: int,
    *,
    error: Mapping[str, Any] | None = None,
    result: Mapping[str, Any] | None = None,
) -> bool:
    """Record how the run ended. The first word stays: an operator does not overwrite what the driver said.

    :param error: :meth:`EtlError.to_json`.
    :param result: ``RunResult.model_dump(mode="json")``.
    :returns: whether this call ended the run; then a :class:`RunFinished` is sent with its commit.
    """
    with short_transaction(conn, f"Recording the end of run {run_id!r}"):
        ended = query(
            conn,
            schema,
            "UPDATE {schema}.pipeline_run SET state = %(state)s, exit_code = %(exit_code)s, error = %(error)s, "
            "result = %(result)s, ended_at = clock_timestamp() WHERE run_id = %(run_id)s AND ended_at IS NULL "
            "RETURNING pipeline_id",
            {
                "state": state,
                "exit_code": int(exit_code),
                "error": None if error is None else Jsonb(dict(error)),
                "result": None if result is None else Jsonb(dict(result)),
                "run_id": run_id,
            },
        )
        row = ended.fetchone()
        if row is not None:
            # Whoever waits for the run is woken by the commit of its end.
            event = RunFinished(pipeline_id=row[0], run_id=run_id, state=state, exit_code=int(exit_code))
            raw(conn, notify(), event.payload())
    return row is not None


def _register(conn: Connection, schema: str, request: RunRequest) -> None:
    values = {
        "pipeline_id": request.pipeline_id,
        "run_id": request.run_id,
        "request": Jsonb(request.model_dump(mode="json")),
        "started_by": request.started_by,
    }
    query(
        conn,
        schema,
        "INSERT INTO {schema}.pipeline (pipeline_id) VALUES (%(pipeline_id)s) ON CONFLICT DO NOTHING",
        values,
    )
    # The lock first: everything after it sees what the holder before left.
    newest = query(
        conn,
        schema,
        "SELECT newest_run_id FROM {schema}.pipeline WHERE pipeline_id = %(pipeline_id)s FOR NO KEY UPDATE",
        values,
    ).fetchone()
    if _registered_before(conn, schema, request, values, newest_run_id=newest[0] if newest else None):
        return
    query(
        conn,
        schema,
        "UPDATE {schema}.pipeline SET newest_run_id = %(run_id)s WHERE pipeline_id = %(pipeline_id)s",
        values,
    )
    query(
        conn,
        schema,
        "UPDATE {schema}.pipeline_run SET state = 'fenced' "
        "WHERE pipeline_id = %(pipeline_id)s AND run_id <> %(run_id)s AND state IN ('registered', 'running')",
        values,
    )


def _registered_before(
    conn: Connection, schema: str, request: RunRequest, values: Mapping[str, Any], *, newest_run_id: str | None
) -> bool:
    inserted = query(
        conn,
        schema,
        "INSERT INTO {schema}.pipeline_run (run_id, pipeline_id, request, started_by) "
        "VALUES (%(run_id)s, %(pipeline_id)s, %(request)s, %(started_by)s) ON CONFLICT (run_id) DO NOTHING",
        values,
    )
    if inserted.rowcount:
        return False
    same = query(
        conn,
        schema,
        "SELECT request = %(request)s FROM {schema}.pipeline_run WHERE run_id = %(run_id)s",
        values,
    ).fetchone()
    if same != (True,):
        raise ConfigError(
            f"The run id {request.run_id!r} is taken",
            found="a run that was registered with another request",
            cure="give every start of a pipeline a run id of its own",
        )
    if newest_run_id != request.run_id:
        raise fenced(conn, schema, request.pipeline_id, request.run_id, None)
    return True


def _claim(conn: Connection, schema: str, pipeline_id: str, run_id: str) -> int:
    values = {"pipeline_id": pipeline_id, "run_id": run_id}
    row = query(
        conn,
        schema,
        "UPDATE {schema}.pipeline SET epoch = epoch + 1, epoch_run_id = %(run_id)s "
        "WHERE pipeline_id = %(pipeline_id)s AND newest_run_id = %(run_id)s RETURNING epoch",
        values,
    ).fetchone()
    if row is None:
        raise fenced(conn, schema, pipeline_id, run_id, None)
    epoch: int = row[0]
    started = query(
        conn,
        schema,
        "UPDATE {schema}.pipeline_run SET state = 'running', epoch = %(epoch)s, heartbeat_at = clock_timestamp(), "
        "started_at = coalesce(started_at, clock_timestamp()) WHERE run_id = %(run_id)s AND ended_at IS NULL",
        {**values, "epoch": epoch},
    )
    if not started.rowcount:
        raise FencedError(
            f"Run {run_id!r} of pipeline {pipeline_id!r} has ended already",
            found="a driver that came up after its run was given up",
            expected="a run that was registered and has not ended",
            cure="start the pipeline again, as a new run",
        )
    return epoch


def _epoch(conn: Connection, schema: str, pipeline_id: str) -> int:
    row = query(conn, schema, "SELECT epoch FROM {schema}.pipeline WHERE pipeline_id = %s", (pipeline_id,)).fetchone()
    return row[0] if row else 0


def _epoch_while_newest(conn: Connection, schema: str, pipeline_id: str, run_id: str) -> int:
    # One statement: the epochs given until a newer run registers are all older than this claim.
    row = query(
        conn,
        schema,
        "SELECT epoch FROM {schema}.pipeline WHERE pipeline_id = %s AND newest_run_id = %s",
        (pipeline_id, run_id),
    ).fetchone()
    if row is None:
        raise fenced(conn, schema, pipeline_id, run_id, None)
    return int(row[0])
