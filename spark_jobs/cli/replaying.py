"""Carry out a replay from the command line, in a Spark session of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from spark_jobs.cli.logged_run import carry_out_logged
from spark_jobs.cli.run import spark_settings, with_log_file
from spark_jobs.cli.tracker_session import tracker_session
from spark_jobs.contracts.credentials import resolve_database
from spark_jobs.contracts.errors import EtlError
from spark_jobs.contracts.log_settings import log_format, log_level
from spark_jobs.contracts.replay import ReplayRequest, ReplaySummary
from spark_jobs.contracts.tracker.replays import read_summary


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

    :raises typer.Exit: it did not begin, or ended with an error, which was told.
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
    session = partial(get_session, name, conf, master=master)
    carry_out_logged(
        lambda: run_replay(request, resolve_database(credential_id), tracker_schema=schema, stop=stop, session=session),
        stop,
        log_path,
        request.letters.pipeline_id,
        form,
        level,
    )
    with tracker_session(credential_id) as conn:
        summary = read_summary(conn, schema, request.replay_id)
    if summary is None:
        raise EtlError("The replay has ended and left no summary", cure=f"Read {log_path}")
    return summary
