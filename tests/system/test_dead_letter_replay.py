"""The replay DAG in a real Airflow: dry run, a person's approval, replay, summary; and the sensor that watches."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from spark_jobs.contracts.replay import LetterFilter
from spark_jobs.contracts.tracker.letters import discard_letters

if TYPE_CHECKING:
    from tests.system.conftest import Site

DAG = "etl_dead_letter_replay"


@pytest.fixture
def name(site: Site) -> str:
    """A pipeline with two lines that could not be read, one of which a patch repairs."""
    name = site.add_pipeline("letters")
    unfinished = site.root / f"{uuid.uuid4().hex}.json"
    unfinished.write_text('{"id": 1, "item": "one"}\n{"id": "2", "item": "two"}\n{"id": "x", "item": "three"}\n')
    unfinished.replace(site.root / name / unfinished.name)
    run_id, state = site.run(name)
    assert state == "success", site.log(name, run_id)
    site.airflow.unpause(DAG)
    return name


def _statuses(site: Site, name: str) -> list[tuple[Any, ...]]:
    return site.rows("SELECT status, count(*) FROM etl.dead_letter WHERE pipeline_id = %s GROUP BY 1 ORDER BY 1", name)


def _trigger(site: Site, name: str, **params: Any) -> str:
    patch = {"_value": "replace(_value, '\"2\"', '2')"}
    return site.airflow.trigger(DAG, conf={"pipeline_id": name, "patch": patch, **params})


def test_a_dry_run_alone_changes_nothing(site: Site, name: str) -> None:
    run_id = _trigger(site, name)
    assert site.airflow.wait_run(DAG, run_id, seconds=420) == "success", _log(site, run_id, "dry_run")
    told = site.airflow.xcom(DAG, run_id, "summary")
    assert (told["dry_run"], told["taken"], told["replayed"], told["failed"]) == (True, 2, 1, 1)
    assert _statuses(site, name) == [("pending", 2)]


def test_what_a_person_approves_comes_home(site: Site, name: str) -> None:
    run_id = _trigger(site, name, dry_run=False)
    _wait_asked(site, run_id)
    assert _statuses(site, name) == [("pending", 2)]
    question = site.airflow.question(DAG, run_id, "approve")
    assert "of 2 letters 1 would come home, 1 would fail again, 0 would be parked." in question
    assert "| parse | MALFORMED_JSON | 2 | 1 | 1 | 0 |" in question
    assert "would fail in parse:\n  `MALFORMED_JSON: " in question
    site.airflow.answer(DAG, run_id, "approve", "Approve")
    assert site.airflow.wait_run(DAG, run_id, seconds=420) == "success", _log(site, run_id, "replay")
    told = site.airflow.xcom(DAG, run_id, "summary")
    assert (told["dry_run"], told["replayed"], told["failed"]) == (False, 1, 1)
    assert _statuses(site, name) == [("pending", 1), ("replayed", 1)]
    assert site.rows(f"SELECT id FROM shop.{name} ORDER BY id") == [(1,), (2,)]
    # One of the two was dry.
    site.statsd.wait("airflow.etl.run.ended", times=2, pipeline_id=name, work="replay", exit="finished")
    for outcome in ("replayed", "failed"):
        assert site.statsd.values("airflow.etl.replay.letters", pipeline_id=name, outcome=outcome) == [1]
    [*_, event] = site.target_events(name)
    assert event["extra"]["rows"]["written"] == 1


def test_what_a_person_rejects_stays(site: Site, name: str) -> None:
    run_id = _trigger(site, name, dry_run=False)
    _wait_asked(site, run_id)
    site.airflow.answer(DAG, run_id, "approve", "Reject")
    assert site.airflow.wait_run(DAG, run_id, seconds=420) == "success"
    assert _statuses(site, name) == [("pending", 2)]


def test_an_unknown_pipeline_fails_the_run(site: Site, name: str) -> None:
    run_id = _trigger(site, f"{name}_gone", dry_run=False, approval=False)
    assert site.airflow.wait_run(DAG, run_id, seconds=420) == "failed"
    assert "is not in the ledger" in _log(site, run_id, "dry_run")


def test_the_sensor_wakes_when_the_letters_are_gone(site: Site, name: str) -> None:
    run_id = site.airflow.trigger("watch_letters", conf={"pipeline": name})
    site.airflow.wait_task("watch_letters", run_id, "drained", "deferred", seconds=120)
    with site.server.connect("warehouse", autocommit=True) as conn:
        wanted = LetterFilter.of(pipeline_id=name, statuses=("pending", "parked"))
        assert discard_letters(conn, "etl", wanted, by="ada", reason="test data") == 2
    assert site.airflow.wait_run("watch_letters", run_id, seconds=180) == "success"
    assert site.airflow.xcom("watch_letters", run_id, "drained") == {"letters": 0, "counts": []}


def _wait_asked(site: Site, run_id: str) -> None:
    site.airflow.wait_task(DAG, run_id, "approve", "awaiting_input", seconds=420)
    site.airflow.wait_released(run_id, "approve")


def _log(site: Site, run_id: str, task: str) -> str:
    text = site.airflow.task_log(DAG, run_id, task)
    return text if isinstance(text, str) else json.dumps(text)
