"""The epoch fence: a driver may commit only while its run is the pipeline's newest and its epoch the last one given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from psycopg import errors
from psycopg.pq import TransactionStatus

from spark_jobs.contracts.errors import EtlError, FencedError, TransientError
from spark_jobs.contracts.tracker.connect import Connection, classified, query, raw, short_transaction
from spark_jobs.contracts.tracker.statements import application_name, lock_epoch, quote_identifier, read_epoch, tag

T = TypeVar("T")

LOCK_TIMEOUT_MS: Final = 5_000
"""How long a new run waits for an older driver's commit before it ends that driver's sessions."""

_ATTEMPTS: Final = 4

# Only sessions in a transaction: behind a pooler an idle one belongs to nobody, or to somebody else by now. Epoch 0 is
# whoever registers or claims a run; of them only one whose client does nothing, which keeps the row from all others.
_TERMINATE: Final = """
SELECT pid, application_name, pg_terminate_backend(pid)
FROM (
    SELECT pid, application_name, state, state_change FROM pg_stat_activity
    WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()
      AND xact_start IS NOT NULL
      AND application_name LIKE %(tag)s || '%%' AND substr(application_name, length(%(tag)s) + 1) ~ '^[0-9]{{1,18}}$'
) AS older
WHERE substr(application_name, length(%(tag)s) + 1)::bigint <= %(epoch)s
  AND (substr(application_name, length(%(tag)s) + 1)::bigint > 0
    OR (state LIKE 'idle in transaction%%' AND state_change < clock_timestamp() - interval '1 second'))
"""


def check_fence(conn: Connection, schema: str, pipeline_id: str, run_id: str, epoch: int, *, lock: bool) -> None:
    """Return if this run may commit.

    :param lock: keep it so until the open transaction ends: no newer run can register before. Without it the answer
        may be out of date at once.
    :raises FencedError: if there is a newer run, or this run's driver was started again.
    :raises EtlError: if ``lock`` is asked for outside a transaction.
    """
    if lock and conn.info.transaction_status == TransactionStatus.IDLE:
        raise EtlError("A fence's lock needs an open transaction: it would be gone at once")
    ident = quote_identifier(schema)
    with classified(f"Reading the fence of pipeline {pipeline_id!r}"):
        statement = lock_epoch(ident) if lock else read_epoch(ident)
        rows = raw(conn, statement, pipeline_id, str(epoch), run_id)
        if rows != [(True,)]:
            raise fenced(conn, schema, pipeline_id, run_id, epoch)


def fenced(conn: Connection, schema: str, pipeline_id: str, run_id: str, epoch: int | None) -> FencedError:
    """Return the error for a run that lost, naming the run that won."""
    row = query(
        conn, schema, "SELECT newest_run_id, epoch FROM {schema}.pipeline WHERE pipeline_id = %s", (pipeline_id,)
    ).fetchone()
    newest, current = row or (None, None)
    found = f"newest run {newest!r}, epoch {current}" if row else "a pipeline without any run"
    return FencedError(
        f"Run {run_id!r} of pipeline {pipeline_id!r} may not commit any more",
        found=found,
        expected=f"newest run {run_id!r}" + (f", epoch {epoch}" if epoch is not None else ""),
        cure="nothing is lost: the newer run goes on where this one stopped; start runs of a pipeline one at a time",
    )


def end_older_sessions(conn: Connection, schema: str, pipeline_id: str, epoch: int) -> list[int]:
    """End this pipeline's sessions, of this role and database, that are in a transaction of ``epoch`` or an older one.

    :returns: the process ids of the ended backends.
    """
    rows = query(conn, schema, _TERMINATE, {"tag": tag(pipeline_id, schema), "epoch": epoch})
    return [pid for pid, _, ended in rows if ended]


def with_fence_row(
    conn: Connection,
    schema: str,
    pipeline_id: str,
    work: Callable[[], T],
    oldest_epoch: Callable[[], int],
    *,
    lock_timeout_ms: int = LOCK_TIMEOUT_MS,
) -> T:
    """Run ``work``, which locks the fence row, in a transaction of its own; end older drivers' sessions that hold it.

    :param oldest_epoch: the last epoch whose sessions may be ended; may raise, then nothing is ended.
    :raises TransientError: if somebody else keeps the row.
    """
    what = f"Registering a run of pipeline {pipeline_id!r}"
    name = application_name(pipeline_id, 0, schema)
    for _ in range(_ATTEMPTS):
        try:
            with short_transaction(conn, what, lock_timeout_ms=lock_timeout_ms, name=name):
                return work()
        except TransientError as error:
            if not isinstance(error.__cause__, errors.LockNotAvailable):
                raise
        with classified(what):
            end_older_sessions(conn, schema, pipeline_id, oldest_epoch())
    raise TransientError(
        f"{what} failed: another session holds the pipeline's row in {schema}.pipeline",
        found=f"no lock in {_ATTEMPTS} times {lock_timeout_ms} ms",
        expected="a session of an older driver, which is ended, with the same user and database",
        cure=f"look in pg_stat_activity for application names that begin with {tag(pipeline_id, schema)}",
    )
