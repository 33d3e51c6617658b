"""One Airflow DAG for each pipeline file in ``pipelines/`` beside this file.

Drop a pipeline's JSON there and its DAG appears, named by its ``pipelineId``. A broken file breaks only its own DAG:
its error is in the list of import errors under the file's path, and in the details of the DAG of that name.

Schedules are kept here, not in the pipeline files: the same file runs from the command line as well.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG
from airflow.sdk.definitions.deadline import DeadlineAlert

from airflow_etl_provider.dag_files import PipelineFile, dags_from_files
from airflow_etl_provider.operators.streaming_pipeline import StreamingPipelineOperator

# pipelineId: anything that DAG(schedule=…) takes. Those not named here run when they are triggered.
SCHEDULES: dict[str, str] = {}
# pipelineId: late_run_alert(pipelineId, within=timedelta(minutes=30), notifier=…): who is told of a run that is late.
DEADLINES: dict[str, DeadlineAlert] = {}


def build(file: PipelineFile) -> DAG:
    """Return the DAG of one pipeline file."""
    with DAG(
        dag_id=file.dag_id,
        description=file.description,
        doc_md=file.doc_md,
        tags=file.tags,
        params=file.params,
        schedule=SCHEDULES.get(file.dag_id),
        catchup=False,
        deadline=DEADLINES.get(file.dag_id),
        max_active_runs=1,  # a second run would only fence the first
        default_args={"retries": 2, "retry_delay": timedelta(minutes=1)},  # for what passes; what cannot is not retried
    ) as dag:
        StreamingPipelineOperator(
            task_id="run_pipeline",
            pipeline=str(file.path),
            variables="{{ params.variables | tojson }}",
            resume="{{ params.resume }}",
            outlets=file.outlets,
        )
    return dag


for pipeline_dag in dags_from_files(Path(__file__).parent / "pipelines", build):
    globals()[pipeline_dag.dag_id] = pipeline_dag
