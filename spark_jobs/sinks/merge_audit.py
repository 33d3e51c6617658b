"""The question whether a merge left rows out that it may not leave out: a trigger suppressed them without a word.

Of an upsert some rows are left out by its rules: those whose key comes again in the batch, those that are older than
the table's row, those whose key is there already under DO NOTHING. So fewer rows written than staged prove nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AuditParts:
    """The rendered pieces of the merge, in which ``t`` is a row of the table and ``l`` one of the batch.

    :param latest: the subquery of each key's winner. :param table: the target.
    :param matches: the conditions, of which one holds where ``t`` has the key of ``l``.
    :param older: the condition under which ``l`` loses against ``t``.
    :param changed: the columns that an update sets; empty under DO NOTHING, where any row of the key will do.
    :param gone: the condition that ``l`` deletes its key's row.
    :param spares: whether a trigger of the table spares rows that would stay the same, which nobody but it can tell.
    """

    latest: str
    table: str
    matches: Sequence[str]
    older: str
    changed: Sequence[str]
    gone: str
    spares: bool = False


def audit(parts: AuditParts) -> str:
    """Return the question, to be asked right after the merge, in its transaction.

    ``{written}`` is what the merge wrote, ``{present}`` what :func:`present` answered. The answer is the number of rows
    that are neither written nor rightly left out; refused rows are among them. A row counts as suppressed when both the
    numbers and the table say so: the table alone may hold other values than the row because a trigger changes them, and
    a row may rightly not be written because the table's is the same already (``suppress_redundant_updates_trigger``).
    """
    there = " UNION ALL ".join(
        f"SELECT {parts.gone} AS gone, {parts.older} AS older, {_same(parts)} AS same "  # noqa: S608
        f"FROM {parts.table} t JOIN batch l ON {match}"
        for match in parts.matches
    )
    # Under DO NOTHING an older row is one of those whose key was present.
    beaten = "older" if parts.changed else "older AND gone"
    return (
        f"WITH batch AS MATERIALIZED (SELECT * FROM {parts.latest}), there AS ({there}), "  # noqa: S608
        f"due AS (SELECT (SELECT count(*) FROM batch) - (SELECT count(*) FROM there WHERE {beaten}) AS rows), "
        f"unseen AS (SELECT (SELECT count(*) FROM batch l WHERE NOT {parts.gone}) "
        "- (SELECT count(*) FROM there WHERE NOT gone AND (older OR same)) "
        "+ (SELECT count(*) FROM there WHERE gone AND NOT older) AS rows) "
        "SELECT least(due.rows - {written} - {present}, unseen.rows) FROM due, unseen"
    )


def present(parts: AuditParts) -> str:
    """Return the question, to be asked before the merge, how many keys are there that DO NOTHING will leave alone."""
    if parts.changed:
        return ""
    counts = " + ".join(
        f"(SELECT count(*) FROM {parts.table} t JOIN batch l ON {match} WHERE NOT {parts.gone})"  # noqa: S608
        for match in parts.matches
    )
    return f"WITH batch AS MATERIALIZED (SELECT * FROM {parts.latest}) SELECT {counts}"  # noqa: S608


def _same(parts: AuditParts) -> str:
    if parts.spares or not parts.changed:
        return "true"
    # As text: not every type has an equality.
    table, batch = (", ".join(f"{alias}.{name}" for name in parts.changed) for alias in "tl")
    return f"ROW({table})::text = ROW({batch})::text"
