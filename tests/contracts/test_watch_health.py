"""What the health DAG finds wrong with a pipeline, on a real ledger."""

from __future__ import annotations

from typing import Any

import pytest
from watched import Watched

from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.run_request import RunRequest
from spark_jobs.contracts.source_gaps import GAP_REASONS
from spark_jobs.contracts.tracker import runs
from spark_jobs.contracts.watch.condition import LedgerView
from spark_jobs.contracts.watch.health import Thresholds, examine, pipelines

ALL = Thresholds.of(max_age="1 hour", gap_window="7 days", max_lost_share=0.5, max_new_letters=2)


def config(**changes: Any) -> dict[str, Any]:
    return {
        "pipelineId": "orders",
        "mode": "streaming",
        "extract": {"sourceType": "rate", "connectionParams": {"rowsPerBatch": "10"}},
        "load": {"sinkType": "postgresql", "table": "orders", "credentialId": "warehouse"},
        "streamingConfigJson": {"checkpointLocation": "/c", "queryName": "orders"},
        **changes,
    }


@pytest.fixture
def ledger(tracker):
    made = Watched(tracker)
    register(made, "r2", config())
    made.query()
    made.batches(0, 1)
    return made


def register(ledger: Watched, run_id: str, document: dict[str, Any]) -> None:
    request = RunRequest(run_id=run_id, pipeline_id="orders", config=document, started_by="me")
    runs.register_run(ledger.tracker.conn, "etl", request)


def findings(ledger: Watched, thresholds: Thresholds = ALL) -> dict[str, str]:
    found = examine(LedgerView(ledger.tracker.conn, "etl"), ["orders"], thresholds)
    assert {one.pipeline for one in found} <= {"orders"}
    assert {one.state for one in found} <= {"ill"}
    return {one.check: one.message for one in found}


def test_nothing_is_wrong_with_a_healthy_pipeline(ledger):
    assert findings(ledger) == {}
    assert pipelines(LedgerView(ledger.tracker.conn, "etl")) == ["orders"]


def test_a_pipeline_that_has_nothing_to_read_yet_is_healthy(tracker):
    ledger = Watched(tracker)
    register(ledger, "r2", config())
    ledger.query()
    ledger.finish_runs()
    assert findings(ledger) == {}


def test_a_micro_batch_that_is_being_finished_is_nothing_wrong_and_one_that_nobody_finishes_is(ledger):
    ledger.sql(
        "INSERT INTO etl.batch_decision (pipeline_id, query_id, batch_id, run_id, epoch, winners, record, event, "
        "decided_at) VALUES ('orders', 'q', 2, 'r2', 1, '[]', '{}', '{}', clock_timestamp() - interval '10 seconds')"
    )
    assert findings(ledger) == {}
    ledger.sql("UPDATE etl.batch_decision SET decided_at = clock_timestamp() - interval '1 hour'")
    found = findings(ledger)
    assert found.keys() == {"gaps", "balance"}
    assert "decided and not finished" in found["gaps"]


def test_everything_that_is_wrong_is_found_at_once(ledger):
    ledger.batches(5)
    ledger.sql("UPDATE etl.batch_tracker SET processed_at = processed_at - interval '3 hours'")
    ledger.sql(
        "INSERT INTO etl.dead_letter_single (pipeline_id, query_id, batch_id, stage, error_class, message, source) "
        "SELECT 'orders', 'q', 0, 'parse', 'BAD', 'm', '{}' FROM generate_series(1, 3)"
    )
    runs.finish_run(ledger.tracker.conn, "etl", "r2", "failed", 1, error={"what": "The disk was full"})
    found = findings(ledger, Thresholds.of(**{**ALL.model_dump(), "max_lost_share": 0.1}))
    assert found.keys() == {"run", "freshness", "gaps", "balance", "dead_letters"}
    assert "r2 has failed: The disk was full" in found["run"]
    assert "3 h" in found["freshness"]
    assert "micro-batches 2 to 4" in found["gaps"]
    assert "more than 2 dead letters" in found["dead_letters"]


def test_what_the_broker_deleted_unread_is_told_and_what_never_was_a_record_is_not(ledger):
    gap = (
        "INSERT INTO etl.source_gap (pipeline_id, query_id, batch_id, source, missing_rows, reason) "
        "VALUES ('orders', 'q', 0, '{}', 4, %s)"
    )
    ledger.sql(gap, GAP_REASONS["compaction"])
    assert findings(ledger) == {}
    ledger.sql(gap, GAP_REASONS["retention"])
    found = findings(ledger)
    assert found.keys() == {"gaps"}
    assert GAP_REASONS["retention"] in found["gaps"]


