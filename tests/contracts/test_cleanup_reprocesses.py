"""What was reprocessed long ago goes with its runs, and not while a micro-batch that it did again is in the ledger."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest
from old_batches import OLD, add_query, age, clean, fill

from spark_jobs.contracts.reprocess_batches import ReprocessRequest
from spark_jobs.contracts.run_request import RunRequest
from spark_jobs.contracts.tracker import runs
from spark_jobs.contracts.tracker.reprocess_batches import finish_reprocess, open_reprocess

BATCHES = "0-2"


def reprocess(tracker: Any, *, end: bool = True) -> UUID:
    """Do the first three micro-batches again, as a driver does."""
    wanted = ReprocessRequest.of(reprocess_id=uuid4(), pipeline_id="orders", batches=BATCHES)
    own, run_id = wanted.own_pipeline_id, str(uuid4())
    request = RunRequest(run_id=run_id, pipeline_id=own, config={}, started_by="me", reprocess=wanted)
    runs.register_run(tracker.conn, "etl", request)
    epoch = runs.claim_epoch(tracker.conn, "etl", own, run_id)
    for batch in open_reprocess(tracker.conn, "etl", wanted, run_id, epoch).batch_ids:
        tracker.commit(tracker.record(batch, pipeline_id=own, run_id=run_id, epoch=epoch, gaps=[]))
        tracker.conn.execute(
            "INSERT INTO etl.batch_reprocessed (pipeline_id, query_id, batch_id, reprocess_id, rows_before, "
            "rows_after, letters_before, letters_after) VALUES ('orders', 'q', %s, %s, 7, 8, 1, 0)",
            (batch, wanted.reprocess_id),
        )
    if end:
        finish_reprocess(tracker.conn, "etl", wanted, "q", ())
        runs.finish_run(tracker.conn, "etl", run_id, "finished", 0)
    return wanted.reprocess_id


def grow_old(tracker: Any, reprocess_id: UUID, days: int = 100) -> None:
    own = f"orders/reprocess/{reprocess_id}"
    for change in (
        "UPDATE etl.reprocess SET requested_at = requested_at - make_interval(days => %(days)s), "
        "ended_at = ended_at - make_interval(days => %(days)s) WHERE reprocess_id = %(id)s",
        "UPDATE etl.pipeline_run SET registered_at = registered_at - make_interval(days => %(days)s), "
        "started_at = started_at - make_interval(days => %(days)s), "
        "heartbeat_at = heartbeat_at - make_interval(days => %(days)s), "
        "ended_at = ended_at - make_interval(days => %(days)s) WHERE pipeline_id = %(own)s",
    ):
        tracker.conn.execute(change, {"days": days, "id": reprocess_id, "own": own})


def known(tracker: Any) -> tuple[int, list[str]]:
    pipelines = [row[0] for row in tracker.conn.execute("SELECT pipeline_id FROM etl.pipeline ORDER BY 1")]
    return tracker.one("SELECT count(*) FROM etl.reprocess"), pipelines


@pytest.fixture
def ledger(tracker: Any) -> Any:
    tracker.start("r1")
    add_query(tracker)
    return tracker


def test_it_stays_until_the_micro_batches_that_it_did_again_are_gone(ledger: Any) -> None:
    fill(ledger, OLD, days_ago=10)
    reprocess_id = reprocess(ledger)
    grow_old(ledger, reprocess_id)
    assert clean(ledger).totals.get("reprocesses") is None
    assert ledger.one("SELECT count(*) FROM etl.batch_reprocessed") == 3

    age(ledger, 40, "pipeline_id = 'orders'")
    assert clean(ledger, history_days=None).totals == {"batches": OLD - 200}
    assert known(ledger)[0] == 1
    assert clean(ledger, dry_run=True).by_pipeline == {"orders": {"reprocesses": 1}}
    assert clean(ledger, batch_size=2).by_pipeline == {"orders": {"reprocesses": 1}}
    assert known(ledger) == (0, ["orders"])
    for table in ("batch_tracker", "batch_file", "pipeline_run"):
        where = "WHERE pipeline_id <> 'orders'"
        assert ledger.one(f"SELECT count(*) FROM etl.{table} {where}") == 0, table
    assert clean(ledger).totals == {}


@pytest.mark.parametrize("end", [True, False])
def test_only_what_ended_or_was_given_up_long_ago_goes(ledger: Any, end: bool) -> None:
    fill(ledger, OLD)
    reprocess_id = reprocess(ledger, end=end)
    clean(ledger)
    assert ledger.one("SELECT count(*) FROM etl.batch_reprocessed") == 0
    assert known(ledger) == (1, ["orders", f"orders/reprocess/{reprocess_id}"])
    grow_old(ledger, reprocess_id)
    # A further attempt has begun since.
    ledger.conn.execute(
        "UPDATE etl.pipeline_run SET heartbeat_at = clock_timestamp() WHERE pipeline_id <> 'orders'",
    )
    assert clean(ledger).totals == {}
    grow_old(ledger, reprocess_id)
    assert clean(ledger, pipelines=("orders",)).totals == {"reprocesses": 1}
    assert known(ledger) == (0, ["orders"])


def test_an_attempt_that_begins_meanwhile_is_not_disturbed(ledger: Any) -> None:
    fill(ledger, OLD)
    reprocess_id = reprocess(ledger)
    clean(ledger)
    grow_old(ledger, reprocess_id)
    before = known(ledger)
    with ledger.connect() as other, other.transaction():
        # As a claim does: it holds the row of its pipeline.
        other.execute("SELECT FROM etl.pipeline WHERE pipeline_id LIKE 'orders/%' FOR UPDATE")
        assert clean(ledger).totals == {}
    assert known(ledger) == before
    assert clean(ledger).totals == {"reprocesses": 1}
