"""A task that runs until it is killed: what can be seen of its secrets meanwhile, and what is left of it afterwards."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psutil
import pytest

if TYPE_CHECKING:
    from tests.system.conftest import Site

RUN = "SELECT run_id, state FROM etl.pipeline_run WHERE pipeline_id = 'endless' ORDER BY registered_at DESC LIMIT 1"


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 240) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not in {seconds} s"
        time.sleep(0.2)
    return found


def drivers(site: Site) -> list[psutil.Process]:
    """Return the running drivers of the endless pipeline's runs, JVM and Python."""
    runs = {run for (run,) in site.rows("SELECT run_id FROM etl.pipeline_run WHERE pipeline_id = 'endless'")}
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if runs & set(process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


@pytest.fixture
def running(site: Site) -> Iterator[str]:
    """Start the endless task; return its DAG run when rows arrive."""
    site.airflow.wait_dag("endless")
    site.airflow.unpause("endless")
    before = site.rows("SELECT count(*) FROM shop.endless")[0][0] if _table_exists(site) else 0
    site.add_lines("endless", 1)
    run_id = site.airflow.trigger("endless")

    def written() -> bool:
        assert site.airflow.run_state("endless", run_id) in ("queued", "running"), site.log("endless", run_id)
        return _table_exists(site) and site.rows("SELECT count(*) FROM shop.endless")[0][0] > before

    wait_for(written, "the first rows")
    yield run_id
    if site.airflow.run_state("endless", run_id) == "running":
        site.airflow.mark("endless", run_id, "run_pipeline", "failed")
    wait_for(lambda: not drivers(site), "the end of the drivers", 60)


def _table_exists(site: Site) -> bool:
    return site.rows("SELECT to_regclass('shop.endless') IS NOT NULL")[0][0] is True


def test_the_password_is_nowhere_to_be_seen(site: Site, running: str) -> None:
    password = site.server.password
    shapes = {password, quote(password, safe="")}

    def has_none(text: str, where: str) -> None:
        assert not [shape for shape in shapes if shape in text], where

    commands = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert [command for command in commands if "run_pipeline.py" in command]
    has_none("\n".join(commands), "process arguments")
    has_none(json.dumps(site.airflow.rendered_fields("endless", running, "run_pipeline")), "rendered template")
    has_none(site.log("endless", running), "task log")
    for path in ("/environment/", "/api/v1/applications"):
        page = read(site.spark_ui + path)
        has_none(page, f"Spark's {path}")
    application = json.loads(page)[0]["id"]
    environment = read(f"{site.spark_ui}/api/v1/applications/{application}/environment")
    assert "spark.redaction.regex" in environment
    has_none(environment, "Spark's environment")
    for file in site.airflow.home.rglob("*"):
        if file.is_file() and file.suffix in (".log", ".json", ".txt", ".cfg"):
            has_none(file.read_text(errors="replace"), str(file))
    for file in (site.root / "checkpoints").rglob("*"):
        if file.is_file():
            has_none(file.read_text(errors="replace"), str(file))


def read(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as answer:
        return answer.read().decode()  # type: ignore[no-any-return]


def test_a_killed_task_leaves_no_driver_that_can_commit(site: Site, running: str) -> None:
    assert drivers(site)
    site.airflow.mark("endless", running, "run_pipeline", "failed")
    wait_for(lambda: not drivers(site), "the end of the drivers", 60)
    [(_, state)] = site.rows(RUN)
    assert state in ("stopped", "fenced")


def test_a_cleared_running_task_is_replaced_by_one_run(site: Site, running: str) -> None:
    [(first, _)] = site.rows(RUN)
    site.airflow.clear("endless", running)
    wait_for(lambda: site.rows(RUN)[0][0] != first, "the next run")
    site.add_lines("endless", 2)
    wait_for(lambda: site.rows("SELECT count(*) FROM shop.endless WHERE id = 2")[0][0] > 0, "its rows")
    state = site.rows("SELECT state FROM etl.pipeline_run WHERE run_id = %s", first)
    assert state[0][0] in ("stopped", "fenced")
    lines = sum(len(file.read_text().splitlines()) for file in (site.root / "endless").iterdir())
    wait_for(lambda: site.rows("SELECT count(*) FROM shop.endless") == [(lines,)], "every line, once")


def test_a_task_whose_worker_is_gone_cannot_commit_beside_its_successor(site: Site, running: str) -> None:
    """SIGKILL for the task's process: nobody stops the driver, and the next run fences it."""
    [(first, _)] = site.rows(RUN)
    survivors = drivers(site)
    for process in task_processes(site, survivors):
        process.kill()
    wait_for(lambda: site.airflow.run_state("endless", running) == "failed", "the failed run")
    again = site.airflow.trigger("endless")
    wait_for(lambda: site.rows(RUN)[0][0] != first, "the next run")
    wait_for(lambda: not [process for process in survivors if process.is_running()], "the end of the older driver")
    assert site.rows("SELECT state FROM etl.pipeline_run WHERE run_id = %s", first)[0][0] == "fenced"
    site.add_lines("endless", 3)
    wait_for(lambda: site.rows("SELECT count(*) FROM shop.endless WHERE id = 3") == [(1,)], "the next run's rows")
    site.airflow.mark("endless", again, "run_pipeline", "failed")


def task_processes(site: Site, survivors: list[psutil.Process]) -> list[psutil.Process]:
    """Return the processes above the driver's JVM that are the task's own."""
    jvm = next(process for process in survivors if "java" in process.name())
    task = jvm.parent()
    assert task is not None
    return [task]
