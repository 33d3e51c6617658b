"""What the operator refuses before anything is submitted, and the command that it would submit."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from airflow.sdk.log import redact

from airflow_etl_provider.credentials import connection, credential_ids
from airflow_etl_provider.hooks.ledger import LedgerHook
from airflow_etl_provider.operators.streaming_pipeline import StreamingPipelineOperator
from spark_jobs.contracts.config import PipelineConfig
from spark_jobs.contracts.run_request import RunRequest
from spark_jobs.contracts.tracker.migrate import migrate

if TYPE_CHECKING:
    from tests.conftest import Database

# Without any of the words that filters look for.
HIDDEN = "Pq7xQz-19/blue@harbour"
WAREHOUSE = "postgres://loader:Pq7xQz-19%2Fblue%40harbour@127.0.0.1:1/shop"


def operator(pipeline: Any, **given: Any) -> StreamingPipelineOperator:
    return StreamingPipelineOperator(task_id="run", pipeline=pipeline, **given)


def prepared(op: StreamingPipelineOperator) -> StreamingPipelineOperator:
    """Do what ``execute`` does before it registers the run."""
    op._prepare_submit(PipelineConfig.from_json(op.pipeline))  # type: ignore[arg-type]
    return op


def test_the_constructor_only_assigns() -> None:
    op = operator("{{ nothing }}", variables="{{ nothing }}", spark_conn_id="nowhere")
    assert (op.pipeline, op.variables) == ("{{ nothing }}", "{{ nothing }}")


def test_pipeline_and_variables_are_templated() -> None:
    assert {"pipeline", "variables", "resume", "conf"} <= set(StreamingPipelineOperator.template_fields)


def test_a_missing_file_is_named(context: Any, tmp_path: Path) -> None:
    with pytest.raises(AirflowFailException, match=r"missing\.json"):
        operator(str(tmp_path / "missing.json")).execute(context)


def test_all_problems_of_a_file_are_told(context: Any, pipeline: dict[str, Any]) -> None:
    pipeline["extarct"] = {}
    pipeline["load"]["writeMode"] = "apend"
    with pytest.raises(AirflowFailException) as raised:
        operator(pipeline).execute(context)
    for word in ("extarct", "apend", "2 (CONFIG_INVALID)"):
        assert word in str(raised.value)


@pytest.mark.parametrize("trigger", ["processingtime=5 seconds", "processingTime=1 minute"])
def test_a_run_that_never_ends_is_refused(context: Any, pipeline: dict[str, Any], trigger: str) -> None:
    pipeline["streamingConfigJson"]["triggerMode"] = trigger
    with pytest.raises(AirflowFailException, match="run_forever=True"):
        operator(pipeline).execute(context)


def test_run_forever_allows_it(context: Any, pipeline: dict[str, Any]) -> None:
    pipeline["streamingConfigJson"]["triggerMode"] = "processingtime=5 seconds"
    with pytest.raises(AirflowFailException, match="spark_default"):  # the next thing that is missing
        operator(pipeline, run_forever=True).execute(context)


@pytest.mark.parametrize("variables", ["{", "[1]"])
def test_variables_that_are_no_object_are_refused(context: Any, pipeline: dict[str, Any], variables: str) -> None:
    with pytest.raises(AirflowFailException, match="variables"):
        operator(pipeline, variables=variables).execute(context)


def test_an_unknown_spark_connection_is_an_error(
    context: Any, pipeline: dict[str, Any], connections: Callable[..., None]
) -> None:
    connections(warehouse=WAREHOUSE)
    with pytest.raises(AirflowFailException, match=r"spark_conn_id.*'nowhere'"):
        operator(pipeline, spark_conn_id="nowhere").execute(context)


def test_an_unknown_credential_is_an_error(
    context: Any, pipeline: dict[str, Any], connections: Callable[..., None]
) -> None:
    connections(spark_default="spark://local")
    with pytest.raises(AirflowFailException, match="'warehouse'"):
        operator(pipeline).execute(context)


def test_a_database_that_does_not_answer_may_be_tried_again(
    context: Any, pipeline: dict[str, Any], connections: Callable[..., None]
) -> None:
    connections(spark_default="spark://local", warehouse=WAREHOUSE)
    with pytest.raises(AirflowException) as raised:
        operator(pipeline).execute(context)
    assert not isinstance(raised.value, AirflowFailException)
    assert "5 (DATABASE_UNREACHABLE)" in str(raised.value)
    assert HIDDEN not in str(raised.value)


@pytest.mark.parametrize("master", ["spark://local", "spark://spark%3A%2F%2Fmaster:7077", "spark://yarn"])
def test_in_client_mode_secrets_are_only_in_the_environment(
    pipeline: dict[str, Any], connections: Callable[..., None], master: str, caplog: pytest.LogCaptureFixture
) -> None:
    connections(spark_default=master, warehouse=WAREHOUSE)
    op = prepared(operator(pipeline, env_vars={"MINE": "1"}, conf={"spark.ui.enabled": "false"}))
    hook = op._get_hook()
    command = hook._build_spark_submit_command(op.application)
    assert hook._env is not None
    assert "Pq7xQz" in hook._env["AIRFLOW_CONN_WAREHOUSE"]
    assert hook._env["MINE"] == "1"
    fields = {name: getattr(op, name) for name in op.template_fields}
    assert "Pq7xQz" not in f"{command} {fields} {caplog.text} {op!r}"
    assert "AIRFLOW_CONN_WAREHOUSE" not in os.environ.get("SPARK_CONF", "")


def test_the_package_is_shipped_beside_the_users_files(
    pipeline: dict[str, Any], connections: Callable[..., None]
) -> None:
    connections(spark_default="spark://local", warehouse=WAREHOUSE)
    op = prepared(operator(pipeline, py_files="mine.zip", packages="a:b:1", conf={"spark.x": "y"}))
    command = op._get_hook()._build_spark_submit_command(op.application)
    mine, ours = command[command.index("--py-files") + 1].split(",")
    assert mine == "mine.zip"
    assert Path(ours).name.startswith("spark_jobs-")
    assert command[command.index("--packages") + 1] == "a:b:1"
    assert command[-1].endswith("spark_jobs/run_pipeline.py")
    redaction = next(word for word in command if word.startswith("spark.redaction.regex="))
    assert "airflow_conn" in redaction
    pattern = re.compile(redaction.partition("=")[2])
    for name in ("PASSWORD", "my.secret", "spark.executorEnv.AIRFLOW_CONN_WAREHOUSE", "spark.hadoop.etl.connection.a"):
        assert pattern.search(name)
    assert not pattern.search("spark.app.name")


@pytest.mark.parametrize("given", [{"log_format": "jsno"}, {"log_level": "loud"}])
def test_a_way_to_log_that_there_is_not_is_refused(
    context: Any, pipeline: dict[str, Any], given: dict[str, str]
) -> None:
    [name] = given
    with pytest.raises(AirflowFailException, match=name):
        operator(pipeline, **given).execute(context)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, []),
        ({"log_format": "JSON", "log_level": "debug"}, ["--log-format", "json", "--log-level", "DEBUG"]),
    ],
    ids=["nothing", "both"],
)
def test_the_driver_is_told_how_to_log(
    context: Any,
    pipeline: dict[str, Any],
    connections: Callable[..., None],
    database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, str],
    words: list[str],
) -> None:
    connections(spark_default="spark://local", warehouse=database.airflow_uri)
    # Notes its words and ends, as a spark-submit without Java does.
    submit = tmp_path / "spark-submit"
    submit.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > "{tmp_path}/words"\nexit 1\n')
    submit.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with database.connect(autocommit=True) as conn:
        migrate(conn, "etl")
    with pytest.raises(AirflowException, match="never started"):
        operator(pipeline, **given).execute(context)
    told = (tmp_path / "words").read_text().splitlines()
    assert told[told.index("--tracker-schema") + 2 :] == words


CLUSTERS = {
    "k8s secret": {"spark.kubernetes.driver.secretKeyRef.AIRFLOW_CONN_WAREHOUSE": "warehouse:uri"},
    "k8s files": {"spark.kubernetes.driverEnv.ETL_CREDENTIALS_DIR": "/etc/etl"},
    "yarn files": {"spark.yarn.appMasterEnv.ETL_CREDENTIALS_DIR": "/etc/etl"},
    "hadoop": {"spark.hadoop.hadoop.security.credential.provider.path": "jceks://hdfs/etl.jceks"},
}


@pytest.mark.parametrize("conf", CLUSTERS.values(), ids=CLUSTERS)
def test_in_cluster_mode_only_names_are_sent(
    pipeline: dict[str, Any], connections: Callable[..., None], conf: dict[str, str]
) -> None:
    connections(spark_default="spark://yarn?deploy-mode=cluster", warehouse=WAREHOUSE)
    op = prepared(operator(pipeline, conf=conf, durable=False))
    hook = op._get_hook()
    command = hook._build_spark_submit_command(op.application)
    assert "Pq7xQz" not in f"{command} {hook._env}"


@pytest.mark.parametrize("write", [str, lambda text: quote(text, safe=""), json.dumps, repr])
def test_airflows_log_masks_the_password_however_it_is_written(
    connections: Callable[..., None], write: Callable[[str], str]
) -> None:
    odd = "Wt3'x\"Q\\z%41 /bl\u00fce@h#r"
    connections(warehouse=f"postgres://loader:{quote(odd, safe='')}@127.0.0.1:1/shop")
    connection("warehouse", purpose="load.credentialId")
    shown = str(redact(f"connecting with {write(odd)} now"))
    assert shown.startswith("connecting with ")
    assert "Wt3" not in shown
    assert "h#r" not in shown


def test_in_cluster_mode_without_a_way_to_secrets_is_refused_with_the_ways(
    context: Any, pipeline: dict[str, Any], connections: Callable[..., None]
) -> None:
    connections(spark_default="spark://yarn?deploy-mode=cluster", warehouse=WAREHOUSE)
    other = {"spark.kubernetes.driver.secretKeyRef.AIRFLOW_CONN_OTHER": "other:uri"}
    with pytest.raises(AirflowFailException) as raised:
        operator(pipeline, conf=other).execute(context)
    for word in ("secretKeyRef.AIRFLOW_CONN_WAREHOUSE", "ETL_CREDENTIALS_DIR", "credential.provider.path"):
        assert word in str(raised.value)


def test_yarn_in_cluster_mode_needs_a_decision_about_lost_workers(
    context: Any, pipeline: dict[str, Any], connections: Callable[..., None]
) -> None:
    connections(spark_default="spark://yarn?deploy-mode=cluster", warehouse=WAREHOUSE)
    with pytest.raises(AirflowFailException, match="yarn_track_via_rm_api=True"):
        operator(pipeline, conf=CLUSTERS["hadoop"]).execute(context)


def test_kubernetes_without_its_provider_names_it(
    context: Any, pipeline: dict[str, Any], connections: Callable[..., None]
) -> None:
    connections(spark_default="k8s://https%3A%2F%2Fcluster:6443?deploy-mode=cluster", warehouse=WAREHOUSE)
    with pytest.raises(AirflowFailException, match="cncf-kubernetes"):
        operator(pipeline, conf=CLUSTERS["k8s secret"]).execute(context)


@pytest.fixture
def ledger(database: Database, connections: Callable[..., None]) -> LedgerHook:
    connections(warehouse=database.airflow_uri)
    return LedgerHook("warehouse")


class TestADriverThatALostWorkerLeft:
    """The Spark provider keeps the cluster's job id for the next try; the ledger says what that job may still do."""

    def submitted(self, context: Any, ledger: LedgerHook, status: str) -> StreamingPipelineOperator:
        class Cluster(StreamingPipelineOperator):
            """Answers for YARN or Kubernetes, of which there is none here."""

            def get_job_status(self, external_id: Any, context: Any) -> str:
                return status

            def is_job_active(self, status: str) -> bool:
                return status == "RUNNING"

        ledger.register(RunRequest(run_id="one", pipeline_id="orders", config={}, started_by="test"))
        context["task_state_store"].update(spark_job_id="application_1", etl_run_id="one")
        return Cluster(task_id="run", pipeline={})

    def test_is_waited_for_while_it_may_commit(self, context: Any, ledger: LedgerHook) -> None:
        op = self.submitted(context, ledger, "RUNNING")
        assert op._run_to_wait_for(context, ledger) == "one"
        assert context["task_state_store"]["spark_job_id"] == "application_1"

    def test_is_forgotten_when_it_has_ended(self, context: Any, ledger: LedgerHook) -> None:
        """Else a clear of a finished task would be skipped as completed."""
        op = self.submitted(context, ledger, "SUCCEEDED")
        assert op._run_to_wait_for(context, ledger) is None
        assert "spark_job_id" not in context["task_state_store"]

    def test_is_forgotten_when_a_newer_run_has_fenced_it(self, context: Any, ledger: LedgerHook) -> None:
        op = self.submitted(context, ledger, "RUNNING")
        ledger.register(RunRequest(run_id="two", pipeline_id="orders", config={}, started_by="test"))
        assert op._run_to_wait_for(context, ledger) is None

    def test_is_forgotten_when_it_was_killed(self, context: Any, ledger: LedgerHook) -> None:
        op = self.submitted(context, ledger, "RUNNING")
        ledger.retire("one")
        assert op._run_to_wait_for(context, ledger) is None


@pytest.mark.parametrize(("enabled", "names"), [(True, ("letters",)), (False, ())])
def test_the_copy_of_the_dead_letters_brings_its_connection(
    pipeline: dict[str, Any], enabled: bool, names: tuple[str, ...]
) -> None:
    queue = {"dlqType": "kafka", "topic": "letters", "credentialId": "letters", "enabled": enabled}
    before = credential_ids(PipelineConfig.from_json(pipeline))
    config = PipelineConfig.from_json({**pipeline, "errorHandling": {"deadLetterQueue": queue}})
    assert credential_ids(config) == (*before, *names)
