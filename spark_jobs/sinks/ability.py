"""What the server and the target table allow: can a batch be written in two phases, and in how many parts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from spark_jobs.contracts.errors import TwoPhaseUnavailableError
from spark_jobs.contracts.tracker.connect import Connection, classified
from spark_jobs.contracts.tracker.decisions import may_finish
from spark_jobs.sinks.target import Target

# A partition has indexes and triggers of its own. Of the triggers one that comes before the row is named first.
_QUESTION = """
WITH tables AS (
    SELECT to_regclass(%(table)s) AS oid UNION SELECT relid FROM pg_partition_tree(to_regclass(%(table)s))
)
SELECT
    current_setting('max_prepared_transactions')::int,
    (SELECT count(*) FROM pg_prepared_xacts)::int,
    (SELECT min(i.indexrelid::regclass::text) FROM pg_index i JOIN tables t ON i.indrelid = t.oid
     WHERE i.indisunique OR i.indisexclusion),
    (SELECT g.tgname FROM pg_trigger g JOIN tables t ON g.tgrelid = t.oid
     WHERE NOT g.tgisinternal AND g.tgtype & 4 = 4
     ORDER BY g.tgtype & 1 = 1 AND g.tgtype & 66 > 0 DESC, g.tgname LIMIT 1),
    (SELECT c.relpersistence = 't' FROM pg_class c WHERE c.oid = to_regclass(%(table)s)),
    pg_backend_pid()
"""


@dataclass(frozen=True, slots=True)
class TwoPhase:
    """Whether batches may be written in two phases.

    :param slots: prepared transactions that the server had room for. :param limit: ``max_prepared_transactions``.
    :param obstacle: why the table or the server does not allow it at all; empty where it does.
    :param doubt: why it is not chosen unless asked for; empty where it may be chosen.
    :param set_aside: slots that the parts must leave.
    """

    slots: int
    limit: int
    obstacle: str = ""
    doubt: str = ""
    set_aside: int = 0

    def with_letters(self) -> TwoPhase:
        """Return the same for a batch whose dead letters the driver prepares beside the parts."""
        return replace(self, set_aside=1)

    @property
    def room(self) -> int:
        """How many parts there may be."""
        return max(self.slots - self.set_aside, 0)

    def require(self, parts: int | None) -> None:
        """Raise :class:`TwoPhaseUnavailableError` unless ``two_phase`` can be carried out as it was asked for.

        :param parts: the parts that were asked for (``load.writeParallelism``); None leaves their number open.
        """
        if self.obstacle:
            raise TwoPhaseUnavailableError(
                "load.writeStrategy two_phase cannot be carried out",
                found=self.obstacle,
                expected="max_prepared_transactions above 0, and a table without unique keys and BEFORE triggers, "
                "whose columns all take COPY's binary form",
                cure="Use auto, single or staged, which are exactly once as well",
            )
        wanted = parts or 1
        if wanted > self.room:
            raise TwoPhaseUnavailableError(
                "load.writeStrategy two_phase cannot be carried out: the server has no room for the parts",
                found=f"max_prepared_transactions = {self.limit}, of which {self.slots} are free",
                expected=f"room for {wanted} prepared transactions"
                + (", and one for the dead letters" if self.set_aside else ""),
                cure="Raise max_prepared_transactions (the server must be restarted), lower load.writeParallelism, or "
                "look at `etl-pipeline prepared list`",
            )


def two_phase_ability(conn: Connection, target: Target, tracker: str, role: str | None = None) -> TwoPhase:
    """Ask the server. For tables of any owner; needs no privilege.

    :param tracker: the tracker's schema. :param role: the role that is to write, where it is not the connection's own.
    """
    with classified("Asking whether the server allows two-phase commits"):
        row = conn.execute(_QUESTION, {"table": target.identifier().as_string(conn)}).fetchone()
    limit, used, unique, trigger, temporary, session = row or (0, 0, None, None, False, 0)
    slots = max(limit - used, 0)
    obstacle = ""
    if not limit:
        obstacle = "max_prepared_transactions is 0"
    elif unique:
        obstacle = f"the table has the unique key {unique}: a part lost after PREPARE would block its own repetition"
    elif target.has_insert_triggers:
        obstacle = f"the table has the trigger {trigger}, which may change or suppress rows unseen"
    elif not may_finish(conn, tracker):
        obstacle = f"the connection's user lacks DELETE on the tables batch_decision and batch_part of {tracker}"
    elif role and session != conn.info.backend_pid:
        # A pooler names itself as the session, for cancelling.
        obstacle = (
            f"load.role is {role!r} and a pooler is between: the role may be gone from one statement to the next, and "
            "only who prepared a transaction may commit it"
        )
    elif temporary:
        obstacle = "the table is temporary"
    elif columns := [column.name for column in target.columns if not column.direct]:
        obstacle = f"the columns {', '.join(columns)} are written through a staging table"
    doubt = f"the table has the trigger {trigger}, which might notify" if trigger else ""
    if not slots and not obstacle:
        doubt = f"all {limit} prepared transactions of the server are in use"
    return TwoPhase(slots, limit, obstacle, doubt)
