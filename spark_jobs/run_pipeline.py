"""The application that ``spark-submit`` starts, and the only place where the parts are put together.

Either a pipeline file::

    spark-submit --py-files spark_jobs.zip run_pipeline.py FILE [--var name=value]…

or a run that the Airflow operator has registered, whose request waits in the tracker::

    run_pipeline.py --run-id ID --credential CREDENTIAL_ID [--tracker-schema etl]

Secrets come from the environment, a 0600 file or a Hadoop credential provider, never from arguments. The exit code
says how the run ended (:class:`~spark_jobs.contracts.exit_codes.ExitCode`).
"""

from __future__ import annotations

import argparse
import logging
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from pyspark.sql import SparkSession

from spark_jobs.contracts.breaker import copy_system, postgres_system, redrive_system
from spark_jobs.contracts.config import PipelineConfig, load_pipeline, require_supported
from spark_jobs.contracts.credentials import DatabaseConnection, HadoopLookup, resolve, resolve_database
from spark_jobs.contracts.errors import ConfigError, EtlError, Operation
from spark_jobs.contracts.exit_codes import ExitCode
from spark_jobs.contracts.log_settings import LogFormat, LogLevel, log_format, log_level
from spark_jobs.contracts.name_values import parse_name_values
from spark_jobs.contracts.replay import ReplayMode, ReplayRequest
from spark_jobs.contracts.reprocess_batches import ReprocessRequest
from spark_jobs.contracts.run_request import Resume, RunRequest, user_at_host
from spark_jobs.contracts.tracker.connect import connect
from spark_jobs.contracts.tracker.migrate import migrate, require_version
from spark_jobs.contracts.tracker.replays import replay_request
from spark_jobs.contracts.tracker.reprocess_batches import reprocess_request
from spark_jobs.contracts.tracker.runs import read_request, register_run
from spark_jobs.logs import ids
from spark_jobs.logs.ending import tell_error
from spark_jobs.logs.events import log_event
from spark_jobs.logs.formats import formatter
from spark_jobs.runtime.breaker import RunBreaker
from spark_jobs.runtime.replay import ReplayRun
from spark_jobs.runtime.reprocess_batches import ReprocessRun
from spark_jobs.runtime.retry import Retries
from spark_jobs.runtime.run import Ended, PipelineRun, SessionFactory
from spark_jobs.runtime.session import get_session, hadoop_credentials
from spark_jobs.runtime.stopping import Stop
from spark_jobs.sources.secrets import reader_options

log = logging.getLogger("etl.run")


def run_file(
    path: Path,
    variables: Mapping[str, str],
    *,
    resume: Resume,
    tracker_schema: str,
    stop: Stop,
    session: SessionFactory,
    hadoop_lookup: HadoopLookup | None = None,
) -> Ended:
    """Register and carry out a run of a pipeline file.

    :raises EtlError: before the run is registered: the file, the connection or the database is at fault.
    """
    config = load_pipeline(path, variables)
    request = RunRequest(
        run_id=str(uuid.uuid4()),
        pipeline_id=config.pipeline_id,
        config=config.to_mapping(),
        started_by=user_at_host(),
        resume=resume,
        tracker_schema=tracker_schema,
    )
    with ids.run_scope():
        ids.begin(pipeline=request.pipeline_id, run=request.run_id)
        require_supported(config)
        database = resolve_database(_credential_id(config), config.load.database_settings, hadoop_lookup=hadoop_lookup)
        retries = _retries(config, request, database, stop)
        # What asks the ledger for the breaker's state asks the same database.
        retries.call(partial(_register, request, database), guarded=False)
        return carry_out(request, database, stop, session, hadoop_lookup, retries)


def _register(request: RunRequest, database: DatabaseConnection) -> None:
    with connect(database, application_name="etl:control") as conn:
        applied = migrate(conn, request.tracker_schema)
        if applied:
            log_event(log, logging.INFO, "tracker_migrated", applied=",".join(applied))
        register_run(conn, request.tracker_schema, request)


def _retries(config: PipelineConfig, request: RunRequest, database: DatabaseConnection, stop: Stop) -> Retries:
    """Return what the pipeline wants done about passing faults; nothing where it says nothing."""
    handling = config.error_handling
    retries = Retries(handling.retry if handling else None, stop)
    _guard(retries, "write", postgres_system(database), config, request, database)
    return retries


