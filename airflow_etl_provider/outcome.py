"""From the run's row in the ledger to the end of the Airflow task."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from spark_jobs.contracts.errors import EtlError
from spark_jobs.contracts.exit_codes import ExitCode

if TYPE_CHECKING:
    from airflow_etl_provider.hooks.ledger import RunRow

# Of the Spark provider's message, what is neither the whole command nor the log once more.
_SUBMIT_SAID = re.compile(r"Error code is: .*|Spark application .*|Driver .*|YARN application .*|No driver id .*")

# What a run's state says when the driver left no error: what happened, and what to do.
_WITHOUT_ERROR = {
    "registered": (
        "was registered, but its driver never started: spark-submit ended before the driver had reached the ledger",
        "read spark-submit's output above; usual causes are a master that cannot be reached, jars or packages that "
        "cannot be fetched, or a database that the driver cannot reach",
    ),
    "running": (
        "was started, but its driver never said how it ended: killed, out of memory, or its machine was lost",
        "run the task again; a micro-batch that was under way was rolled back and is done again",
    ),
    "stopped": ("was stopped on request", "run the task again; it goes on where the ledger ends"),
    "fenced": (
        "was fenced: a newer run of the pipeline was started, or this one was killed; it committed nothing after that",
        "look at the newer run; without one, run the task again",
    ),
}


@contextlib.contextmanager
def airflow_errors() -> Iterator[None]:
    """Turn the project's errors into Airflow's: what cannot get better by itself is not retried."""
    try:
        yield
    except EtlError as error:
        kind = AirflowException if error.retryable else AirflowFailException
        raise kind(f"{error}\n  Exit code: {_code(int(error.exit_code))}") from error


def exception_for(error: dict[str, Any]) -> AirflowException:
    """Return the exception for an error in the ledger's form (:meth:`EtlError.to_json`)."""
    kind = AirflowException if error.get("retryable") else AirflowFailException
    lines = [str(error.get("what") or error.get("type") or "The run failed")]
    for label, key in (("Found", "found"), ("Expected", "expected"), ("What to do", "cure")):
        if error.get(key):
            lines.append(f"{label}: {error[key]}")
    lines.append(f"Exit code: {_code(error.get('exit_code'))}")
    return kind("\n  ".join(lines))


def exception_for_many(what: str, problems: Mapping[str, dict[str, Any]]) -> AirflowException:
    """Return the exception for errors in the ledger's form, by pipeline. Where one needs a person, none is retried."""
    kind = AirflowException if all(error.get("retryable") for error in problems.values()) else AirflowFailException
    lines = [f"{what}: {len(problems)} problems"]
    for pipeline_id, error in problems.items():
        found = f" Found: {error['found']}." if error.get("found") else ""
        cure = f" What to do: {error['cure']}." if error.get("cure") else ""
        lines.append(f"{pipeline_id}: {error.get('what') or error.get('type')}.{found}{cure}")
    return kind("\n  ".join(lines))


def require_finished(row: RunRow | None, run_id: str, submit_error: str) -> None:
    """Return if the run finished.

    :param submit_error: what spark-submit said when it failed, "" when it did not fail.
    :raises AirflowFailException: it ended with an error that a repetition cannot cure.
    :raises AirflowException: it may be retried: stopped, fenced, never started, lost, or a passing error.
    """
    if row is not None and row.state == "finished":
        return
    raise _why(row, run_id, submit_error)


def _why(row: RunRow | None, run_id: str, submit_error: str) -> AirflowException:
    if row is None:
        return AirflowFailException(f"Run {run_id} is not in the ledger any more: somebody deleted its row.")
    if row.error:
        return exception_for({**row.error, "exit_code": row.error.get("exit_code", row.exit_code)})
    what, cure = _WITHOUT_ERROR.get(row.state, (f"ended as '{row.state}' and did not say why", "read the log above"))
    lines = [f"Run {run_id} {what}.", f"What to do: {cure}."]
    if row.exit_code is not None:
        lines.append(f"Exit code: {_code(row.exit_code)}")
    if said := _SUBMIT_SAID.search(submit_error):
        lines.append(f"spark-submit: {said[0]}")
    return AirflowException("\n  ".join(lines))


def _code(code: object) -> str:
    with contextlib.suppress(ValueError):
        return f"{code} ({ExitCode(int(str(code))).name})"
    return str(code)
