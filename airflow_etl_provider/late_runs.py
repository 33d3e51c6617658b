"""A pipeline's run that is late: Airflow's own deadline, and a message that says how the run is."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference
from asgiref.sync import sync_to_async

from airflow_etl_provider.hooks.ledger import LedgerHook
from spark_jobs.contracts.errors import EtlError, LedgerMissingError

if TYPE_CHECKING:
    from spark_jobs.contracts.tracker.run_state import RunLife

log = logging.getLogger("airflow.task")

_NEVER_STARTED: Final = "No run was ever started in this ledger"


def late_run_alert(
    pipeline: str,
    *,
    within: timedelta,
    reference: Any = DeadlineReference.DAGRUN_QUEUED_AT,
    ledger_conn_id: str = LedgerHook.default_conn_name,
    tracker_schema: str = "etl",
    notifier: type | str = "",
    notifier_kwargs: Mapping[str, Any] | None = None,
) -> DeadlineAlert:
    """Return what ``DAG(deadline=…)`` takes: a DAG run that has not ended in time is told of, once.

    What is told is how the pipeline's newest run is by the ledger: waiting for its driver, running (since when, and
    what it has committed), silent, or never started. It is an error in the triggerer's log, the callback's result in
    Airflow's database, and ``{{ late_run }}`` in the notifier's templates. The DAG run goes on: nothing is stopped.

    :param within: how long after the reference the DAG run must have ended.
    :param reference: one of Airflow's ``DeadlineReference``: when the DAG run was queued, its logical date, ….
    :param notifier: a notifier of any Airflow provider that can be awaited (has ``async_notify``), such as
        ``SmtpNotifier``; the class or its dotted path. The triggerer must be able to import it.
    :param notifier_kwargs: its parameters.
    """
    path = notifier if isinstance(notifier, str) else f"{notifier.__module__}.{notifier.__qualname__}"
    values = {
        "pipeline": pipeline,
        "ledger_conn_id": ledger_conn_id,
        "tracker_schema": tracker_schema,
        "notifier": path,
        "notifier_kwargs": dict(notifier_kwargs or {}),
    }
    return DeadlineAlert(reference=reference, interval=within, callback=AsyncCallback(tell_late_run, values))


async def tell_late_run(
    pipeline: str,
    ledger_conn_id: str,
    tracker_schema: str,
    notifier: str,
    notifier_kwargs: Mapping[str, Any],
    context: dict[str, Any] | None = None,
) -> str:
    """Say how a late run is; return what was said. Airflow calls it in the triggerer."""
    late = dict(context or {})
    dag_run = late.get("dag_run", {})
    hook = LedgerHook(ledger_conn_id, schema=tracker_schema)
    try:
        state = _in_words(await sync_to_async(hook.newest_run)(pipeline))
    except LedgerMissingError:
        state = _NEVER_STARTED
    except EtlError as error:
        # A ledger that does not answer may be why it is late.
        state = f"How it is the ledger does not say: {error}"
    message = f"{pipeline} is late: DAG run {dag_run.get('dag_run_id', '?')} has not ended. {state}"
    log.error("%s", message)
    if notifier:
        module, _, name = notifier.rpartition(".")
        made = getattr(import_module(module), name)(**notifier_kwargs)
        made.context = {**late, "late_run": message}
        await made
    return message


def _in_words(run: RunLife) -> str:
    from spark_jobs.contracts.tracker.run_state import RunPhase
    from spark_jobs.contracts.watch.condition import in_words

    if run.phase is RunPhase.NEVER_STARTED:
        return _NEVER_STARTED
    said = f"Its newest run {run.run_id} is {run.phase}"
    if run.silent_seconds is not None:
        said += f", its last sign of life {in_words(run.silent_seconds)} old"
    if run.error:
        said += f": {run.error.get('what')}"
    return f"{said}. {run.advice}" if run.advice else said
