"""Circuit breakers in the ledger: their state, shared by all runs and pipelines, by the server's clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pybreaker
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb
from pydantic import BaseModel, ConfigDict

from spark_jobs.contracts.breaker import BreakerStorage, Refusal
from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.redaction import masked
from spark_jobs.contracts.tracker.connect import Connection, classified, query, short_transaction

_READ: Final = """
SELECT state, failures, successes, extract(epoch FROM reopen_at - clock_timestamp())::float AS seconds_left,
       coalesce(last_failure ->> 'what', '') AS last_failure,
       (SELECT extract(epoch FROM min(expires_at) - clock_timestamp())::float
        FROM {schema}.circuit_breaker_probe p WHERE p.system = b.system) AS probes_left
FROM {schema}.circuit_breaker b WHERE system = %(system)s"""

_COUNT_FAILURE: Final = """
INSERT INTO {schema}.circuit_breaker AS b (system, failures, last_failure, last_failure_at)
VALUES (%(system)s, 1, %(error)s, clock_timestamp())
ON CONFLICT (system) DO UPDATE SET failures = b.failures + 1,
    last_failure = coalesce(excluded.last_failure, b.last_failure), last_failure_at = excluded.last_failure_at"""

_NO_FAILURES: Final = """
UPDATE {schema}.circuit_breaker SET failures = 0 WHERE system = %(system)s AND state = 'closed'"""

_COUNT_SUCCESS: Final = """
WITH gone AS (DELETE FROM {schema}.circuit_breaker_probe WHERE system = %(system)s AND run_id = %(run_id)s)
UPDATE {schema}.circuit_breaker SET successes = successes + 1 WHERE system = %(system)s"""

_ENSURE: Final = "INSERT INTO {schema}.circuit_breaker (system) VALUES (%(system)s) ON CONFLICT DO NOTHING"

_FORGET_PROBES: Final = "DELETE FROM {schema}.circuit_breaker_probe WHERE system = %(system)s"

_LOCK: Final = """
SELECT state, coalesce(reopen_at <= clock_timestamp(), true) FROM {schema}.circuit_breaker
WHERE system = %(system)s FOR UPDATE"""

_MOVE: Final = """
UPDATE {schema}.circuit_breaker SET state = %(state)s, successes = 0,
    failures = CASE WHEN %(state)s = 'closed' THEN 0 ELSE failures END,
    opened_at = CASE WHEN %(state)s = 'open' THEN clock_timestamp() ELSE opened_at END,
    reopen_at = CASE WHEN %(state)s = 'open' THEN clock_timestamp() + make_interval(secs => %(reset)s)
                     ELSE reopen_at END
WHERE system = %(system)s"""

_EVENT: Final = """
INSERT INTO {schema}.circuit_breaker_event (system, from_state, to_state, run_id, pipeline_id, reason)
VALUES (%(system)s, %(before)s, %(state)s, %(run_id)s, %(pipeline_id)s, %(reason)s)"""

_EXPIRED: Final = """
DELETE FROM {schema}.circuit_breaker_probe WHERE system = %(system)s AND expires_at <= clock_timestamp()"""

_PROBES: Final = """
SELECT count(*) FILTER (WHERE run_id <> %(run_id)s) FROM {schema}.circuit_breaker_probe WHERE system = %(system)s"""

_TAKE: Final = """
INSERT INTO {schema}.circuit_breaker_probe (system, run_id, expires_at)
VALUES (%(system)s, %(run_id)s, clock_timestamp() + make_interval(secs => %(reset)s))
ON CONFLICT (system, run_id) DO UPDATE SET expires_at = excluded.expires_at"""

_LIST: Final = """
SELECT b.system, b.state, b.failures, b.successes, b.opened_at, b.reopen_at, b.last_failure_at,
       b.last_failure ->> 'what' AS last_failure,
       (SELECT count(*) FROM {schema}.circuit_breaker_probe p
        WHERE p.system = b.system AND p.expires_at > clock_timestamp()) AS probes