def test_a_run_that_ended_in_the_future_is_not_fresh(ledger):
    ledger.sql("UPDATE etl.batch_tracker SET processed_at = processed_at - interval '3 hours'")
    assert findings(ledger).keys() == {"freshness"}
    runs.finish_run(ledger.tracker.conn, "etl", "r2", "finished", 0)
    assert findings(ledger) == {}
    ledger.sql("UPDATE etl.pipeline_run SET ended_at = ended_at + interval '2 days' WHERE run_id = 'r2'")
    assert findings(ledger).keys() == {"freshness"}


def test_a_run_whose_driver_does_not_come_up_for_hours(ledger):
    register(ledger, "r3", config())
    ledger.sql("UPDATE etl.pipeline_run SET registered_at = now() - interval '50 minutes' WHERE run_id = 'r3'")
    assert findings(ledger) == {}
    ledger.sql("UPDATE etl.pipeline_run SET registered_at = now() - interval '2 hours' WHERE run_id = 'r3'")
    found = findings(ledger)
    assert found.keys() == {"run"}
    assert "r3 was started 2 h" in found["run"]
    assert "spark-submit" in found["run"]


def test_a_pipelines_own_window_for_gaps(ledger):
    ledger.batches(5, 6)
    ledger.sql("UPDATE etl.batch_tracker SET processed_at = processed_at - interval '30 minutes' WHERE batch_id <= 5")
    assert findings(ledger).keys() == {"gaps"}
    register(ledger, "r3", config(healthConfig={"gapWindow": "10 minutes"}))
    assert findings(ledger) == {}


def test_what_is_not_asked_for_is_not_looked_at(ledger):
    ledger.batches(5)
    ledger.sql("UPDATE etl.batch_tracker SET processed_at = processed_at - interval '3 hours'")
    assert findings(ledger, Thresholds.of()) == {}


def test_an_old_letter_is_not_new_and_one_that_came_home_does_not_wait(ledger):
    add = (
        "INSERT INTO etl.dead_letter_single (pipeline_id, query_id, batch_id, stage, error_class, message, source, "
        "first_failed_at, status, home_query_id, home_batch_id) "
        "SELECT 'orders', 'q', 0, 'parse', 'BAD', 'm', '{}', now() - %s::interval, %s, 'q', 1 "
        "FROM generate_series(1, 3)"
    )
    ledger.sql(add, "25 hours", "pending")
    ledger.sql(add, "1 hour", "replayed")
    assert findings(ledger) == {}
    ledger.sql(add, "1 hour", "parked")
    assert findings(ledger).keys() == {"dead_letters"}


def test_the_pipelines_own_limits_win(ledger):
    ledger.sql("UPDATE etl.batch_tracker SET processed_at = processed_at - interval '3 hours'")
    assert findings(ledger).keys() == {"freshness"}
    register(ledger, "r3", config(healthConfig={"maxAge": "4 hours"}))
    assert findings(ledger) == {}
    register(ledger, "r4", config(healthConfig={"maxAge": "2 hours", "enabled": "true"}))
    assert findings(ledger, Thresholds.of(max_age="1 day")).keys() == {"freshness"}
    register(ledger, "r5", config(health={"enabled": False}))
    assert findings(ledger) == {}
    register(ledger, "r6", config(healthConfig={"maxLostShare": 2}))
    assert "max_lost_share" in findings(ledger)["healthConfig"]
    register(ledger, "r7", config(healthConfig={"maxAge": "0 seconds"}))
    assert findings(ledger).keys() == {"configuration"}


def test_thresholds_that_make_no_sense():
    with pytest.raises(ConfigError, match="max_age"):
        Thresholds.of(max_age="soon")
    with pytest.raises(ConfigError, match="contradict"):
        Thresholds.of(max_lag_rows=0, max_lag="1 hour")
    with pytest.raises(ConfigError, match="max_lost_share"):
        Thresholds.of(max_lost_share=1.5)
    for name in ("max_age", "gap_window", "min_retention"):
        with pytest.raises(ConfigError, match=name):
            Thresholds.of(**{name: "0 seconds"})
    assert Thresholds.of(max_age="", max_lag_rows="") == Thresholds.of()


def test_a_configuration_that_nobody_can_read_is_a_finding_of_its_pipeline(ledger):
    for request in ("{}", '{"config": null}', '{"config": {"mode": 1}}'):
        ledger.sql("UPDATE etl.pipeline_run SET request = %s", request)
        assert findings(ledger).keys() == {"configuration"}
    ledger.sql("UPDATE etl.pipeline SET newest_run_id = 'gone'")
    assert "started at least once" in findings(ledger)["configuration"]


def test_a_pipeline_that_nobody_knows(ledger):
    with pytest.raises(ConfigError, match="'returns'"):
        examine(LedgerView(ledger.tracker.conn, "etl"), ["returns"], ALL)
