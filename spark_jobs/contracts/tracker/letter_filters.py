"""Which dead letters are meant, as SQL."""

from __future__ import annotations

from typing import Any

from spark_jobs.contracts.replay import LetterFilter


def conditions(wanted: LetterFilter, *, everywhere: bool = False) -> tuple[str, dict[str, Any]]:
    """Return the filter as an SQL condition over ``dead_letter``, or ``dead_letter_single``, and its values."""
    parts = [] if everywhere else ["pipeline_id = %(pipeline_id)s"]
    values: dict[str, Any] = {"pipeline_id": wanted.pipeline_id}
    for column, chosen in (
        ("status", wanted.statuses),
        ("stage", wanted.stages),
        ("error_class", wanted.error_classes),
        ("dead_letter_id", wanted.ids),
    ):
        if len(chosen) == 1:
            # An equality keeps the index's order, which the first page stands in.
            parts.append(f"{column} = %({column})s")
            values[column] = chosen[0]
        elif chosen:
            parts.append(f"{column} = ANY (%({column})s)")
            values[column] = list(chosen)
    for operator, moment in ((">=", wanted.since), ("<", wanted.until)):
        if moment is not None:
            name = "since" if operator == ">=" else "until"
            parts.append(f"first_failed_at {operator} %({name})s")
            values[name] = moment
    return " AND ".join(parts) or "true", values
