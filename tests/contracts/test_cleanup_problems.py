"""What cannot be removed of one pipeline, and what is nobody's fault."""

from __future__ import annotations

from typing import Any

import pytest
from old_batches import OLD, clean, fill

from spark_jobs.contracts.errors import TransientError


@pytest.fixture
def ledger(tracker: Any) -> Any:
    """A ledger with a run of one pipeline."""
    tracker.start("r1")
    return tracker


def test_what_cannot_be_removed_of_one_pipeline_keeps_no_other_from_being_cleaned(ledger: Any) -> None:
    """Whatever it is of which a row refuses to go: micro-batches, runs, dead letters."""
    ledger.start("s1", "returns")
    ledger.conn.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF OLD.pipeline_id = 'orders' THEN RAISE 'this one stays'; END IF; RETURN OLD; END $$"
    )
    for pipeline, run in (("orders", "r1"), ("returns", "s1")):
        fill(ledger, OLD, pipeline_id=pipeline, run_id=run)
        for number in range(110):
            ledger.register(f"{pipeline}-{number}", pipeline)
        ledger.conn.execute(
            "INSERT INTO etl.dead_letter_single (pipeline_id, query_id, batch_id, stage, error_class, message, source, "
            "status, closed_at, closed_by, reason) SELECT %s, 'q', 0, 'parse', 'BAD', 'm', '{}', 'discarded', "
            "now() - interval '500 days', 'me', 'old' FROM generate_series(1, 5)",
            (pipeline,),
        )
    ledger.conn.execute("UPDATE etl.dead_letter_single SET first_failed_at = now() - interval '600 days'")
    ledger.conn.execute("UPDATE etl.pipeline_run SET registered_at = registered_at - interval '400 days'")
    ledger.conn.execute("UPDATE etl.pipeline_run SET heartbeat_at = NULL")
    for table in ("batch_tracker", "pipeline_run", "dead_letter_discarded"):
        statement = f"CREATE TRIGGER refuse BEFORE DELETE ON etl.{table} FOR EACH ROW EXECUTE FUNCTION refuse()"
        ledger.conn.execute(statement)
    report = clean(ledger, letter_days=365, history_days=90)
    assert report.by_pipeline == {"returns": {"batches": 30, "dead_letters": 5, "runs": 10}}
    assert {one.pipeline_id: one.why for one in report.queries} == {"orders": "failed", "returns": "count"}
    assert report.problems.keys() == {"orders"}
    assert "this one stays" in report.problems["orders"]["found"]


def test_a_session_that_is_lost_is_no_pipelines_problem(ledger: Any) -> None:
    fill(ledger, OLD)
    ledger.conn.execute(
        "CREATE FUNCTION leave() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "PERFORM pg_terminate_backend(pg_backend_pid()); RETURN OLD; END $$"
    )
    ledger.conn.execute("CREATE TRIGGER leave BEFORE DELETE ON etl.batch_tracker FOR EACH ROW EXECUTE FUNCTION leave()")
    with pytest.raises(TransientError):
        clean(ledger)