def _guard(
    retries: Retries,
    operation: Operation,
    system: str | None,
    config: PipelineConfig,
    request: RunRequest,
    database: DatabaseConnection,
) -> None:
    """Have the breaker of a system asked, where the pipeline wants breakers."""
    settings = config.error_handling.circuit_breaker if config.error_handling else None
    if system is not None and settings is not None and settings.enabled:
        retries.guard(operation, RunBreaker(system, settings, database, request))


def run_replay(
    replay: ReplayRequest,
    database: DatabaseConnection,
    *,
    tracker_schema: str,
    stop: Stop,
    session: SessionFactory,
    hadoop_lookup: HadoopLookup | None = None,
) -> Ended:
    """Register and carry out a replay, by the configuration of the pipeline's newest run.

    :raises EtlError: before the replay is registered: the pipeline is unknown, or the database does not answer.
    """
    with ids.run_scope():
        ids.begin(pipeline=replay.own_pipeline_id)
        with connect(database, application_name="etl:control") as conn:
            require_version(conn, tracker_schema)
            request = replay_request(conn, tracker_schema, replay, started_by=user_at_host())
            ids.begin(pipeline=request.pipeline_id, run=request.run_id)
            register_run(conn, tracker_schema, request)
        return carry_out(request, database, stop, session, hadoop_lookup)


def run_reprocess(
    wanted: ReprocessRequest,
    database: DatabaseConnection,
    *,
    tracker_schema: str,
    stop: Stop,
    session: SessionFactory,
    hadoop_lookup: HadoopLookup | None = None,
) -> Ended:
    """Register and carry out a reprocess, by the configuration of the pipeline's newest run.

    :raises EtlError: before it is registered: the pipeline is unknown, or the database does not answer.
    """
    with ids.run_scope():
        ids.begin(pipeline=wanted.own_pipeline_id)
        with connect(database, application_name="etl:control") as conn:
            require_version(conn, tracker_schema)
            request = reprocess_request(conn, tracker_schema, wanted, started_by=user_at_host())
            ids.begin(pipeline=request.pipeline_id, run=request.run_id)
            register_run(conn, tracker_schema, request)
        return carry_out(request, database, stop, session, hadoop_lookup)


def run_registered(
    run_id: str,
    database: DatabaseConnection,
    *,
    tracker_schema: str,
    stop: Stop,
    session: SessionFactory,
    hadoop_lookup: HadoopLookup | None = None,
) -> Ended:
    """Carry out a run that somebody else has registered."""
    with ids.run_scope():
        ids.begin(run=run_id)
        with connect(database, application_name="etl:control") as conn:
            require_version(conn, tracker_schema)
            request = read_request(conn, tracker_schema, run_id)
        ids.add(pipeline=request.pipeline_id)
        return carry_out(request, database, stop, session, hadoop_lookup)


def carry_out(
    request: RunRequest,
    database: DatabaseConnection,
    stop: Stop,
    session: SessionFactory,
    hadoop_lookup: HadoopLookup | None,
    retries: Retries | None = None,
) -> Ended:
    """Carry out a registered run.

    :param retries: of who has registered it in this process.
    """
    config = PipelineConfig.from_json(request.config)
    secrets: dict[str, str] = {}
    if config.extract.credential_id:
        found = resolve(config.extract.credential_id, hadoop_lookup=hadoop_lookup)
        secrets = reader_options(config.extract.source_type, found)
    retries = retries or _retries(config, request, database, stop)
    kind: type[PipelineRun] = PipelineRun
    if request.replay:
        kind = ReplayRun
    elif request.reprocess:
        kind = ReprocessRun
    copy_secrets = _copy_secrets(config, hadoop_lookup)
    queue = config.error_handling.dead_letter_queue if config.error_handling else None
    if queue is not None and kind is PipelineRun:
        _guard(retries, "publish", copy_system(queue, copy_secrets), config, request, database)
    if request.replay and request.replay.mode is ReplayMode.REDRIVE and not request.replay.dry_run:
        _guard(retries, "publish", redrive_system(config.extract, secrets), config, request, database)
    return kind(request, database, secrets, stop, retries, copy_secrets).execute(session)


def _copy_secrets(config: PipelineConfig, hadoop_lookup: HadoopLookup | None) -> dict[str, str]:
    queue = config.error_handling.dead_letter_queue if config.error_handling else None
    if queue is None or not queue.enabled or not queue.credential_id:
        return {}
    return reader_options(queue.backend.value, resolve(queue.credential_id, hadoop_lookup=hadoop_lookup))


