"""Broken pipeline files beside good ones, with the long-running dag-processor."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.system.conftest import Site

HIDDEN = "Pq7xQz-19"


def wait_for(site: Site, condition: Callable[[], bool], what: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    asked = 0.0
    while not condition():
        now = time.monotonic()
        assert now < deadline, f"{what}: not in {seconds} s"
        if now > asked + 5:
            site.airflow.reread()
            asked = now
        time.sleep(0.2)


def test_two_broken_files_are_shown_and_break_nothing_else(site: Site) -> None:
    good = site.add_pipeline("good")
    typo = site.document("typo") | {"extarct": {}}
    typo["load"]["connectionParams"] = {"password": HIDDEN}
    site.write("typo", typo)
    site.write("no_json", '{"pipelineId": ')

    def errors() -> dict[str, str]:
        return {error["filename"]: error["stack_trace"] for error in site.airflow.import_errors()}

    seen: dict[str, str] = {}

    def both_are_listed() -> bool:
        now = errors()
        if {"pipelines/typo.json", "pipelines/no_json.json"} <= now.keys():
            seen.update(now)
        return bool(seen)

    wait_for(site, both_are_listed, "both import errors")
    assert "extarct" in seen["pipelines/typo.json"]
    assert "no valid JSON" in seen["pipelines/no_json.json"]
    assert HIDDEN not in str(seen)

    for name in ("typo", "no_json"):  # the list has holes whenever Airflow looks for new files; the DAG is always there
        site.airflow.wait_dag(name)
        details = site.airflow.api("GET", f"/dags/{name}/details")
        assert details["is_paused"]
        assert not details["is_stale"]
        assert "is broken" in details["description"]
        assert HIDDEN not in str(details)
    assert "extarct" in site.airflow.api("GET", "/dags/typo/details")["doc_md"]
    assert site.airflow.api("GET", f"/dags/{good}")["is_stale"] is False
    assert site.airflow.api("GET", f"/dags/{good}")["has_import_errors"] is False

    site.write("typo", site.document("typo"))
    (site.pipelines / "no_json.json").unlink()
    wait_for(site, lambda: "broken" not in site.airflow.api("GET", "/dags/typo")["description"], "the corrected DAG")
    parsed = site.airflow.api("GET", f"/dags/{good}")["last_parsed_time"]
    wait_for(site, lambda: site.airflow.api("GET", f"/dags/{good}")["last_parsed_time"] > parsed, "another parsing")
    wait_for(site, lambda: not errors(), "the end of the errors")
    assert site.airflow.api("GET", f"/dags/{good}")["is_stale"] is False


def test_a_task_of_a_broken_file_fails_with_its_error(site: Site) -> None:
    name = site.add_pipeline("breaks")
    site.write(name, site.document(name) | {"extarct": {}})
    run_id, state = site.run(name)
    assert state == "failed"
    assert "extarct" in site.log(name, run_id)
    (site.pipelines / f"{name}.json").unlink()
