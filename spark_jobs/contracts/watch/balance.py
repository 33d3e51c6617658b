"""The ledger's verdict: what was read is what was written, or is accounted for."""

from __future__ import annotations

from datetime import timedelta
from typing import ClassVar, Final

from pydantic import Field

from spark_jobs.contracts.errors import GapError
from spark_jobs.contracts.tracker.queries import UNBALANCED
from spark_jobs.contracts.tracker.records import BOOK_NAMES
from spark_jobs.contracts.watch.condition import NEVER_COMMITTED, Age, Condition, LedgerView, Seen

LOST_BOOKS: Final = ("rejected", "dead_lettered", "late", "write_dead_lettered")
"""The books of rows that did not reach the target, of which nobody can be glad."""

_SUMS: Final = ", ".join(f"coalesce(sum({name}_rows), 0)::bigint" for name in BOOK_NAMES)
_BOOKS: Final = f"""
SELECT count(*), array_agg(batch_id || ' of query ' || query_id) FILTER (WHERE {UNBALANCED}), {_SUMS}
FROM {{schema}}.batch_tracker
WHERE pipeline_id = %(pipeline)s
    AND processed_at >= clock_timestamp() - coalesce(%(last)s::interval, interval '1000 years')"""  # noqa: S608
_ANY: Final = "SELECT 1 FROM {schema}.batch_tracker WHERE pipeline_id = %(pipeline)s LIMIT 1"
_DECIDED: Final = """
SELECT count(*) FROM {schema}.batch_decision
WHERE pipeline_id = %(pipeline)s AND decided_at <= clock_timestamp() - %(finishing)s::interval"""


class LedgerBalance(Condition):
    """Holds when the books of all micro-batches in the window balance, and none is decided and not finished.

    :param last: only micro-batches as young as this; all without it.
    :param finishing: how long a micro-batch may be decided and not finished: its driver is at it.
    :param at_most_lost: share of the source rows, 0 to 1, that may be rejected, dead letters or late; no matter when
        None.
    """

    title: ClassVar[str] = "A look at the books"

    last: Age | None = Field(None, gt=timedelta())
    finishing: Age = timedelta()
    at_most_lost: float | None = Field(None, ge=0, le=1)

    def _look(self, view: LedgerView) -> Seen:
        values = {"pipeline": self.pipeline, "last": self.last, "finishing": self.finishing}
        about = f"Adding up the books of {self.pipeline!r}"
        batches, unbalanced, *sums = view.rows(_BOOKS, values, about)[0]
        decided = view.rows(_DECIDED, values, about)[0][0]
        rows = dict(zip(BOOK_NAMES, sums, strict=True))
        value = {"batches": batches, "rows": rows, "decided": decided}
        if unbalanced:
            raise GapError(
                f"The books of {self.pipeline!r} do not balance",
                found=f"micro-batch {', '.join(unbalanced[:20])}",
                expected="source rows = passed + rejected + dead letters + late + filtered + deduplicated; "
                "sink rows = written + dead letters + deduplicated",
                cure="such a micro-batch cannot be committed: its row was changed by hand afterwards. Restore it",
            )
        lost = sum(rows[name] for name in LOST_BOOKS)
        share = _share(lost, rows["source"])
        text = f"{self.pipeline}: {batches} micro-batches balance: {rows['source']} rows read"
        text += f", {rows['written']} written, {lost} rejected, late or dead letters ({share:.2%})"
        if decided:
            text += f"; {decided} micro-batches are decided and not finished"
        if not batches and not view.rows(_ANY, values, about):
            value[NEVER_COMMITTED] = not decided
            return Seen(done=False, message=f"{self.pipeline}: no micro-batch was ever committed", value=value)
        enough = keeps_share(lost, rows["source"], self.at_most_lost)
        return Seen(done=not decided and enough, message=text, value={**value, "lost_share": share})


def keeps_share(lost: int, source: int, at_most: float | None) -> bool:
    """Tell whether no more than this share of the source rows was lost; always when ``at_most`` is None."""
    return at_most is None or _share(lost, source) <= at_most


def _share(lost: int, source: int) -> float:
    return lost / source if source else 0.0
