"""``etl-pipeline run FILE``: one run of a pipeline, without Airflow."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spark_jobs.cli.logged_run import carry_out_logged
from spark_jobs.cli.run_shown import show_result
from spark_jobs.cli.tracker_session import SCHEMA
from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.log_settings import LogFormat
from spark_jobs.contracts.log_settings import log_format as chosen_format
from spark_jobs.contracts.log_settings import log_level as chosen_level
from spark_jobs.contracts.name_values import parse_name_values
from spark_jobs.contracts.run_request import Resume

if TYPE_CHECKING:
    from spark_jobs.runtime.run import Ended


def run(
    file: Annotated[Path, typer.Argument(help="The pipeline's JSON file.", show_default=False)],
    var: Annotated[
        list[str] | None, typer.Option("--var", metavar="NAME=VALUE", help="Value of a ${variable}.")
    ] = None,
    master: Annotated[str | None, typer.Option(help="Spark master; `local[*]` unless given.")] = None,
    conf: Annotated[list[str] | None, typer.Option("--conf", metavar="KEY=VALUE", help="Spark setting.")] = None,
    packages: Annotated[str | None, typer.Option(help="Maven coordinates for Spark, as in spark-submit.")] = None,
    jars: Annotated[str | None, typer.Option(help="Jar files for Spark, with commas between.")] = None,
    resume_from_ledger: Annotated[
        bool, typer.Option("--resume-from-ledger", help="The checkpoint is lost: go on where the ledger stopped.")
    ] = False,
    accept_new_checkpoint: Annotated[
        bool, typer.Option("--accept-new-checkpoint", help="The checkpoint is lost: start over, knowingly.")
    ] = False,
    schema: Annotated[str, SCHEMA] = "etl",
    log_file: Annotated[Path | None, typer.Option(help="Where the log goes; a temporary file unless given.")] = None,
    log_format: Annotated[
        str | None, typer.Option(metavar="plain|json", help="Form of the log lines; ETL_LOG_FORMAT, or plain.")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="What standard error shows; ETL_LOG_LEVEL, or INFO.")
    ] = None,
    json_result: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run a pipeline until everything that is there now was read; new data is read since the last run."""
    if resume_from_ledger and accept_new_checkpoint:
        raise ConfigError(
            "--resume-from-ledger and --accept-new-checkpoint contradict each other",
            cure="Give one: go on where the ledger stopped, or start over knowingly",
        )
    form = chosen_format(log_format, "--log-format")
    level = chosen_level(log_level, "--log-level")
    settings = spark_settings(parse_name_values(conf or [], "--conf"), packages, jars)
    variables = parse_name_values(var or [], "--var")
    log_path = log_file or Path(tempfile.mkstemp(prefix="etl-pipeline-", suffix=".log")[1])
    resume: Resume = "from_ledger" if resume_from_ledger else "none"
    if accept_new_checkpoint:
        resume = "accept_new_checkpoint"
    # Spark is imported from here on: everything above must be quick to say no.
    from spark_jobs.run_pipeline import run_file  # noqa: PLC0415
    from spark_jobs.runtime.session import get_session  # noqa: PLC0415
    from spark_jobs.runtime.stopping import Stop  # noqa: PLC0415

    stop = Stop()
    stop.on_signals()
    name = f"etl-pipeline {file.name}"
    session = partial(get_session, name, with_log_file(settings, log_path, form), master=master)
    carry_out_logged(
        partial(run_file, file, variables, resume=resume, tracker_schema=schema, stop=stop, session=session),
        stop,
        log_path,
        file.stem,
        form,
        level,
        show=partial(_show, as_json=json_result),
    )


def _show(ended: Ended, *, as_json: bool) -> None:
    if ended.result is not None:
        show_result(ended.result, as_json=as_json)


def spark_settings(given: Mapping[str, str], packages: str | None, jars: str | None) -> dict[str, str]:
    """Return Spark's settings, with those that have an option of their own."""
    settings = dict(given)
    if packages:
        settings["spark.jars.packages"] = packages
    if jars:
        settings["spark.jars"] = jars
    return settings


def with_log_file(settings: Mapping[str, str], log_path: Path, form: LogFormat) -> dict[str, str]:
    """Send the JVM's log into the file, away from the terminal."""
    properties = Path(__file__).with_name("log4j2-json.properties" if form == "json" else "log4j2.properties")
    options = settings.get("spark.driver.extraJavaOptions", "")
    return {
        "spark.ui.showConsoleProgress": "false",
        **settings,
        "spark.driver.extraJavaOptions": f"{options} -Dlog4j2.configurationFile='{properties.as_uri()}' "
        f"-Detl.log='{log_path.resolve()}'".strip(),
    }
