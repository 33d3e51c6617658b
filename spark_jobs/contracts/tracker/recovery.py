"""What earlier drivers left between the two phases: finished where it was decided, rolled back where it was not."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from spark_jobs.contracts.tracker.connect import Connection
from spark_jobs.contracts.tracker.decisions import Right, commit_parts, decided, finish
from spark_jobs.contracts.tracker.prepared import Prepared, prepared_of, roll_back
from spark_jobs.faults import reach
from spark_jobs.logs.events import log_event

log = logging.getLogger("etl.run")


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a recovery did.

    :param finished: batches that had been decided, and are committed now. :param rolled_back: names of transactions.
    """

    finished: list[tuple[str, str, int]]
    rolled_back: list[str]


def recover(conn: Connection, right: Right, *, role: str | None = None, accept_missing: bool = False) -> Recovered:
    """Finish the pipeline's decided batches and roll back older drivers' undecided parts. For a driver with its epoch.

    Commit point: each batch's own. Done again it finds nothing to do.

    :raises DecidedPartMissingError: a part of a decided batch was rolled back by hand.
    :raises FencedError: a newer run has taken over.
    """
    finished = finish_decided(conn, right, role=role, accept_missing=accept_missing)
    older = [found for found in prepared_of(conn, right.schema, right.pipeline_id) if found.part.epoch < right.epoch]
    if older:
        reach("recovery.before_rollback")
    return Recovered(finished, roll_back(conn, undecided(conn, right.schema, right.pipeline_id, older), role))


def finish_decided(
    conn: Connection, right: Right, *, role: str | None = None, accept_missing: bool = False
) -> list[tuple[str, str, int]]:
    """Commit what was decided; return the keys of the batches that this call finished."""
    done = []
    for batch in decided(conn, right.schema, right.pipeline_id):
        commit_parts(conn, batch, role)
        reach("recovery.before_finish")
        if finish(conn, right, batch, accept_missing=accept_missing):
            done.append(batch.key)
            log_event(log, logging.INFO, "decided_batch_finished", batch=batch.batch_id, parts=len(batch.winners))
    return done


def sweep_own(conn: Connection, right: Right, *, role: str | None = None) -> list[str]:
    """Roll back the parts of this driver's earlier attempts. Only while none of its tasks may still win."""
    own = [found for found in prepared_of(conn, right.schema, right.pipeline_id) if found.part.epoch <= right.epoch]
    return roll_back(conn, undecided(conn, right.schema, right.pipeline_id, own), role) if own else []


def undecided(conn: Connection, schema: str, pipeline_id: str, found: list[Prepared]) -> list[Prepared]:
    """Return those that belong to no decision: nobody will commit them, once their driver has lost its right."""
    winning = {winner.name for batch in decided(conn, schema, pipeline_id) for winner in batch.winners}
    return [prepared for prepared in found if prepared.name not in winning]
