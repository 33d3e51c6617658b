"""From the trigger in Airflow's API to rows, books, result and asset event."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.system.conftest import Site


@pytest.fixture
def name(site: Site) -> str:
    return site.add_pipeline("lines")


def test_new_data_lands_once_and_is_told(site: Site, name: str) -> None:
    site.add_lines(name, 1, 2, 3)
    run_id, state = site.run(name)
    assert state == "success", site.log(name, run_id)
    assert site.rows(f"SELECT id, item FROM shop.{name} ORDER BY id") == [(i, f"item {i}") for i in (1, 2, 3)]

    result = site.airflow.xcom(name, run_id, "run_pipeline")
    assert (result["state"], result["batches"], result["ledger"]) == ("finished", 1, "balanced")
    assert (result["rows"]["source"], result["rows"]["written"]) == (3, 3)
    assert result["duration_seconds"] > 0

    [event] = site.target_events(name)
    assert event["uri"].startswith(f"postgres://127.0.0.1:{site.server.port}/")
    assert event["extra"]["rows"]["written"] == 3
    assert event["extra"]["run_id"] == result["run_id"]
    ledger = "SELECT record_count, run_id FROM etl.batch_tracker WHERE pipeline_id = %s"
    assert site.rows(ledger, name) == [(3, result["run_id"])]


def test_a_run_without_new_data_writes_nothing_and_emits_nothing(site: Site, name: str) -> None:
    site.add_lines(name, 1)
    assert site.run(name)[1] == "success"
    run_id, state = site.run(name)
    assert state == "success", site.log(name, run_id)
    result = site.airflow.xcom(name, run_id, "run_pipeline")
    assert (result["batches"], result["rows"]["written"]) == (0, 0)
    assert len(site.target_events(name)) == 1


def test_clearing_a_finished_task_runs_it_again(site: Site, name: str) -> None:
    site.add_lines(name, 1)
    run_id, state = site.run(name)
    assert state == "success", site.log(name, run_id)
    first = site.airflow.xcom(name, run_id, "run_pipeline")
    site.add_lines(name, 2)
    site.airflow.clear(name, run_id)
    assert site.airflow.wait_run(name, run_id, seconds=420) == "success", site.log(name, run_id, 2)
    second = site.airflow.xcom(name, run_id, "run_pipeline")
    assert second["run_id"] != first["run_id"]
    assert second["rows"]["written"] == 1
    assert site.rows(f"SELECT id FROM shop.{name} ORDER BY id") == [(1,), (2,)]
    assert len(site.target_events(name)) == 2


def test_the_task_log_has_a_line_for_each_micro_batch(site: Site) -> None:
    name = site.add_pipeline("batches")
    document = site.document(name, maxFilesPerTrigger=1)
    site.write(name, document)
    for number in (1, 2, 3):
        site.add_lines(name, number)
    run_id, state = site.run(name)
    assert state == "success", site.log(name, run_id)
    result = site.airflow.xcom(name, run_id, "run_pipeline")
    assert result["rows"]["written"] == 3


def test_a_missing_connection_fails_without_a_retry_and_names_the_cure(site: Site) -> None:
    name = site.add_pipeline("missing")
    document = site.document(name)
    document["load"]["credentialId"] = "nowhere"
    site.write(name, document)
    run_id, state = site.run(name)
    assert state == "failed"
    log = site.log(name, run_id)
    assert "no connection 'nowhere'" in log
    assert "airflow connections add nowhere" in log
    assert site.airflow.task_instance(name, run_id, "run_pipeline")["try_number"] == 1


def test_what_the_driver_finds_wrong_is_told_by_the_task(site: Site) -> None:
    name = site.add_pipeline("target")
    document = site.document(name)
    document["load"]["autoCreateTable"] = False
    site.write(name, document)
    site.add_lines(name, 1)
    run_id, state = site.run(name)
    assert state == "failed"
    log = site.log(name, run_id)
    assert "7 (TARGET_MISMATCH)" in log
    assert f"shop.{name}" in log
