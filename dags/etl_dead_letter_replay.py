"""Bring dead letters home: a dry run, a person's approval, the replay, and a summary.

Trigger it with a form: which pipeline, which letters, how to repair them. The pipeline itself may run meanwhile.
"""

from __future__ import annotations

import logging
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import DAG, Param, TriggerRule, task

from airflow_etl_provider.operators.dead_letter_replay import DeadLetterReplayOperator

log = logging.getLogger(__name__)

# What the drivers need beside the connection `spark_default`: arguments of Spark's operator. Not in the form: packages
# are code. Letters of a Kafka pipeline need its connector, where the cluster does not have it:
# {"packages": "org.apache.spark:spark-sql-kafka-0-10_2.13:4.2.0"}
SPARK: dict[str, Any] = {}

# What a person is asked: as `summary` has it of the dry run.
QUESTION = """{% set found = ti.xcom_pull(task_ids='dry_run') -%}
The dry run says: of {{ found.taken }} letters {{ found.replayed }} would come home, {{ found.failed }} would fail \
again, {{ found.parked }} would be parked.
{%- if found.unsendable %} {{ found.unsendable }} hold no record that could be sent, and would be left.{% endif %}
{%- if found.perhaps_sent %} {{ found.perhaps_sent }} may have been sent by a redrive that died, and would be left.\
{% endif %}

| stage | error class | letters | come home | fail again | parked |
|---|---|---|---|---|---|
{% for kind in found.classes -%}
| {{ kind.stage }} | {{ kind.error_class | replace('|', '/') }} | {{ kind.taken }} | {{ kind.replayed }} \
| {{ kind.failed }} | {{ kind.parked }} |
{% endfor -%}
{% for one in found.samples[:5] %}
- {{ one.dead_letter_id }} ({{ one.stage }}, {{ one.error_class }}) would fail in {{ one.new_stage }}:
  `{{ one.new_error_class }}: {{ one.new_message | replace('`', "'") | replace('\n', ' ') | truncate(200) }}`
{%- endfor %}
"""

PARAMS = {
    "pipeline_id": Param("", type="string", minLength=1, title="Pipeline", description="Whose dead letters."),
    "ledger_conn_id": Param("warehouse", type="string", title="Connection", description="To the ledger's PostgreSQL."),
    "tracker_schema": Param("etl", type="string", title="Schema of the ledger"),
    "stages": Param(
        [],
        type="array",
        items={"type": "string", "enum": ["parse", "transform", "quality", "write", "late"]},
        examples=["parse", "transform", "quality", "write", "late"],
        title="Stages",
        description="All when none is chosen.",
    ),
    "error_classes": Param(
        [], type="array", items={"type": "string"}, title="Error classes", description="One a line; all when empty."
    ),
    "since": Param(None, type=["null", "string"], format="date-time", title="First failed at or after"),
    "until": Param(None, type=["null", "string"], format="date-time", title="First failed before"),
    "letter_ids": Param([], type="array", items={"type": "string"}, title="Only these letters"),
    "include_parked": Param(False, type="boolean", title="Parked letters as well"),
    "mode": Param(
        "reprocess",
        enum=["reprocess", "redrive"],
        title="Mode",
        description="reprocess: through the transforms into the target; redrive: back to the Kafka topic.",
    ),
    "patch": Param(
        {},
        type="object",
        title="Repairs",
        description='SQL by column, such as {"quantity": "abs(quantity)"}; "_value" is the raw record as text.',
    ),
    "limit": Param(None, type=["null", "integer"], minimum=1, title="Most letters"),
    "rate": Param(None, type=["null", "number"], exclusiveMinimum=0, title="Most letters a second"),
    "max_attempts": Param(5, type="integer", minimum=1, title="Failures until a letter is parked"),
    "not_sent": Param(
        False,
        type="boolean",
        title="What a redrive that died may have sent, was not",
        description="On: you have looked, and the rows of such letters are nowhere.",
    ),
    "dry_run": Param(True, type="boolean", title="Only a dry run", description="Off: replay after the dry run."),
    "approval": Param(True, type="boolean", title="Ask a person between dry run and replay"),
}

CHOICE: dict[str, Any] = {name: f"{{{{ params.{name} }}}}" for name in PARAMS if name not in ("dry_run", "approval")}


@task.branch
def what_next(params: dict[str, Any]) -> str:
    """Decide what follows the dry run."""
    if params["dry_run"]:
        return "summary"
    return "approve" if params["approval"] else "replay"


@task(trigger_rule=TriggerRule.NONE_FAILED)
def summary(ti: Any) -> dict[str, Any]:
    """Say what happened, or what would happen."""
    found = {name: ti.xcom_pull(task_ids=name) for name in ("dry_run", "replay")}
    told = found["replay"] or found["dry_run"]
    verb = "would come home" if told["dry_run"] else "came home"
    log.info("%s: of %d dead letters %d %s", told["pipeline_id"], told["taken"], told["replayed"], verb)
    for kind in told["classes"]:
        log.info("%(stage)s %(error_class)s: %(replayed)d of %(taken)d, %(failed)d failed, %(parked)d parked", kind)
    for one in told["samples"]:
        log.info("%(dead_letter_id)s fails in %(new_stage)s: %(new_error_class)s: %(new_message)s", one)
    return told


with DAG(
    dag_id="etl_dead_letter_replay",
    description="Dead letters of a pipeline: dry run, approval, replay, summary",
    doc_md=__doc__,
    tags=["etl", "maintenance"],
    params=PARAMS,
    schedule=None,
    catchup=False,
    render_template_as_native_obj=True,
):
    dry_run = DeadLetterReplayOperator(task_id="dry_run", dry_run=True, **CHOICE, **SPARK)
    approve = ApprovalOperator(
        task_id="approve",
        subject="Replay {{ ti.xcom_pull(task_ids='dry_run')['taken'] }} dead letters of {{ params.pipeline_id }}?",
        body=QUESTION,
    )
    replay = DeadLetterReplayOperator(
        task_id="replay", trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS, **CHOICE, **SPARK
    )
    branch = what_next()
    told = summary()
    dry_run >> branch >> [approve, replay, told]
    approve >> replay >> told
