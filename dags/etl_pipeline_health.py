"""How the pipelines are: runs that failed or fell silent, stale data, gaps, books, dead letters, Kafka's lag.

Runs every quarter of an hour, and fails when something is wrong: one notification with all findings. Put notifiers of
any Airflow provider into NOTIFIERS. A pipeline's own limits stand in its file, as `healthConfig`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param, task
from airflow.sdk.exceptions import AirflowFailException

from airflow_etl_provider.hooks.ledger import LedgerHook
from airflow_etl_provider.operators.pipeline_health import PipelineHealthOperator

log = logging.getLogger("airflow.task")

# Such as SlackNotifier(slack_conn_id="ops", text="{{ exception | string }}"); the findings are the exception's text.
# (This DAG renders templates as native objects: without the filter the notifier gets the exception itself.)
NOTIFIERS: list[Any] = []
# Airflow allows some thousand mapped tasks; more pipelines share a task.
MOST_TASKS = 200
# Findings in the text of the failure; a thousand pipelines that all stand still are one message, too.
MOST_NAMED = 50

PARAMS = {
    "ledger_conn_id": Param("warehouse", type="string", title="Connection", description="To the ledger's PostgreSQL."),
    "tracker_schema": Param("etl", type="string", title="Schema of the ledger"),
    "pipelines": Param(
        [], type="array", items={"type": "string"}, title="Pipelines", description="One a line; all when empty."
    ),
    "max_age": Param("26 hours", type=["null", "string"], title="Age", description="Of the last commit or idle run."),
    "gap_window": Param("7 days", type=["null", "string"], title="Gaps", description="How far back to look for them."),
    "max_lag_rows": Param(None, type=["null", "integer"], minimum=0, title="Lag in rows", description="Kafka only."),
    "max_lag": Param(None, type=["null", "string"], title="Lag in time", description="Kafka only: 30 minutes."),
    "min_retention": Param(
        None,
        type=["null", "string"],
        title="Retention",
        description="Kafka only: how long what was not read must still be kept: 12 hours.",
    ),
    "max_lost_share": Param(
        None,
        type=["null", "number"],
        minimum=0,
        maximum=1,
        title="Share of lost rows",
        description="Of a day's rows: rejected, late or dead letters.",
    ),
    "max_new_letters": Param(
        1000, type=["null", "integer"], minimum=0, title="New dead letters", description="Of the last day, that wait."
    ),
}
THRESHOLDS = (
    "max_age",
    "gap_window",
    "max_lag_rows",
    "max_lag",
    "min_retention",
    "max_lost_share",
    "max_new_letters",
)


@task
def list_pipelines(params: dict[str, Any]) -> list[list[str]]:
    """Return the pipelines to look at, in groups of one each as long as there are few."""
    hook = LedgerHook(params["ledger_conn_id"], schema=params["tracker_schema"])
    wanted = params["pipelines"] or hook.pipelines()
    size = -(-len(wanted) // MOST_TASKS) or 1
    return [wanted[first : first + size] for first in range(0, len(wanted), size)]


@task(on_failure_callback=NOTIFIERS, trigger_rule="all_done", retries=0)
def report(groups: list[list[str]] | None, examined: Iterable[list[dict[str, Any]]] | None) -> None:
    """Fail with the findings, and with what could not be looked at."""
    found, lines = list(examined or []), []
    if groups is None:
        lines.append("the pipelines could not be listed: see the task list_pipelines")
    elif len(found) < len(groups):
        lines.append(f"{len(groups) - len(found)} of {len(groups)} tasks examine have failed: see there")
    lines += [
        f"{one['pipeline']}, {one['check']} ({one['state']}): {one['message']}" for group in found for one in group
    ]
    if lines:
        more = len(lines) - MOST_NAMED
        named = [*lines[:MOST_NAMED], f"and {more} more: see the logs of the tasks examine"] if more > 0 else lines
        raise AirflowFailException(f"{len(lines)} findings:\n  " + "\n  ".join(named))
    log.info("Nothing is wrong")


with DAG(
    dag_id="etl_pipeline_health",
    description="Stale, stuck, lagging or gappy pipelines",
    doc_md=__doc__,
    tags=["etl", "maintenance"],
    params=PARAMS,
    schedule="*/15 * * * *",
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 1, "retry_delay": timedelta(minutes=1)},
    render_template_as_native_obj=True,
) as dag:
    listed = list_pipelines()
    examined = PipelineHealthOperator.partial(
        task_id="examine",
        thresholds={name: f"{{{{ params.{name} }}}}" for name in THRESHOLDS},
        ledger_conn_id="{{ params.ledger_conn_id }}",
        tracker_schema="{{ params.tracker_schema }}",
    ).expand(pipelines=listed)
    report(listed, examined.output)
