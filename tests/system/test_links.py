"""The links beside a task in a real Airflow: while it runs, at its end, and who may open them."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from test_kill_and_secrets import running, wait_for  # noqa: F401 - a fixture

if TYPE_CHECKING:
    from tests.system.conftest import Site

TASK = "run_pipeline"
NAMES = {"Spark UI", "Pipeline", "Dead letters"}
# A user without any role, whom Airflow knows and lets see nothing.
NOBODY = """
from airflow.api_fastapi.app import create_auth_manager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
print(create_auth_manager().generate_jwt(SimpleAuthManagerUser(username="nobody", role=None)))
"""


def shown(site: Site, dag: str, run_id: str) -> dict[str, str]:
    found = site.airflow.links(dag, run_id, TASK)
    assert found.keys() == NAMES
    assert all(found.values()), found
    return {name: str(url) for name, url in found.items()}


@pytest.mark.timeout(900)
def test_they_work_while_the_task_runs_and_after_it(site: Site, running: str) -> None:  # noqa: F811
    airflow = site.airflow
    links = shown(site, "endless", running)
    assert airflow.task_instance("endless", running, TASK)["state"] == "running"
    wait_for(lambda: airflow.page(links["Spark UI"])[0] == 302, "a driver that tells of its UI", 60)
    assert airflow.page(links["Spark UI"])[1].rstrip("/").endswith(site.spark_ui.rpartition(":")[2])
    status, _, text = airflow.page(links["Pipeline"])
    assert status == 200
    assert "endless" in text
    assert "running" in text
    status, _, text = airflow.page(links["Dead letters"])
    assert status == 200
    assert "Dead letters of endless" in text
    assert site.server.password not in text

    for url in links.values():
        assert airflow.page(url, token="")[0] == 401
        assert airflow.page(url, token=_nobody(site))[0] == 403
    assert airflow.page(links["Pipeline"].replace(TASK, "another"))[0] == 404

    airflow.mark("endless", running, TASK, "failed")
    wait_for(lambda: airflow.page(links["Spark UI"])[0] == 200, "the end of the driver's UI", 120)
    assert shown(site, "endless", running) == links
    assert "spark_history_url" in airflow.page(links["Spark UI"])[2]


def test_they_are_there_when_a_task_has_ended(site: Site) -> None:
    name = site.add_pipeline("linked")
    site.add_lines(name, 1, 2)
    run_id, state = site.run(name)
    assert state == "success"
    links = shown(site, name, run_id)
    status, _, text = site.airflow.page(links["Pipeline"])
    assert status == 200
    assert "1 micro-batches, 2 rows" in " ".join(text.split())
    assert "balanced" in text
    assert "Circuit breakers" not in text

    system = "postgresql://127.0.0.1:5432/shop"
    with site.server.connect("warehouse", autocommit=True) as conn:
        conn.execute("INSERT INTO etl.circuit_breaker (system, state, reopen_at) VALUES (%s, 'open', now())", (system,))
        for pipeline, why in ((name, "five failures <in> a row"), ("another", "none of their business")):
            conn.execute(
                "INSERT INTO etl.circuit_breaker_event (system, from_state, to_state, pipeline_id, reason) "
                "VALUES (%s, 'closed', 'open', %s, %s)",
                (system, pipeline, why),
            )
    text = site.airflow.page(links["Pipeline"])[2]
    assert system in text
    assert "closed → open" in text
    assert "five failures &lt;in&gt; a row" in text
    assert "none of their business" not in text


def test_nobody_sees_the_run_of_another_task_nor_runs_what_it_wrote(site: Site) -> None:
    names = [site.add_pipeline(prefix) for prefix in ("mine", "theirs")]
    runs = []
    for name in names:
        site.add_lines(name, 1)
        runs.append(site.run(name)[0])
    mine, theirs = (site.airflow.xcom(name, run_id, TASK, "etl_run") for name, run_id in zip(names, runs, strict=True))
    with site.server.connect("warehouse", autocommit=True) as conn:
        conn.execute(
            "INSERT INTO etl.dead_letter_tally (pipeline_id, status, stage, error_class, letters) "
            "VALUES (%s, 'pending', 'parse', '<script>', 1)",
            (names[0],),
        )
    page = shown(site, names[0], runs[0])["Dead letters"]
    status, _, text = site.airflow.page(page)
    assert status == 200
    assert "&lt;script&gt;" in text
    assert "<script>" not in text

    place = f"/dags/{names[0]}/dagRuns/{quote(runs[0], safe='')}/taskInstances/{TASK}/xcomEntries/etl_run"
    site.airflow.api("PATCH", place, {"value": {**mine, "run_id": theirs["run_id"]}, "map_index": -1})
    status, _, text = site.airflow.page(page)
    assert status == 403
    assert names[1] not in text
    site.airflow.api("PATCH", place, {"value": {"run_id": "x"}, "map_index": -1})
    assert site.airflow.page(page)[0] == 404


def test_a_ledger_that_is_away_is_said(site: Site) -> None:
    name = site.add_pipeline("away")
    site.add_lines(name, 1)
    run_id, _ = site.run(name)
    links = shown(site, name, run_id)
    with site.server.connect("warehouse", autocommit=True) as conn:
        conn.execute("ALTER SCHEMA etl RENAME TO elsewhere")
        try:
            status, _, text = site.airflow.page(links["Pipeline"])
        finally:
            conn.execute("ALTER SCHEMA elsewhere RENAME TO etl")
    assert status == 503
    assert "cure" in text
    assert site.server.password not in text


def _nobody(site: Site) -> str:
    command = [sys.executable, "-c", NOBODY]
    done = subprocess.run(command, env=site.airflow.environ, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.split()[-1]
