"""The operator that runs one pipeline file through Spark into PostgreSQL."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator

from airflow_etl_provider.assets import tell_target
from airflow_etl_provider.breaker import TaskBreaker, WhenOpen, breaker_answers
from airflow_etl_provider.credentials import (
    REDACTION_KEY,
    connection,
    credential_ids,
    process_environment,
    redaction,
    require_cluster_credentials,
)
from airflow_etl_provider.deferral import require_ended, stop_deferred_run
from airflow_etl_provider.deferred_run import DeferredRun
from airflow_etl_provider.hooks.ledger import LedgerHook
from airflow_etl_provider.hooks.spark_driver import PipelineSubmitHook
from airflow_etl_provider.links import LINKS, show_run
from airflow_etl_provider.operators.deferrable_submit import RUN_KEY, DeferrableSubmitOperator
from airflow_etl_provider.outcome import airflow_errors, require_finished
from airflow_etl_provider.run_report import RunReport
from airflow_etl_provider.shipping import application_file, package_archive
from airflow_etl_provider.submission import (
    driver_arguments,
    log_options,
    read_pipeline,
    require_deferrable,
    require_durable,
    started_by,
)
from spark_jobs.contracts.config import PipelineConfig
from spark_jobs.contracts.errors import ConfigError, EtlError
from spark_jobs.contracts.run_request import RunRequest, RunResult

if TYPE_CHECKING:
    from airflow.sdk import Context


class StreamingPipelineOperator(DeferrableSubmitOperator):
    """Run a pipeline: new data since the last run, through Spark, into its PostgreSQL table, exactly once.

    The run is registered in the ledger before anything is submitted. From that moment no driver of an older run can
    commit: not one left over by a killed worker, not one that a cluster starts again, not the one of the try before.
    So a retry, a clear or a second trigger may always submit, and always does, with one exception: a driver in cluster
    mode that still runs for this very task, and whose run is still the pipeline's newest, is waited for again after the
    worker was lost (``durable``). Clearing a finished task runs it again.

    The task's result (XCom) is the run as the ledger has it: batches, rows by kind, offsets, watermark, duration, and
    whether the books balance. An event for the target table's asset is emitted when rows were committed, else not.

    Secrets: with a driver below the worker (client mode, local master), connections reach it in the environment of the
    spark-submit process only. In cluster mode only names are sent; the driver takes the values from a Kubernetes
    secret, a file on its node or a Hadoop credential provider, and a task that configures none of them is refused.

    Everything else is the Spark provider's ``SparkSubmitOperator``: ``conf``, ``jars``, ``packages``, ``deploy_mode``,
    ``executor_memory``, ``durable`` and so on. ``application``, ``application_args`` and ``java_class`` are not yours.

    :param pipeline: path of the pipeline's JSON file, or the same as a dict. (templated)
    :param variables: values for the file's ``${name}``; a dict, or JSON text of one. Never secrets. (templated)
    :param spark_conn_id: the Spark connection; one that does not exist is an error.
    :param tracker_schema: PostgreSQL schema of the ledger. (templated)
    :param resume: for a lost checkpoint: ``none``, ``from_ledger`` or ``accept_new_checkpoint``. (templated)
    :param run_forever: allow the triggers ``continuous`` and ``processingtime``, whose runs do not end.
    :param log_format: of the driver's lines in the task's log: ``plain`` or ``json``. Without it, what the driver's
        environment says (``ETL_LOG_FORMAT``), or ``plain``. (templated)
    :param log_level: ``DEBUG``, ``INFO``, ``WARNING`` or ``ERROR``; else ``ETL_LOG_LEVEL``, or ``INFO``. (templated)
    :param stop_grace_seconds: how long a driver below the worker may take to end its micro-batch when the task is
        killed. Airflow gives a killed task five seconds in all; a longer grace is kept by a process that outlives the
        task, and the run may commit in it, unless a newer run is started.
    :param breaker_open: for a pipeline with a circuit breaker, when its target keeps failing: ``wait`` until it may be
        tried again, without a worker's slot, or ``skip``. No driver is started meanwhile; until when, and why, is in
        the task's log and in its XCom ``breaker``.

    ``deferrable``, ``startup_timeout_seconds`` and ``poll_interval`` as :class:`DeferrableSubmitOperator`.

    :raises AirflowFailException: the pipeline, a connection, the table or the data must be changed first.
    :raises AirflowException: anything that a retry may cure.
    """

    template_fields: Sequence[str] = (
        "pipeline",
        "variables",
        "resume",
        "tracker_schema",
        "log_format",
        "log_level",
        *(f for f in SparkSubmitOperator.template_fields if f not in ("application", "application_args")),
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"pipeline": "json", "variables": "json", "conf": "json"}
    ui_color = "#e8f4ec"
    operator_extra_links = LINKS

    def __init__(
        self,
        *,
        pipeline: str | Mapping[str, Any],
        variables: Mapping[str, str] | str | None = None,
        spark_conn_id: str = "spark_default",
        tracker_schema: str = "etl",
        resume: str = "none",
        run_forever: bool = False,
        log_format: str | None = None,
        log_level: str | None = None,
        stop_grace_seconds: float = 3.0,
        breaker_open: WhenOpen = "wait",
        name: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(conn_id=spark_conn_id, name=name, **kwargs)
        self.pipeline = pipeline
        self.variables = variables
        self.spark_conn_id = spark_conn_id
        self.tracker_schema = tracker_schema
        self.resume = resume
        self.run_forever = run_forever
        self.log_format = log_format
        self.log_level = log_level
        self.stop_grace_seconds = stop_grace_seconds
        self.breaker_open = breaker_open
        self._environment: dict[str, str] = {}
        self._ledger: LedgerHook | None = None
        self._run_id: str | None = None

    def execute(self, context: Context) -> dict[str, Any]:  # type: ignore[override]  # the base class returns nothing
        """Register, submit, wait; return the run's result."""
        with self._answering(context) as report:
            config, logged = self._load(), log_options(self.log_format, self.log_level)
            report.pipeline_id = config.pipeline_id
            ledger = LedgerHook(
                config.load.credential_id or "",
                schema=self.tracker_schema,
                connection_params=config.load.database_settings,
            )
            self._prepare_submit(config)
            stop_deferred_run(context)
            new_id = str(uuid.uuid4())
            report.breaker = breaker = TaskBreaker(config, ledger, new_id)
            with breaker.watching():
                run_id = self._run_to_wait_for(context, ledger)
                if run_id is None:
                    breaker.ask()
                    run_id = self._register(context, config, ledger, new_id)
            show_run(context, ledger, run_id)
            self._ledger, self._run_id = report.ledger, report.run_id = ledger, run_id
            self.application_args = [*driver_arguments(run_id, ledger), *logged]
            submit_error = self._submit(context)
            if self._job_id is not None:
                self.wait_in_triggerer(context, ledger, run_id, self._job_id)
            if isinstance(self._hook, PipelineSubmitHook):
                report.heard = self._hook.heard
            return self._ended(context, config, ledger, run_id, breaker, submit_error)

    def on_kill(self) -> None:
        """Ask the driver to stop, wait ``stop_grace_seconds``, take its right to commit away, kill it.

        In this order within Airflow's five seconds. Whatever is left undone when they are over, the next run's
        registration fences the driver.
        """
        if self._resumed is not None:
            self._resumed.stop()
            return
        hook = self._hook
        if (
            isinstance(hook, PipelineSubmitHook)
            and not hook.is_cluster_mode
            and hook.stop_driver(self.stop_grace_seconds)
        ):
            return
        if self._ledger is not None and self._run_id is not None:
            try:
                self._ledger.retire(self._run_id)
            except EtlError as error:
                self.log.warning("Run %s could not be fenced; the next run's start fences it. %s", self._run_id, error)
        if isinstance(hook, PipelineSubmitHook):
            super().on_kill()
            hook.kill_driver()

    # -- before the submit ------------------------------------------------------------------------------------------

    def _load(self) -> PipelineConfig:
        return read_pipeline(self.pipeline, self.variables, run_forever=self.run_forever)

    def _prepare_submit(self, config: PipelineConfig) -> None:
        connection(self.spark_conn_id, purpose="spark_conn_id")  # the base class would silently take "yarn"
        self.conf = {**(self.conf or {})}
        self.conf[REDACTION_KEY] = redaction(self.conf)
        self.application = str(application_file())
        hook = self._get_hook()
        if not hook.is_standalone_cluster:  # its nodes have the package: they start the driver from it
            self.py_files = ",".join(filter(None, (self.py_files, str(package_archive()))))
        self.name = self.name or f"etl {config.pipeline_id}"
        ids = credential_ids(config)
        if self.deferrable:
            tracked, own_auth = self._yarn_track_via_rm_api, self._yarn_rm_auth is not None
            require_deferrable(hook, self.conf, tracked=tracked, own_auth=own_auth)
            # What makes the Spark provider let go of a driver on Kubernetes.
            self._track_driver_via_k8s_api = hook.is_kubernetes
        if not hook.is_cluster_mode:
            self._environment = process_environment(ids)
            return
        require_cluster_credentials(ids, self.conf)
        if self.durable:
            require_durable(hook, tracked=self._yarn_track_via_rm_api)

    def _get_hook(self) -> PipelineSubmitHook:
        try:
            hook = super()._get_hook()
        except NameError as error:  # what the provider raises for a k8s:// master without its extra
            raise ConfigError(
                "The Spark connection's master is Kubernetes, and Airflow's Kubernetes provider is not installed",
                found=str(error),
                cure="pip install apache-airflow-providers-cncf-kubernetes",
            ) from error
        return PipelineSubmitHook.taking_over(
            hook, application=application_file(), environment=self._environment, deferred=self.deferrable
        )

    def _register(self, context: Context, config: PipelineConfig, ledger: LedgerHook, run_id: str) -> str:
        request = RunRequest(
            run_id=run_id,
            pipeline_id=config.pipeline_id,
            config=config.to_mapping(),
            started_by=started_by(context),
            resume=self.resume,
            tracker_schema=self.tracker_schema,
        )
        ledger.register(request)
        if (store := context.get("task_state_store")) is not None:
            store.set(RUN_KEY, request.run_id)
        self.log.info("Registered run %s of pipeline %s", request.run_id, config.pipeline_id)
        return request.run_id

    def _report(self) -> RunReport:
        return RunReport("stream")

    @contextmanager
    def _answering(self, context: Context) -> Iterator[RunReport]:
        """Turn what goes wrong in the block into Airflow's terms, and send metrics when the task ends with it."""
        report = self._report()
        with airflow_errors(), breaker_answers(self.breaker_open, context), report.told():
            yield report

    # -- after it ---------------------------------------------------------------------------------------------------

    def _resume(self, context: Context, run: DeferredRun, reason: BaseException | None) -> dict[str, Any]:
        with self._answering(context) as report:
            self._resumed, ledger = run, run.ledger
            report.pipeline_id, report.ledger, report.run_id = run.pipeline_id, ledger, run.run_id
            if self.post_submit_commands:
                self._get_hook()._run_post_submit_commands()
            require_ended(context, run, reason)
            config = PipelineConfig.from_json(ledger.request(run.run_id).config)
            report.pipeline_id = config.pipeline_id
            report.breaker = breaker = TaskBreaker(config, ledger, run.run_id)
            return self._ended(context, config, ledger, run.run_id, breaker)

    def _ended(
        self,
        context: Context,
        config: PipelineConfig,
        ledger: LedgerHook,
        run_id: str,
        breaker: TaskBreaker,
        submit_error: str = "",
    ) -> dict[str, Any]:
        with breaker.watching(submit_error):
            row = ledger.run(run_id)
            breaker.require_closed(row, submit_error)
            require_finished(row, run_id, submit_error)
            result = ledger.result(run_id)
        self._tell(context, config, ledger, result)
        return self._outcome(ledger, result)

    def _outcome(self, ledger: LedgerHook, result: RunResult) -> dict[str, Any]:  # noqa: ARG002 - others ask the ledger
        return result.model_dump(mode="json")

    def _tell(self, context: Context, config: PipelineConfig, ledger: LedgerHook, result: RunResult) -> None:
        self.log.info(
            "Run %s: %d batches, rows %s, ledger %s", result.run_id, result.batches, result.rows, result.ledger
        )
        if result.rows.get("written"):
            tell_target(self, context, config, ledger.database, result)
