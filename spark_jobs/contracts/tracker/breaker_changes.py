"""Which circuit breakers the runs of one pipeline have opened and closed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from psycopg.rows import class_row

from spark_jobs.contracts.tracker.connect import Connection, classified, query

_CHANGES: Final = """
SELECT e.system, e.at, e.from_state, e.to_state, e.run_id, e.reason, b.state AS state_now, b.reopen_at
FROM {schema}.circuit_breaker_event e JOIN {schema}.circuit_breaker b USING (system)
WHERE e.pipeline_id = %s ORDER BY e.event_id DESC LIMIT %s"""


@dataclass(frozen=True, slots=True)
class BreakerChange:
    """One change of a breaker's state, and how the breaker is now.

    :param run_id: the run that changed it; None for a person. :param reopen_at: until when an open one is left alone.
    """

    system: str
    at: datetime
    from_state: str
    to_state: str
    run_id: str | None
    reason: str
    state_now: str
    reopen_at: datetime | None


def breaker_changes(conn: Connection, schema: str, pipeline_id: str, limit: int = 20) -> list[BreakerChange]:
    """Return what the pipeline's own runs have changed, the newest first."""
    with classified("Reading the changes of circuit breakers"):
        return query(conn, schema, _CHANGES, (pipeline_id, limit), row_factory=class_row(BreakerChange)).fetchall()
