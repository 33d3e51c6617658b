"""A DAG with one pipeline, as its own process runs it with ``dag.test()``: a real task, with Airflow's own database."""

from __future__ import annotations

import json
import os

from airflow.sdk import DAG

from airflow_etl_provider.operators.streaming_pipeline import StreamingPipelineOperator

with DAG("guarded", schedule=None, catchup=False) as dag:
    StreamingPipelineOperator(
        task_id="run",
        pipeline=json.loads(os.environ["GUARDED_PIPELINE"]),
        breaker_open=os.environ["GUARDED_WHEN_OPEN"],  # type: ignore[arg-type]
        conf={"spark.ui.enabled": "false", "spark.driver.memory": "1g"},
        retries=0,
    )

if __name__ == "__main__":
    dag.test()
