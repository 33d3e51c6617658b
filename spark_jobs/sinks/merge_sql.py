"""The pieces of a merge's statements. Driver side.

Keys are taken in order, and merges with and without deletion markers one after the other, so that pipelines that upsert
the same table do not deadlock. Of rows with the same key in a batch one wins: by the order column, then by its number,
which makes it the last row of the highest part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql

from spark_jobs.contracts.config import OnConflict, WriteMode
from spark_jobs.contracts.config.load import Load
from spark_jobs.contracts.tracker.connect import Connection
from spark_jobs.sinks.merge_audit import AuditParts
from spark_jobs.sinks.origins import ORIGIN_TYPES
from spark_jobs.sinks.references import doubts
from spark_jobs.sinks.target import Target

SEQUENCE = "_seq"


@dataclass(frozen=True, slots=True)
class MergeRule:
    """How rows come into the target.

    :param order_column: of rows with the same key the one with the highest value wins, within the batch and against the
        row in the target; NULL is the lowest.
    :param update_columns: what is updated on a conflict; all columns but the keys when empty.
    :param delete_marker: a boolean column of the query that the table does not have: true deletes the key's row.
    """

    mode: WriteMode
    keys: tuple[str, ...] = ()
    order_column: str | None = None
    update_columns: tuple[str, ...] = ()
    on_conflict: OnConflict = OnConflict.UPDATE
    delete_marker: str | None = None


def merge_rule(load: Load) -> MergeRule:
    """Return the rule that the configuration asks for."""
    if load.write_mode is not WriteMode.UPSERT:
        return MergeRule(load.write_mode)
    return MergeRule(
        load.write_mode, load.keys, load.order_column, load.update_columns, load.on_conflict, load.delete_marker
    )


class MergeSql:
    """Renders the pieces of one merge. Names come from psycopg.sql; the rest are constants."""

    def __init__(self, target: Target, rule: MergeRule, conn: Connection) -> None:
        self._target = target
        self._rule = rule
        self._conn = conn
        self.columns = self._names([column.name for column in target.columns])
        # However a pipeline names its keys, all take them in the same order.
        self.keys = self._names(sorted(rule.keys))
        self.marker = [self._name(rule.delete_marker)] if rule.delete_marker else []

    def typed(self, source: str) -> str:
        """Return the source with every column in the target's type."""
        if self._target.direct:
            return source
        columns = [
            f"{column.from_staged.format(self._name(column.name))} AS {self._name(column.name)}"
            for column in self._target.columns
        ]
        marks = [SEQUENCE, *ORIGIN_TYPES]
        return f"(SELECT {', '.join([*columns, *self.marker, *marks])} FROM {source}) AS typed"  # noqa: S608

    def latest(self, source: str) -> str:
        """Return the winner of each key."""
        order = f"{self._name(self._rule.order_column)} DESC NULLS LAST, " if self._rule.order_column else ""
        return (
            f"(SELECT DISTINCT ON ({self.keys}) * FROM {source} "  # noqa: S608
            f"ORDER BY {self.keys}, {order}{SEQUENCE} DESC) AS latest"
        )

    def write(self, latest: str) -> str:
        """Return the statement that writes the rows of ``latest``."""
        if not self._rule.delete_marker:
            return self._insert(latest)
        marker = f"coalesce(l.{self.marker[0]}, false)"
        newer = f" AND {self._newer('t', 'l')}" if self._rule.order_column else ""
        kept = f"(SELECT * FROM batch l WHERE NOT {marker} ORDER BY {self.keys}) AS latest"  # noqa: S608
        here = self._target.identifier().as_string(self._conn)
        target_keys = ", ".join(f"t.{self._name(key)}" for key in self._rule.keys)
        steps = [f"batch AS MATERIALIZED (SELECT * FROM {latest})"]  # noqa: S608
        matches = self._matches()
        # Rows that are there are locked in the order of their keys, before anything is changed.
        for number, same in enumerate(matches):
            steps.append(
                f"locked{number} AS MATERIALIZED (SELECT {target_keys} FROM {here} t JOIN batch l ON {same} "  # noqa: S608
                f"ORDER BY {target_keys} FOR UPDATE OF t)"
            )
        every = range(len(matches))
        locked = " AND ".join(f"(SELECT count(*) FROM locked{number}) >= 0" for number in every)  # noqa: S608
        for number, same in enumerate(matches):
            steps.append(
                f"deleted{number} AS (DELETE FROM {here} t USING batch l "  # noqa: S608
                f"WHERE {marker} AND {same}{newer} AND {locked} RETURNING 1)"
            )
        steps.append(f"written AS ({self._insert(kept, locked)} RETURNING 1)")
        absent = " AND ".join(
            f"NOT EXISTS (SELECT FROM locked{number} t WHERE {same})" for number, same in enumerate(matches)
        )
        deleted = " + ".join(f"(SELECT count(*) FROM deleted{number})" for number in every)  # noqa: S608
        return (
            f"WITH {', '.join(steps)} SELECT (SELECT count(*) FROM written) + {deleted} "  # noqa: S608
            f"+ (SELECT count(*) FROM batch l WHERE {marker} AND {absent})"
        )

    def lock(self) -> str:
        """Return the statement that keeps the two forms of merge apart, whose orders of locking differ.

        One with deletion markers locks the rows that are there before it inserts others; one without takes all keys in
        order. Merges without markers go on side by side.
        """
        shared = "" if self._rule.delete_marker else "_shared"
        name = sql.Literal(f"etl merge {self._target.table}").as_string(self._conn)
        return f"SELECT pg_advisory_xact_lock{shared}(hashtextextended({name}, 0))"

    def doubts(self, table: str, number: str) -> tuple[str, ...]:
        """Return the statements that turn the sign of the numbers of rows which the target's keys will refuse.

        :param table: with the rows in the target's types, quoted. :param number: its column with the numbers.
        """
        asked = self._target.demands.of({column.name for column in self._target.columns})
        return doubts(asked, self._conn, table, number, self._target.identifier(), self._rule.keys)

    def audit(self, latest: str) -> AuditParts | None:
        """Return what the question whether rows were suppressed is made of; None where nothing in the table could."""
        if not self._target.has_suppressing_triggers:
            return None
        gone = f"coalesce(l.{self.marker[0]}, false)" if self.marker else "false"
        nothing = self._rule.on_conflict is OnConflict.NOTHING
        return AuditParts(
            latest=self.braced(latest),
            table=self.braced(self._target.identifier().as_string(self._conn)),
            matches=[self.braced(match) for match in self._matches()],
            older=self.braced(f"({self._newer('t', 'l')}) IS NOT TRUE") if self._rule.order_column else "false",
            changed=[] if nothing else [self.braced(self._name(name)) for name in self._updated()],
            gone=self.braced(gone),
            spares=self._target.spares_equal_rows,
        )

    def _insert(self, latest: str, condition: str = "") -> str:
        here = self._target.identifier().as_string(self._conn)
        where = f" WHERE {condition}" if condition else ""
        conflict = f" ON CONFLICT ({self.keys}) {self._conflict()}" if self._rule.keys else ""
        return f"INSERT INTO {here} AS t ({self.columns}) SELECT {self.columns} FROM {latest}{where}{conflict}"  # noqa: S608

    def _conflict(self) -> str:
        if self._rule.on_conflict is OnConflict.NOTHING:
            return "DO NOTHING"
        changes = ", ".join(f"{self._name(name)} = EXCLUDED.{self._name(name)}" for name in self._updated())
        newer = f" WHERE {self._newer('t', 'EXCLUDED')}" if self._rule.order_column else ""
        return f"DO UPDATE SET {changes}{newer}"

    def _updated(self) -> list[str]:
        rule = self._rule
        others = [column.name for column in self._target.columns if column.name not in rule.keys]
        updated = list(rule.update_columns) or others
        if not updated:
            # A table of keys only: the row is touched, so that it counts as written.
            return list(rule.keys[:1])
        if rule.order_column and rule.order_column not in updated:
            updated.append(rule.order_column)
        return updated

    def _newer(self, old: str, new: str) -> str:
        column = self._name(self._rule.order_column or "")
        return f"({old}.{column} IS NULL OR {new}.{column} >= {old}.{column})"

    def _matches(self) -> list[str]:
        """Return the conditions, of which one holds, under which a row ``t`` of the table has the key of ``l``.

        Equality is apart from NULL: PostgreSQL has neither an index nor a hash join for IS NOT DISTINCT FROM.
        """
        names = {key: self._name(key) for key in self._rule.keys}
        nullable = [
            names[column.name] for column in self._target.columns if column.name in names and not column.not_null
        ]
        equal = " AND ".join(f"t.{name} = l.{name}" for name in names.values())
        if not nullable:
            return [equal]
        alike = " AND ".join(
            f"t.{name} {'IS NOT DISTINCT FROM' if name in nullable else '='} l.{name}" for name in names.values()
        )
        of_batch = " OR ".join(f"l.{name} IS NULL" for name in nullable)
        of_table = " OR ".join(f"t.{name} IS NULL" for name in nullable)
        # The count is known before the table is read: a batch without NULLs in its keys does not read it here.
        some = f"(SELECT count(*) FROM batch l WHERE {of_batch}) > 0"  # noqa: S608
        return [equal, f"({of_batch}) AND ({of_table}) AND {alike} AND {some}"]

    @staticmethod
    def braced(text: str) -> str:
        """Return a text that ``str.format`` leaves as it is."""
        return text.replace("{", "{{").replace("}", "}}")

    def _names(self, names: Sequence[str]) -> str:
        return ", ".join(self._name(name) for name in names)

    def _name(self, name: str) -> str:
        return sql.Identifier(name).as_string(self._conn)