def _credential_id(config: PipelineConfig) -> str:
    if not config.load.credential_id:
        raise ConfigError(
            "load.credentialId is missing",
            expected="the name of the connection that holds the database's password",
            cure="Add it, and set AIRFLOW_CONN_<ID> (or the connection in Airflow)",
        )
    return config.load.credential_id


def main(args: Sequence[str] | None = None) -> int:
    """Run under ``spark-submit``; return the exit code."""
    options = _options(args)
    try:
        form = log_format(options.log_format, "--log-format")
        level = log_level(options.log_level, "--log-level")
    except ConfigError as error:
        tell_error(log, error, "plain")
        return int(error.exit_code)
    _log_to_stderr(form, level)
    with ids.run_scope():
        return _main(options, form)


def _main(options: argparse.Namespace, form: LogFormat) -> int:
    stop = Stop()
    stop.on_signals()
    try:
        ended = _run(options, stop)
    except EtlError as error:
        log.debug("The run did not begin", exc_info=True)
        tell_error(log, error, form)
        return int(error.exit_code)
    except Exception:  # noqa: BLE001 - Python's own way to tell would go past format and mask
        log_event(log, logging.ERROR, "driver_failed", exc_info=True)
        return int(ExitCode.UNEXPECTED)
    if ended.error is not None:
        tell_error(log, ended.error, form)
    stop.ended(int(ended.exit_code))
    return int(ended.exit_code)


def _log_to_stderr(form: LogFormat, level: LogLevel) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(form))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # It logs every command to the JVM, and with them what nobody should see.
    logging.getLogger("py4j").setLevel(logging.WARNING)


def _run(options: argparse.Namespace, stop: Stop) -> Ended:
    name = f"etl {options.run_id or options.file}"
    session: Callable[[], SparkSession] = partial(get_session, name, {})
    if options.run_id:
        parameters = parse_name_values(options.connection_param, "--connection-param")
        database = resolve_database(options.credential, parameters, hadoop_lookup=_hadoop_lookup)
        return run_registered(
            options.run_id,
            database,
            tracker_schema=options.tracker_schema,
            stop=stop,
            session=session,
            hadoop_lookup=_hadoop_lookup,
        )
    return run_file(
        Path(options.file),
        parse_name_values(options.var, "--var"),
        resume=_resume(options),
        tracker_schema=options.tracker_schema,
        stop=stop,
        session=session,
        hadoop_lookup=_hadoop_lookup,
    )


def _hadoop_lookup(alias: str) -> str | None:
    # Only spark-submit's configuration names a credential provider, so the session is needed to ask it.
    return hadoop_credentials(get_session("etl", {}), alias)


def _resume(options: argparse.Namespace) -> Resume:
    if options.resume_from_ledger:
        return "from_ledger"
    return "accept_new_checkpoint" if options.accept_new_checkpoint else "none"


def _options(args: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options = parser.parse_args(args)
    if bool(options.file) == bool(options.run_id):
        parser.error("give either a pipeline file or --run-id")
    if options.run_id and not options.credential:
        parser.error("--run-id needs --credential")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run_pipeline.py", description="Run one pipeline under spark-submit.")
    parser.add_argument("file", nargs="?", help="the pipeline's JSON file")
    parser.add_argument("--var", action="append", default=[], metavar="NAME=VALUE", help="value of a ${variable}")
    parser.add_argument("--run-id", help="a registered run, instead of a file")
    parser.add_argument("--credential", help="with --run-id: name of the database's connection")
    parser.add_argument("--connection-param", action="append", default=[], metavar="NAME=VALUE", help="what it lacks")
    parser.add_argument("--tracker-schema", default="etl")
    parser.add_argument("--log-format", metavar="plain|json", help="form of the log lines; ETL_LOG_FORMAT, or plain")
    parser.add_argument("--log-level", metavar="LEVEL", help="DEBUG, INFO, WARNING, ERROR; ETL_LOG_LEVEL, or INFO")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--resume-from-ledger", action="store_true", help="a lost checkpoint: go on where the ledger is")
    group.add_argument("--accept-new-checkpoint", action="store_true", help="a lost checkpoint: start over knowingly")
    return parser


if __name__ == "__main__":
    sys.exit(main())
