"""The health DAG in a real Airflow: green while all is well, red with the findings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.system.conftest import Site

DAG = "etl_pipeline_health"
TOLD = "etl_pipeline_health_told"
# As somebody would who puts a notifier into the drop-in file.
NOTIFIER = """
from pathlib import Path
from airflow.sdk import BaseNotifier

class Pager(BaseNotifier):
    template_fields = ("text",)

    def __init__(self, text):
        super().__init__()
        self.text = text

    def notify(self, context):
        with Path({path!r}).open("a") as file:
            file.write(self.text + "\\n")

NOTIFIERS = [Pager(text="{{{{ exception | string }}}}")]
"""


def look(site: Site, *names: str, **params: Any) -> tuple[str, str]:
    run_id = site.airflow.trigger(DAG, conf={"pipelines": list(names), **params})
    return run_id, site.airflow.wait_run(DAG, run_id, seconds=240)


@pytest.fixture
def _unpaused(site: Site) -> Iterator[None]:
    site.airflow.unpause(DAG)
    yield
    # Its schedule would go on, for all pipelines of these tests, and leave no core to the tests that follow.
    site.airflow.api("PATCH", f"/dags/{DAG}", {"is_paused": True})


@pytest.mark.usefixtures("_unpaused")
def test_it_is_red_while_something_is_wrong(site: Site) -> None:
    well, ill = site.add_pipeline("well"), site.add_pipeline("ill")
    for name in (well, ill):
        site.add_lines(name, 1)
        _, state = site.run(name)
        assert state == "success"
    run_id, state = look(site, well, ill)
    assert state == "success", site.airflow.task_log(DAG, run_id, "report")

    three_days_older = (
        "UPDATE etl.batch_tracker SET processed_at = processed_at - interval '3 days' WHERE pipeline_id = %s",
        "UPDATE etl.pipeline_run SET ended_at = ended_at - interval '3 days' WHERE pipeline_id = %s",
    )
    with site.server.connect("warehouse", autocommit=True) as conn:
        for statement in three_days_older:
            conn.execute(statement, (ill,))
    run_id, state = look(site, well, ill)
    assert state == "failed"
    log = site.airflow.task_log(DAG, run_id, "report")
    assert "1 findings" in log
    assert f"{ill}, freshness (ill)" in log
    assert "3 d" in log
    assert well not in log.split("findings")[1]
    told = site.root / "told.txt"
    text = (site.airflow.dags / f"{DAG}.py").read_text().replace(f'dag_id="{DAG}"', f'dag_id="{TOLD}"')
    text = text.replace("NOTIFIERS: list[Any] = []\n", NOTIFIER.format(path=str(told)))
    text = text.replace('schedule="*/15 * * * *"', "schedule=None, is_paused_upon_creation=False")
    (site.airflow.dags / f"{TOLD}.py").write_text(text)
    site.airflow.wait_dag(TOLD)
    run_id = site.airflow.trigger(TOLD, conf={"pipelines": [well, ill]})
    assert site.airflow.wait_run(TOLD, run_id, seconds=240) == "failed"
    # One notification, with all findings.
    assert told.read_text().count("findings") == 1
    assert f"{ill}, freshness (ill)" in told.read_text()
