"""Carry out a replay from the command line, in a Spark session of its own."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import typer

from spark_jobs.cli.progress import run_log
from spark_jobs.cli.run import spark_settings, with_log_file
from spark_jobs.cli.tracker_session import tracker_session
from spark_jobs.contracts.credentials import resolve_database
from spark_jobs.contracts.errors import EtlError
from spark_jobs.contracts.log_settings import log_format, log_level
from spark_jobs.contracts.replay import ReplayRequest, ReplaySummary
from spark_jobs.contracts.tracker.replays import read_summary
from spark_jobs.logs.ending import tell_error
from spark_jobs.logs.ids import run_scope

log = logging.getLogger("etl.replay")


def carry_out_replay(
    request: ReplayRequest,
    credential_id: str,
    *,
    schema: str,
    master: str | None,
    settings: Mapping[str, str],
    packages: str | None,
    jars: str | None,
) -> ReplaySummary:
    """Replay, and return what came of it.

    :raises EtlError: before it was registered. :raises typer.Exit: it ended with an error, which was printed.
    """
    form, level = log_format(None, "--log-format"), log_level(None, "--log-level")
    log_path = Path(tempfile.mkstemp(prefix="etl-replay-", suffix=".log")[1])
    conf = with_log_file(spark_settings(settings, packages, jars), log_path, form)
    # Spark is imported from here on: everything above must be quick to say no.
    from spark_jobs.run_pipeline import run_replay  # noqa: PLC0415
    from spark_jobs.runtime.session import get_session  # noqa: PLC0415
    from spark_jobs.runtime.stopping import Stop  # noqa: PLC0415

    stop = Stop()
    stop.on_signals()
    name = f"etl-pipeline dead-letters replay {request.letters.pipeline_id}"
    with run_scope(), run_log(log_path, request.letters.pipeline_id, form, level):
        ended = run_replay(
            request,
            resolve_database(credential_id),
            tracker_schema=schema,
            stop=stop,
            session=partial(get_session, name, conf, master=master),
        )
    stop.ended(int(ended.exit_code))
    if ended.error is not None:
        tell_error(log, ended.error, form, f"The log is in {log_path}")
        raise typer.Exit(int(ended.exit_code))
    with tracker_session(credential_id) as conn:
        summary = read_summary(conn, schema, request.replay_id)
    if summary is None:
        raise EtlError("The replay has ended and left no summary", cure=f"Read {log_path}")
    return summary