FROM {schema}.circuit_breaker b WHERE %(system)s::text IS NULL OR system = %(system)s ORDER BY system"""

_EVENTS: Final = """
SELECT at, from_state, to_state, run_id, pipeline_id, reason FROM {schema}.circuit_breaker_event
WHERE system = %s ORDER BY event_id DESC LIMIT %s"""

# From which states a change is still due; what another run has done meanwhile stays.
_DUE: Final = {"open": ("closed", "half-open"), "half-open": ("open",), "closed": ("half-open",)}


@dataclass(frozen=True, slots=True)
class _Known:
    state: str = pybreaker.STATE_CLOSED
    failures: int = 0
    successes: int = 0
    seconds_left: float | None = None
    last_failure: str = ""
    probes_left: float | None = None


class PostgresStorage(BreakerStorage):
    """A breaker's state in the ledger.

    :param session: opens an autocommit connection; closed after each step.
    :param run_id: who probes. :param reset_seconds: how long it stays open; a probe that says nothing for as long is
        given up.
    """

    def __init__(
        self,
        session: Callable[[], Connection],
        schema: str,
        system: str,
        *,
        run_id: str,
        pipeline_id: str,
        reset_seconds: float,
    ) -> None:
        super().__init__(system)
        self._session = session
        self._schema = schema
        self._values: dict[str, Any] = {
            "system": system,
            "run_id": run_id,
            "pipeline_id": pipeline_id,
            "reset": reset_seconds,
        }
        self._conn: Connection | None = None
        self._read: _Known | None = None

    @property
    def state(self) -> str:
        """``closed``, ``open`` or ``half-open``."""
        return self._known.state

    @state.setter
    def state(self, state: str) -> None:
        """Change the state, unless another run has done more meanwhile, and say so in ``circuit_breaker_event``."""
        conn = self._connection()
        values = {**self._values, "state": state}
        with short_transaction(conn, f"Changing the circuit breaker of {self.name}"):
            if state == pybreaker.STATE_OPEN:
                query(conn, self._schema, _ENSURE, values)
            before, over = query(conn, self._schema, _LOCK, values).fetchone() or (pybreaker.STATE_CLOSED, False)
            if before in _DUE[state] and (over or state != pybreaker.STATE_HALF_OPEN):
                query(conn, self._schema, _MOVE, values)
                query(conn, self._schema, _FORGET_PROBES, values)
                query(conn, self._schema, _EVENT, {**values, "before": before, "reason": self._reason(state)})
        self._read = None

    @property
    def counter(self) -> int:
        """Failures in a row."""
        return self._known.failures

    @property
    def success_counter(self) -> int:
        """Successes since it is half-open."""
        return self._known.successes

    @property
    def opened_at(self) -> datetime | None:
        """When it was opened, by this process's clock, so that the time left is the server's."""
        left = self._known.seconds_left
        if left is None:
            return None
        return datetime.now(UTC) + timedelta(seconds=left - self._values["reset"])

    @opened_at.setter
    def opened_at(self, datetime: datetime) -> None:
        """Nothing: the change of state takes the server's time."""

    def increment_counter(self) -> None:
        """Count a failure."""
        error = Jsonb(masked(self.failure.to_json())) if self.failure else None
        self._execute(_COUNT_FAILURE, error=error)

    def reset_counter(self) -> None:
        """Forget the failures before a success."""
        if self._known.failures and self._known.state == pybreaker.STATE_CLOSED:
            self._execute(_NO_FAILURES)

    def increment_success_counter(self) -> None:
        """Count a probe that succeeded; its place is free."""
        self._execute(_COUNT_SUCCESS)

    def reset_success_counter(self) -> None:
        """Nothing: each change of state does it, once, whoever notices the change afterwards."""

    def take_probe(self, most: int) -> bool:
        """Take a place among ``most``; two runs at once wait for one another."""
        conn = self._connection()
        with short_transaction(conn, f"Taking a probe of {self.name}"):
            state, _ = query(conn, self._schema, _LOCK, self._values).fetchone() or (pybreaker.STATE_CLOSED, True)
            if state == pybreaker.STATE_CLOSED:
                return True
            query(conn, self._schema, _EXPIRED, self._values)
            (others,) = query(conn, self._schema, _PROBES, self._values).fetchone() or (0,)
            taken = state == pybreaker.STATE_HALF_OPEN and others < most
            if taken:
                query(conn, self._schema, _TAKE, self._values)
        self._read = None
        return bool(taken)

    def refusal(self) -> Refusal:
        """Return until when it is open (half-open: until the first probe's end), by this process's clock."""
        known = self._known
        probing = known.state == pybreaker.STATE_HALF_OPEN
        left = (known.probes_left if probing else known.seconds_left) or 0.0
        return Refusal(datetime.now(UTC) + timedelta(seconds=max(left, 0.0)), known.last_failure, probing)

    def release(self) -> None:
        """Close the connection."""
        self._read = None
        if self._conn is not None:
            self._conn.close()
        self._conn = None

    @property
    def _known(self) -> _Known:
        if self._read is None:
            conn = self._connection()
            with classified(f"Reading the circuit breaker of {self.name}"):
                cursor = query(conn, self._schema, _READ, self._values, row_factory=class_row(_Known))
                found: _Known | None = cursor.fetchone()
            self._read = found or _Known()
        return self._read

    def _connection(self) -> Connection:
        if self._conn is None or self._conn.closed:
            self._conn = self._session()
        return self._conn

    def _execute(self, statement: str, **values: Any) -> None:
        conn = self._connection()
        with short_transaction(conn, f"Writing the circuit breaker of {self.name}"):
            query(conn, self._schema, statement, {**self._values, **values})
        self._read = None

    def _reason(self, state: str) -> str:
        if state == pybreaker.STATE_OPEN:
            return self.last_failure or "opened"
        return "a probe succeeded" if state == pybreaker.STATE_CLOSED else "its time is over: probes are let through"


