"""A run of a command: logged, its result shown, and its error told in the form of the log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from spark_jobs.cli.run_shown import run_log
from spark_jobs.contracts.errors import EtlError
from spark_jobs.contracts.log_settings import LogFormat, LogLevel
from spark_jobs.logs.ending import tell_error
from spark_jobs.logs.events import log_event
from spark_jobs.logs.ids import run_scope

if TYPE_CHECKING:
    from spark_jobs.runtime.run import Ended
    from spark_jobs.runtime.stopping import Stop

log = logging.getLogger("etl.run")


def carry_out_logged(
    run: Callable[[], Ended],
    stop: Stop,
    path: Path,
    title: str,
    form: LogFormat,
    level: LogLevel,
    show: Callable[[Ended], None] = lambda _: None,
) -> None:
    """Carry out a run with its log in ``path``.

    :param show: shows how it ended, before its error is told.
    :raises typer.Exit: it ended with an error, or did not begin; the error was told.
    """
    ended, error, hint = None, None, f"The log is in {path}"
    with run_scope(), run_log(path, title, form, level):
        try:
            ended = run()
            error = ended.error
        except EtlError as refused:
            log.debug("The run did not begin", exc_info=True)
            error, hint = refused, ""
        except Exception as broken:  # noqa: BLE001 - its trace goes into the log, where it is masked
            log_event(log, logging.ERROR, "driver_failed", exc_info=True)
            error = _without_a_word(broken)
        if error is not None and form == "json":
            # Here, where the log still is, and the run's ids are.
            tell_error(log, error, form)
    if ended is not None:
        stop.ended(int(ended.exit_code))
        show(ended)
    if error is not None:
        if form == "plain":
            tell_error(log, error, form, hint)
        raise typer.Exit(int(error.exit_code))


def _without_a_word(broken: Exception) -> EtlError:
    return EtlError(
        "The run ended with an error that this program has no word for",
        found=f"{type(broken).__name__}: {broken}",
        cure="Read the trace in the log; nothing of the micro-batch under way was written",
    )
