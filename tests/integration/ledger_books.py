"""The ledger's books, checked from outside."""

from __future__ import annotations

from typing import Any

from pipeline_runs import Pipelines

_SUMS = (
    "source_rows, passed_rows, rejected_rows, dead_lettered_rows, late_rows, filtered_rows, deduplicated_rows, "
    "sink_rows, written_rows, write_dead_lettered_rows, write_deduplicated_rows"
)


def balanced_totals(pipelines: Pipelines, pipeline_id: str, *, stateful: bool = False) -> dict[str, int]:
    """Return the sums of a pipeline's books; every micro-batch balances, and ids have no gaps within a query."""
    names = _SUMS.split(", ")
    totals = dict.fromkeys(names, 0)
    last: dict[str, int] = {}
    for query, batch, *counts in pipelines.rows(
        f"SELECT query_id, batch_id, {_SUMS} FROM etl.batch_tracker WHERE pipeline_id = %s ORDER BY query_id, batch_id",
        pipeline_id,
    ):
        row: dict[str, Any] = dict(zip(names, counts, strict=True))
        left = ("passed", "rejected", "dead_lettered", "late", "filtered", "deduplicated")
        assert row["source_rows"] == sum(row[f"{name}_rows"] for name in left), (batch, row)
        assert row["sink_rows"] == sum(
            row[f"{name}_rows"] for name in ("written", "write_dead_lettered", "write_deduplicated")
        ), (batch, row)
        assert stateful or row["passed_rows"] == row["sink_rows"], (batch, row)
        assert query not in last or batch == last[query] + 1, (query, batch)
        last[query] = batch
        totals = {name: totals[name] + row[name] for name in names}
    return totals
