"""A run that is late in a real Airflow: a notifier is told how it is, and the run goes on."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.system.conftest import Site

# Airflow has the folder of plugins on the path of all its processes.
NOTIFIER = """
from pathlib import Path
from airflow.sdk import BaseNotifier


class NoteNotifier(BaseNotifier):
    template_fields = ("text",)

    def __init__(self, path, text):
        super().__init__()
        self.path, self.text = path, text

    async def async_notify(self, context):
        Path(self.path).write_text(f"{self.text} / {context['dag_run']['dag_run_id']}")
"""
DAG = """
from datetime import timedelta
from airflow.sdk import DAG
from airflow_etl_provider.late_runs import late_run_alert
from airflow_etl_provider.operators.streaming_pipeline import StreamingPipelineOperator

note = {{"path": {note!r}, "text": "Wake up: {{{{ late_run }}}}"}}
late = late_run_alert({name!r}, within=timedelta(seconds=1), notifier={notifier!r}, notifier_kwargs=note)
with DAG({name!r}, schedule=None, deadline=late, is_paused_upon_creation=False):
    StreamingPipelineOperator(task_id="run_pipeline", pipeline={pipeline!r}, name="late")
"""


@pytest.mark.timeout(600)
def test_a_late_run_is_told_of_and_goes_on(site: Site) -> None:
    name = f"late_{uuid.uuid4().hex[:6]}"
    (site.root / name).mkdir()
    (site.root / name / "0.json").write_text('{"id": 1, "item": "mug"}\n')
    (site.airflow.plugins / f"{name}_notes.py").write_text(NOTIFIER)
    note = site.root / f"{name}.note"
    values = {"notifier": f"{name}_notes.NoteNotifier", "note": str(note), "pipeline": site.document(name)}
    file = site.airflow.dags / f"{name}.py"
    file.write_text(DAG.format(name=name, **values))
    site.airflow.wait_dag(name)
    run_id = site.airflow.trigger(name)
    assert site.airflow.wait_run(name, run_id, seconds=240) == "success"
    assert site.rows(f"SELECT count(*) FROM shop.{name}") == [(1,)]
    deadline = time.monotonic() + 60
    while not note.exists():
        assert time.monotonic() < deadline, "nobody was told"
        time.sleep(0.2)
    said = note.read_text()
    assert said.startswith(f"Wake up: {name} is late: DAG run {run_id} has not ended. ")
    assert said.endswith(f" / {run_id}")
    assert "No run was ever started" in said or "Its newest run" in said, said
    file.unlink()