class BreakerStatus(BaseModel):
    """How one breaker is. Times know their zone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: str
    state: str
    failures: int
    successes: int
    probes: int
    opened_at: datetime | None
    reopen_at: datetime | None
    last_failure: str | None
    last_failure_at: datetime | None
    events: list[dict[str, Any]] = []
    """The newest changes of state first."""


def breakers(conn: Connection, schema: str, system: str | None = None, *, events: int = 20) -> list[BreakerStatus]:
    """Return all breakers that the ledger knows, or one, with their newest changes of state.

    :raises ConfigError: there is no breaker of ``system``.
    """
    with classified("Reading the circuit breakers"):
        rows = query(conn, schema, _LIST, {"system": system}, row_factory=dict_row).fetchall()
        found = [
            BreakerStatus(
                **row, events=query(conn, schema, _EVENTS, (row["system"], events), row_factory=dict_row).fetchall()
            )
            for row in rows
        ]
    if system is not None and not found:
        raise _unknown(system)
    return found


def reset(conn: Connection, schema: str, system: str, *, by: str, reason: str) -> str:
    """Close a breaker by hand; who and why stands in its events.

    :returns: the state that it had.
    :raises ConfigError: there is no breaker of ``system``.
    """
    values = {"system": system, "state": "closed", "reset": 0, "run_id": None, "pipeline_id": None}
    with short_transaction(conn, f"Resetting the circuit breaker of {system}"):
        row = query(conn, schema, _LOCK, values).fetchone()
        if row is None:
            raise _unknown(system)
        query(conn, schema, _MOVE, values)
        query(conn, schema, _FORGET_PROBES, values)
        query(conn, schema, _EVENT, {**values, "before": row[0], "reason": f"reset by {by}: {reason}"})
    return str(row[0])


def _unknown(system: str) -> ConfigError:
    return ConfigError(
        f"The ledger has no circuit breaker of {system!r}",
        expected="a system that has failed at least once",
        cure="list the known ones with `etl-pipeline breakers list`",
    )
