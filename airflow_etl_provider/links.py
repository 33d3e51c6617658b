"""The links beside a task in the UI: Spark's UI, the pipeline, its dead letters.

Each leads to a page of this provider (:mod:`airflow_etl_provider.pages`), which finds out when it is opened what there
is to see: Airflow keeps a link as it was when the task's execution ended, and a driver's UI has another address with
each try. They are there from the moment the run is registered, also while the task is deferred, and stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final
from urllib.parse import urlencode, urlsplit

from airflow.providers.common.compat.sdk import conf
from airflow.sdk.bases.operatorlink import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context
    from airflow.sdk.types import TaskInstanceKey

    from airflow_etl_provider.hooks.ledger import LedgerHook

PREFIX: Final = "/etl"
"""Where the API server has the pages."""

SHOWN_RUN: Final = "etl_run"
"""The task's XCom that says which run of which ledger its pages are about; no secrets."""


class _PageLink(BaseOperatorLink):
    page: ClassVar[str]

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002 - Airflow's signature
        """Return the page's address: the same whenever it is asked for."""
        return page_address(self.page, ti_key)


class SparkUiLink(_PageLink):
    """Spark's UI while the driver lives; then the history server, where one is configured."""

    name = "Spark UI"
    page = "spark"


class PipelineLink(_PageLink):
    """How the pipeline and its newest micro-batches are."""

    name = "Pipeline"
    page = "pipeline"


class DeadLettersLink(_PageLink):
    """Numbers of the pipeline's dead letters."""

    name = "Dead letters"
    page = "dead-letters"


LINKS: Final = (SparkUiLink(), PipelineLink(), DeadLettersLink())


def page_address(page: str, ti: Any) -> str:
    """Return the address of a task's page, as the API server is reached from outside."""
    # Without a base_url the browser completes the path itself.
    base = conf.get("api", "base_url", fallback="").rstrip("/")
    root = base if urlsplit(base).scheme in ("http", "https") else ""
    index = -1 if ti.map_index is None else ti.map_index
    task = {"dag_id": ti.dag_id, "run_id": ti.run_id, "task_id": ti.task_id, "map_index": index}
    return f"{root}{PREFIX}/{page}?{urlencode(task)}"


def show_run(context: Context, ledger: LedgerHook, run_id: str) -> None:
    """Make the links work from now on: Airflow itself asks for them when the execution has ended."""
    ti = context["ti"]
    run = {
        "run_id": run_id,
        "conn_id": ledger.conn_id,
        "tracker_schema": ledger.schema,
        "connection_params": ledger.connection_params,
    }
    ti.xcom_push(key=SHOWN_RUN, value=run)
    for link in LINKS:
        ti.xcom_push(key=link.xcom_key, value=page_address(link.page, ti))
