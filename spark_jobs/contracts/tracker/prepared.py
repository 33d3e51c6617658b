"""Prepared transactions of this project, and never those of others: found by name, shown, committed, rolled back."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from time import sleep
from typing import Final

from psycopg import errors, sql

from spark_jobs.contracts.errors import EtlError, TargetMismatchError, TransientError, TwoPhaseUnavailableError
from spark_jobs.contracts.tracker.connect import Connection, classified, query
from spark_jobs.contracts.tracker.part_names import PartName
from spark_jobs.contracts.tracker.statements import PROJECT, tag
from spark_jobs.logs.events import log_event

log = logging.getLogger("etl.run")

_OURS: Final = """
SELECT gid, prepared, owner::text FROM pg_prepared_xacts
WHERE database = current_database() AND starts_with(gid, %s) ORDER BY prepared, gid
"""
_BUSY_TRIES: Final = 20
_BUSY_SECONDS: Final = 0.05
_RESET_TRIES: Final = 20


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prepared transaction of a pipeline.

    :param owner: the only role that may finish it. :param part: what its name says.
    """

    pipeline_id: str
    name: str
    prepared_at: datetime
    owner: str
    part: PartName


def prepared_of(conn: Connection, schema: str, pipeline_id: str) -> list[Prepared]:
    """Return the pipeline's prepared transactions in the connection's database, oldest first."""
    ours = tag(pipeline_id, schema)
    with classified(f"Reading the prepared transactions of pipeline {pipeline_id!r}"):
        rows = conn.execute(_OURS, (ours,)).fetchall()
    parsed = ((row, PartName.parse(row[0], ours)) for row in rows)
    return [Prepared(pipeline_id, row[0], row[1], row[2], part) for row, part in parsed if part is not None]


def all_prepared(conn: Connection, schema: str) -> list[Prepared]:
    """Return the prepared transactions of all pipelines that the tracker knows, by pipeline, oldest first."""
    with classified("Reading the prepared transactions"):
        rows = conn.execute(_OURS, (PROJECT,)).fetchall()
        if not rows:
            return []
        known = query(conn, schema, "SELECT pipeline_id FROM {schema}.pipeline ORDER BY pipeline_id").fetchall()
    found = []
    for (pipeline_id,) in known:
        ours = tag(pipeline_id, schema)
        parsed = ((row, PartName.parse(row[0], ours)) for row in rows if row[0].startswith(ours))
        found += [Prepared(pipeline_id, row[0], row[1], row[2], part) for row, part in parsed if part is not None]
    return found


def prepared_names(conn: Connection, schema: str, pipeline_id: str) -> set[str]:
    """Return the names of the pipeline's prepared transactions."""
    return {found.name for found in prepared_of(conn, schema, pipeline_id)}


def resolve(conn: Connection, name: str, *, commit: bool, role: str | None = None) -> bool:
    """Commit or roll back a prepared transaction; return whether it was there.

    :param role: the role that prepared it, where it is not the connection's own.
    :raises TargetMismatchError: another role prepared it.
    :raises TwoPhaseUnavailableError: the role does not last from one statement to the next: a pooler is between.
    :raises TransientError: another session is at it, and does not end.
    """
    verb = sql.SQL("COMMIT PREPARED {}" if commit else "ROLLBACK PREPARED {}").format(sql.Literal(name))
    with classified(f"Resolving the prepared transaction {name}"), _acting_as(conn, role):
        try:
            return _resolved(conn, verb, name)
        except errors.InsufficientPrivilege as error:
            raise _not_ours(conn, name, role, error) from error


def _resolved(conn: Connection, verb: sql.Composed, name: str) -> bool:
    for _ in range(_BUSY_TRIES):
        try:
            conn.execute(verb)
        except errors.UndefinedObject:
            return False
        except errors.ObjectNotInPrerequisiteState:
            # Busy: another session commits it or rolls it back at this moment.
            sleep(_BUSY_SECONDS)
        else:
            return True
    raise TransientError(
        f"The prepared transaction {name} is busy",
        found=f"another session that has been resolving it for {_BUSY_TRIES * _BUSY_SECONDS:.0f} s",
        expected="that it ends at once",
        cure="look in pg_stat_activity for COMMIT PREPARED or ROLLBACK PREPARED (does it wait for a synchronous "
        "standby?), and try again",
    )


@contextmanager
def _acting_as(conn: Connection, role: str | None) -> Iterator[None]:
    # For the session: what is done with a prepared transaction cannot stand in a transaction, nor beside others in one
    # text, so that there is no SET LOCAL for it.
    if not role:
        yield
        return
    server = _server_of(conn, sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
    try:
        yield
    finally:
        if not conn.closed:
            _reset_role(conn, server)


def _reset_role(conn: Connection, server: int) -> None:
    # Behind a pooler in transaction mode the session that has the role is everybody's.
    for _ in range(_RESET_TRIES):
        if _server_of(conn, sql.SQL("RESET ROLE")) == server:
            return
    log_event(log, logging.WARNING, "role_not_reset", server_pid=server, reason="pooler_in_transaction_mode")


def _server_of(conn: Connection, statement: sql.Composable) -> int:
    """Run a statement and return the process id of the server's session that did it."""
    cursor = conn.execute(sql.SQL("{}; SELECT pg_backend_pid() AS pid").format(statement))
    cursor.nextset()
    return int(cursor.fetchall()[0][0])


def _not_ours(conn: Connection, name: str, role: str | None, error: errors.InsufficientPrivilege) -> EtlError:
    owner = conn.execute("SELECT owner::text FROM pg_prepared_xacts WHERE gid = %s", (name,)).fetchone()
    if role and owner == (role,):
        return TwoPhaseUnavailableError(
            f"The prepared transaction {name} cannot be resolved: the role was gone when it was to act",
            found=f"{error}, after SET ROLE to its owner {role!r}: a pooler in transaction mode gives each statement "
            "another session of the server",
            expected="one session: load.role together with two_phase does not work behind such a pooler",
            cure="`etl-pipeline prepared resolve --role ROLE` with a connection past the pooler finishes what is left; "
            "from then on load.writeStrategy staged, or single",
        )
    return TargetMismatchError(
        f"The prepared transaction {name} cannot be resolved",
        found=str(error),
        expected="the role that prepared it: no other may commit it or roll it back",
        cure="Connect as that role (or as a superuser): `etl-pipeline prepared resolve`; give load.role a role "
        "that all users of the pipeline are members of",
    )


def roll_back(conn: Connection, left_over: Iterable[Prepared], role: str | None = None) -> list[str]:
    """Roll back prepared transactions that nobody will commit; return the names of those that were there."""
    gone = [found.name for found in left_over if resolve(conn, found.name, commit=False, role=role)]
    for name in gone:
        log_event(log, logging.INFO, "prepared_rolled_back", name=name)
    return gone
