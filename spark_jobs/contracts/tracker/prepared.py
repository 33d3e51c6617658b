"""Prepared transactions of this project, and never those of others: found by name, shown, committed, rolled back."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from psycopg import errors, sql

from spark_jobs.contracts.errors import TargetMismatchError
from spark_jobs.contracts.tracker.connect import Connection, classified, query
from spark_jobs.contracts.tracker.part_names import PartName
from spark_jobs.contracts.tracker.statements import tag

log = logging.getLogger("etl.run")

_OURS: Final = """
SELECT gid, prepared, owner::text FROM pg_prepared_xacts
WHERE database = current_database() AND starts_with(gid, %s) ORDER BY prepared, gid
"""


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
    """Return the prepared transactions of all pipelines that the tracker knows."""
    with classified("Reading the pipelines"):
        known = query(conn, schema, "SELECT pipeline_id FROM {schema}.pipeline ORDER BY pipeline_id").fetchall()
    return [found for (pipeline_id,) in known for found in prepared_of(conn, schema, pipeline_id)]


def prepared_names(conn: Connection, schema: str, pipeline_id: str) -> set[str]:
    """Return the names of the pipeline's prepared transactions."""
    return {found.name for found in prepared_of(conn, schema, pipeline_id)}


def resolve(conn: Connection, name: str, *, commit: bool, role: str | None = None) -> bool:
    """Commit or roll back a prepared transaction; return whether it was there.

    :param role: the role that prepared it, where it is not the connection's own.
    :raises TargetMismatchError: another role prepared it.
    """
    verb = sql.SQL("COMMIT PREPARED {}" if commit else "ROLLBACK PREPARED {}").format(sql.Literal(name))
    with classified(f"Resolving the prepared transaction {name}"):
        if role:
            conn.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
        try:
            conn.execute(verb)
        except errors.UndefinedObject:
            return False
        except errors.InsufficientPrivilege as error:
            raise TargetMismatchError(
                f"The prepared transaction {name} cannot be resolved",
                found=str(error),
                expected="the role that prepared it: no other may commit it or roll it back",
                cure="Connect as that role (or as a superuser): `etl-pipeline prepared resolve`; give load.role a role "
                "that all users of the pipeline are members of",
            ) from error
        finally:
            if role:
                conn.execute("RESET ROLE")
    return True


def roll_back(conn: Connection, left_over: Iterable[Prepared], role: str | None = None) -> list[str]:
    """Roll back prepared transactions that nobody will commit; return the names of those that were there."""
    gone = [found.name for found in left_over if resolve(conn, found.name, commit=False, role=role)]
    for name in gone:
        log.info("event=prepared_rolled_back name=%s", name)
    return gone
