"""How a task lets go of its run, and what it finds when it is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow.sdk.exceptions import AirflowException, AirflowTaskTimeout

from airflow_etl_provider.deferred_run import DeferredRun
from spark_jobs.contracts.errors import EtlError

if TYPE_CHECKING:
    from airflow.sdk import Context

_ENDED_BY_ITSELF: Final = ("finished", "failed", "stopped")
_STOPPED: Final = "The run's right to commit was taken away, and its driver was to be killed."


def deadline(context: Context, execution_timeout: timedelta | None) -> datetime | None:
    """Return when the task has lasted for ``execution_timeout``: Airflow does not count while it is deferred."""
    if execution_timeout is None:
        return None
    started: datetime = getattr(context["ti"], "start_date", None) or datetime.now(UTC)
    return started + execution_timeout


def gave_up(event: Mapping[str, Any]) -> BaseException | None:
    """Return with what the task fails, by what its trigger has seen; None when the run has ended."""
    message = str(event["message"])
    if event["status"] == "timeout":
        return AirflowTaskTimeout(f"The run has not ended within execution_timeout. {_STOPPED} Last seen: {message}")
    if event["status"] == "satisfied" and event["value"]["driver"] == "ended":
        return None
    return AirflowException(f"{message}\n  {_STOPPED}")


def require_ended(context: Context, run: DeferredRun, reason: BaseException | None) -> None:
    """Return if the run has ended by itself, or a newer one has fenced it; whatever else is left of it is stopped.

    :param reason: why it is not waited for any longer; None when it has ended. Raised when it has not.
    """
    stop_unless_ended(context, run)
    # It may have been quicker than its end.
    if reason is not None and not _has_ended(run):
        raise reason


def stop_unless_ended(context: Context, run: DeferredRun) -> None:
    """See that nothing of the run is left, and forget it; where the cluster does not answer, the next try does it."""
    if _has_ended(run) or run.stop():
        DeferredRun.forget(context)


def stop_deferred_run(context: Context) -> None:
    """Stop the run of an earlier try that nobody has seen to its end: the task was cleared while no triggerer lived."""
    run = DeferredRun.of_task(context)
    if run is not None:
        stop_unless_ended(context, run)


def _has_ended(run: DeferredRun) -> bool:
    try:
        row = run.ledger.run(run.run_id)
    except EtlError:
        return False
    return row is not None and row.state in _ENDED_BY_ITSELF
