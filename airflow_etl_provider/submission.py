"""What a run is submitted with: the pipeline's file and variables, the driver's arguments, and what a cluster needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from airflow_etl_provider.hooks.ledger import LedgerHook
from airflow_etl_provider.hooks.spark_driver import PipelineSubmitHook
from spark_jobs.contracts.config import PipelineConfig, load_pipeline, require_supported
from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.log_settings import log_format, log_level

if TYPE_CHECKING:
    from airflow.sdk import Context

_WAITS: Final = ("spark.yarn.submit.waitAppCompletion", "spark.kubernetes.submission.waitAppCompletion")


def read_pipeline(
    pipeline: str | Mapping[str, Any], variables: Mapping[str, str] | str | None, *, run_forever: bool
) -> PipelineConfig:
    """Return the configuration of a pipeline file, or of a dict like one.

    :raises ConfigError: naming every value that is not valid; or its runs would never end, and nobody wants that.
    """
    values = _variables(variables)
    if isinstance(pipeline, Mapping):
        config = PipelineConfig.from_json(pipeline, variables=values)
    else:
        config = load_pipeline(Path(pipeline), values)
    require_supported(config)
    trigger = config.streaming.trigger if config.streaming else None
    if trigger is not None and trigger.endless and not run_forever:
        raise ConfigError(
            "The pipeline's trigger makes a run that never ends, and the task would never end",
            found=f"triggerMode {trigger}",
            expected="availablenow or once",
            cure="change streamingConfigJson.triggerMode and schedule the DAG; or, for a task that is meant to run "
            "for ever, set run_forever=True",
        )
    return config


def _variables(given: Mapping[str, str] | str | None) -> dict[str, str]:
    if isinstance(given, str):
        try:
            given = json.loads(given) if given.strip() else None
        except json.JSONDecodeError as error:
            raise ConfigError("`variables` is not JSON", found=str(error), expected='{"name": "value"}') from None
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError("`variables` is not an object", found=type(given).__name__, expected='{"name": "value"}')
    return {str(name): str(value) for name, value in (given or {}).items()}


def log_options(format_: str | None, level: str | None) -> list[str]:
    """Return the driver's arguments for its log; only what was given: the rest is for its own environment to say."""
    options: list[str] = []
    if format_:
        options += ["--log-format", log_format(format_, "log_format")]
    if level:
        options += ["--log-level", log_level(level, "log_level")]
    return options


def driver_arguments(run_id: str, ledger: LedgerHook) -> list[str]:
    """Return by which arguments the driver finds its run."""
    arguments = ["--run-id", run_id, "--credential", ledger.conn_id, "--tracker-schema", ledger.schema]
    # What the connection lacks and the file has: the driver needs it before it can read the file's request.
    for setting in ledger.connection_params.items():
        arguments += ["--connection-param", "=".join(setting)]
    return arguments


def require_durable(hook: PipelineSubmitHook, *, tracked: bool) -> None:
    """Check that a retry can ask the cluster about the driver of the try before."""
    if hook.is_yarn and not tracked:
        raise ConfigError(
            "A driver on YARN could not be found again after a lost worker",
            found="durable=True (the default) without yarn_track_via_rm_api",
            expected="a way to ask YARN about the driver, or no wish to",
            cure="set yarn_track_via_rm_api=True, with yarn_resourcemanager_webapp_address in the Spark connection "
            "(extra); or durable=False: a retry then starts a new run, which fences the old driver",
        )


def require_deferrable(hook: PipelineSubmitHook, conf: Mapping[str, Any], *, tracked: bool, own_auth: bool) -> None:
    """Check that the driver can do without its worker, and be stopped from elsewhere.

    :param tracked: ``yarn_track_via_rm_api``. :param own_auth: whether there is a ``yarn_rm_auth``.
    :raises ConfigError: it cannot.
    """
    if not hook.is_cluster_mode or hook.master.startswith("local"):
        raise ConfigError(
            "deferrable=True needs a driver that does without the worker, and this one runs below it",
            found=f"master {hook.master}, deploy mode {hook.deploy_mode or 'client'}",
            expected="deploy mode cluster, on YARN, Kubernetes or a standalone cluster",
            cure="set deploy_mode='cluster', or leave deferrable out",
        )
    if hook.is_yarn and not tracked:
        raise ConfigError(
            "A driver on YARN could not be killed from the triggerer",
            found="deferrable=True without yarn_track_via_rm_api",
            cure="set yarn_track_via_rm_api=True, with yarn_resourcemanager_webapp_address in the Spark connection "
            "(extra)",
        )
    if hook.is_yarn and own_auth:
        raise ConfigError(
            "The triggerer cannot log in to YARN as the worker does, and could not kill the driver",
            found="deferrable=True with yarn_rm_auth, an object that cannot be handed to another process",
            cure="use keytab and principal of the Spark connection, or leave deferrable out",
        )
    for key in _WAITS:
        if str(conf.get(key, "false")).strip().lower() != "false":
            raise ConfigError(
                "spark-submit is told to wait for the driver's end, and the task to wait without it",
                found=f"deferrable=True with {key}={conf[key]}",
                cure=f"remove {key}, or leave deferrable out",
            )
    if hook.is_kubernetes and not hook.namespace:
        raise ConfigError(
            "A driver on Kubernetes can be found again by its namespace only",
            found="deferrable=True without a namespace",
            cure="set namespace in the Spark connection's extra, or spark.kubernetes.namespace in conf",
        )


def started_by(context: Context) -> str:
    """Return who starts a run, as the ledger names it: the task's try."""
    ti = context["ti"]
    return f"airflow {ti.dag_id}/{ti.task_id}/{ti.run_id}/{ti.map_index}/{ti.try_number}"
