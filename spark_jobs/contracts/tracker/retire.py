"""Giving up a run: what whoever started it does when its driver is killed."""

from __future__ import annotations

from spark_jobs.contracts.exit_codes import ExitCode
from spark_jobs.contracts.tracker.connect import Connection, classified, query
from spark_jobs.contracts.tracker.fence import with_fence_row

_LOCK = """
SELECT p.epoch FROM {schema}.pipeline p JOIN {schema}.pipeline_run r USING (pipeline_id)
WHERE r.run_id = %(run_id)s FOR NO KEY UPDATE OF p
"""
_TAKE_THE_RIGHT = "UPDATE {schema}.pipeline SET newest_run_id = NULL WHERE newest_run_id = %(run_id)s"
_END = """
UPDATE {schema}.pipeline_run SET state = 'fenced', exit_code = %(exit_code)s, ended_at = clock_timestamp()
WHERE run_id = %(run_id)s AND ended_at IS NULL
"""
_WHERE = """
SELECT p.pipeline_id, p.epoch FROM {schema}.pipeline p JOIN {schema}.pipeline_run r USING (pipeline_id)
WHERE r.run_id = %(run_id)s AND p.newest_run_id = %(run_id)s
"""


def retire_run(conn: Connection, schema: str, run_id: str, *, lock_timeout_ms: int = 300) -> bool:
    """Take the run's right to commit away, without starting another one; record it as fenced if it has not ended.

    In a hurry: a commit under way is waited for ``lock_timeout_ms``, then its session is ended. A run that is not the
    pipeline's newest keeps what it has: it lost its right already.

    :returns: whether the run had the right until now.
    :raises TransientError: if another session keeps the pipeline's row.
    """
    values = {"run_id": run_id, "exit_code": int(ExitCode.FENCED)}
    with classified(f"Giving up run {run_id!r}"):
        where = query(conn, schema, _WHERE, values).fetchone()
    if where is None:
        return False
    pipeline_id, epoch = str(where[0]), int(where[1])

    def work() -> bool:
        query(conn, schema, _LOCK, values)
        taken = query(conn, schema, _TAKE_THE_RIGHT, values).rowcount == 1
        query(conn, schema, _END, values)
        return taken

    return with_fence_row(conn, schema, pipeline_id, work, lambda: epoch, lock_timeout_ms=lock_timeout_ms)
