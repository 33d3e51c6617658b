"""Conditions by their names, as a trigger keeps them over a restart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from spark_jobs.contracts.errors import ContractVersionError
from spark_jobs.contracts.watch.balance import LedgerBalance
from spark_jobs.contracts.watch.batch_gaps import BatchGaps
from spark_jobs.contracts.watch.condition import Condition
from spark_jobs.contracts.watch.dead_letter_depth import DeadLetterDepth
from spark_jobs.contracts.watch.freshness import Freshness
from spark_jobs.contracts.watch.query_progress import QueryProgress
from spark_jobs.contracts.watch.retention_risk import RetentionRisk
from spark_jobs.contracts.watch.run_ended import RunEnded
from spark_jobs.contracts.watch.source_lag import SourceLag
from spark_jobs.contracts.watch.watermark import WatermarkReached

_CONDITIONS: Final[Mapping[str, type[Condition]]] = {
    kind.__name__: kind
    for kind in (
        BatchGaps,
        DeadLetterDepth,
        Freshness,
        LedgerBalance,
        QueryProgress,
        RetentionRisk,
        RunEnded,
        SourceLag,
        WatermarkReached,
    )
}


def to_json(condition: Condition) -> dict[str, Any]:
    """Return the condition as JSON values, with its kind."""
    return {"kind": type(condition).__name__, **condition.model_dump(mode="json", exclude_unset=True)}


def from_json(values: Mapping[str, Any]) -> Condition:
    """Return what :func:`to_json` has written.

    :raises ContractVersionError: another version of this package has written it.
    """
    kind = _CONDITIONS.get(str(values.get("kind")))
    if kind is None:
        raise ContractVersionError(
            "A waiting task asks for a condition that this version does not know",
            found=f"{values.get('kind')}",
            expected=f"one of {', '.join(sorted(_CONDITIONS))}",
            cure="install the same version of airflow-etl-provider for workers and triggerer; then clear the task",
        )
    return kind.of(**{name: value for name, value in values.items() if name != "kind"})
