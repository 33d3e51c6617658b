"""The ledger's retention: what goes, what stays, and that nobody waits for it."""

from __future__ import annotations

import re
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from old_batches import OLD, add_query, age, clean, fill, ids

from spark_jobs.contracts.cleanup import MINIMUM_BATCHES, CleanupRequest
from spark_jobs.contracts.errors import CheckpointMismatchError, ConfigError
from spark_jobs.contracts.tracker import cleanup, decisions, runs
from spark_jobs.contracts.tracker import statements as st
from spark_jobs.contracts.tracker.connect import raw
from spark_jobs.contracts.tracker.decisions import Right
from spark_jobs.contracts.tracker.records import StoredBatch, settle


@pytest.fixture
def ledger(tracker: Any) -> Any:
    """A ledger with a run of one pipeline."""
    tracker.start("r1")
    return tracker


def test_what_is_old_and_not_among_the_newest_goes(ledger: Any) -> None:
    fill(ledger, OLD)
    report = clean(ledger, batch_size=7)
    assert ids(ledger) == list(range(30, OLD))
    assert report.by_pipeline == {"orders": {"batches": 30}}
    (query,) = report.queries
    assert (query.batches, query.rows, query.through_batch) == (30, 30 * 7, 29)
    assert (query.kept_from_batch, query.why) == (30, "count")


def test_age_and_number_must_agree(ledger: Any) -> None:
    fill(ledger, OLD, days_ago=29)
    assert clean(ledger).totals == {}
    assert clean(ledger, days=28, keep_batches=OLD).totals == {}
    assert len(ids(ledger)) == OLD
    assert clean(ledger, days=28).totals == {"batches": 30}


def test_the_first_young_batch_ends_what_goes_whatever_the_clock_said_later(ledger: Any) -> None:
    fill(ledger, OLD)
    age(ledger, 1, "batch_id = 10")
    (query,) = clean(ledger).queries
    assert (query.kept_from_batch, query.why) == (10, "age")
    assert ids(ledger) == list(range(10, OLD))


def test_what_went_is_written_down_and_added_up(ledger: Any) -> None:
    fill(ledger, OLD)
    clean(ledger)
    fill(ledger, 5, first=OLD)
    clean(ledger)
    found = ledger.one(
        "SELECT removed_through_batch, end_offsets, removed_batches, removed_rows, through_time < now() - interval "
        "'99 days' FROM etl.batch_retention WHERE (pipeline_id, query_id) = ('orders', 'q')"
    )
    assert found == (34, {"orders": {"0": 350}}, 35, 35 * 7, True)


def test_a_removed_batch_is_not_loaded_again(ledger: Any) -> None:
    fill(ledger, OLD)
    clean(ledger)
    identity = ledger.record(29).identity
    ((text,),) = raw(ledger.conn, st.find_batch(ledger.ident), *identity.key)
    with pytest.raises(CheckpointMismatchError, match=r"removed its row.*--resume-from-ledger"):
        settle(StoredBatch.from_json(text), identity)
    kept = ledger.record(30).identity
    ((text,),) = raw(ledger.conn, st.find_batch(ledger.ident), *kept.key)
    assert settle(StoredBatch.from_json(text), kept) == "committed"
    assert raw(ledger.conn, st.find_batch(ledger.ident), *ledger.record(OLD).identity.key) == []


def test_a_dry_run_counts_the_same_and_removes_nothing(ledger: Any) -> None:
    add_query(ledger)
    add_query(ledger, "later", epoch=2, origin="accepted")
    fill(ledger, OLD)
    told = clean(ledger, dry_run=True, batch_size=7)
    assert told.dry_run
    assert len(ids(ledger)) == OLD
    assert ledger.one("SELECT count(*) FROM etl.batch_retention") == 0
    done = clean(ledger)
    assert (told.by_pipeline["orders"]["batches"], told.queries) == (30, done.queries)


def test_each_query_keeps_its_newest_and_only_the_chosen_pipelines_lose_any(ledger: Any) -> None:
    ledger.start("r2", "other")
    fill(ledger, OLD)
    fill(ledger, OLD, query_id="q2", first=1000)
    fill(ledger, OLD, pipeline_id="other", query_id="q3", run_id="r2")
    assert clean(ledger, pipelines=("orders",)).by_pipeline == {"orders": {"batches": 60}}
    assert ids(ledger, "q2") == list(range(1030, 1000 + OLD))
    assert len(ids(ledger, "q3")) == OLD
    with pytest.raises(ConfigError, match="'nobody'"):
        clean(ledger, pipelines=("orders", "nobody"))


def test_a_query_with_a_decided_batch_keeps_all(ledger: Any) -> None:
    fill(ledger, OLD)
    with closing(ledger.connect(runs.application_name("orders", 1))) as driver:
        decisions.decide(driver, Right("etl", "orders", "r1", 1), ledger.record(OLD, strategy="two_phase"), "{}", [])
    (query,) = clean(ledger).queries
    assert (query.why, len(ids(ledger))) == ("unfinished", OLD)
    (waiting,) = decisions.decided(ledger.conn, "etl")
    assert decisions.finish(ledger.conn, Right("etl", "orders", "r1", 1), waiting)
    assert clean(ledger).totals == {"batches": 31}


@pytest.mark.parametrize(
    "values", [{"keep_batches": MINIMUM_BATCHES - 1}, {"days": -1}, {"days": "many"}, {"batch_size": 0}], ids=str
)
def test_what_is_not_valid_is_named(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        CleanupRequest.of(**values)


def test_two_at_once_share_the_work_and_commits_go_on(ledger: Any) -> None:
    """Three queries, two cleanups in chunks of one, and a driver that commits all the while."""
    for query_id in ("q", "q2", "q3"):
        fill(ledger, OLD, query_id=query_id)
    totals: list[int] = []
    ready = threading.Barrier(3)

    def run() -> None:
        with closing(ledger.connect()) as conn:
            ready.wait()
            request = CleanupRequest.of(keep_batches=MINIMUM_BATCHES, batch_size=1, pause_seconds=0)
            totals.append(cleanup.clean(conn, "etl", request).totals.get("batches", 0))

    workers = [threading.Thread(target=run) for _ in range(2)]
    for worker in workers:
        worker.start()
    ready.wait()
    committed = 0
    while any(worker.is_alive() for worker in workers):
        with ledger.conn.transaction():
            raw(ledger.conn, st.insert_batch(ledger.ident), ledger.record(OLD + committed).row_json())
            assert raw(ledger.conn, st.lock_epoch(ledger.ident), "orders", "1", "r1") == [(True,)]
        committed += 1
    for worker in workers:
        worker.join()
    # The first two counted from the newest batch that there was when they looked; what came since is young.
    totals.append(clean(ledger, days=0).totals.get("batches", 0))
    assert sum(totals) == 90 + committed
    assert ledger.one("SELECT sum(removed_batches) FROM etl.batch_retention") == 90 + committed
    assert ids(ledger) == list(range(30 + committed, OLD + committed))
    assert ids(ledger, "q2") == ids(ledger, "q3") == list(range(30, OLD))


def test_a_commit_under_way_and_a_cleanup_do_not_wait_for_each_other(ledger: Any) -> None:
    fill(ledger, OLD)
    with closing(ledger.connect()) as driver, driver.transaction():
        raw(driver, st.insert_batch(ledger.ident), ledger.record(OLD).row_json())
        assert raw(driver, st.lock_epoch(ledger.ident), "orders", "1", "r1") == [(True,)]
        assert clean(ledger).totals == {"batches": 30}
    with closing(ledger.connect()) as other, other.transaction():
        # What a cleanup does, not committed yet.
        other.execute("DELETE FROM etl.batch_tracker WHERE batch_id = 30")
        other.execute(
            "INSERT INTO etl.batch_retention (pipeline_id, query_id, removed_through_batch, through_time, "
            "removed_batches, removed_rows) VALUES ('orders', 'another', 30, now(), 1, 7)"
        )
        with ledger.conn.transaction():
            ledger.conn.execute("SET LOCAL lock_timeout = '1ms'")
            raw(ledger.conn, st.insert_batch(ledger.ident), ledger.record(OLD + 1).row_json())
            assert raw(ledger.conn, st.lock_epoch(ledger.ident), "orders", "1", "r1") == [(True,)]


def test_monitoring_queries_find_no_gap_where_a_cleanup_was(ledger: Any) -> None:
    fill(ledger, OLD)
    page = Path(__file__).resolve().parents[2] / "docs" / "reference" / "ledger.md"
    [gaps] = [
        block for block in re.findall(r"```sql\n(.*?)```", page.read_text(), re.DOTALL) if "LAG(" in block.upper()
    ]
    ledger.conn.execute("SET search_path = etl")
    assert clean(ledger).totals == {"batches": 30}
    assert ledger.conn.execute(gaps.encode()).fetchall() == []
    ledger.conn.execute("DELETE FROM batch_tracker WHERE batch_id = 100")
    assert len(ledger.conn.execute(gaps.encode()).fetchall()) == 1


def test_what_another_session_holds_stays_for_the_next_one(ledger: Any) -> None:
    fill(ledger, OLD)
    with closing(ledger.connect()) as other, other.transaction():
        raw(other, st.count_duplicate(ledger.ident), "orders", "q", "3", "r1")
        (query,) = clean(ledger).queries
    assert (query.why, len(ids(ledger))) == ("busy", OLD)
    assert clean(ledger).totals == {"batches": 30}


def test_old_runs_go_when_nothing_needs_them_any_more(ledger: Any) -> None:
    add_query(ledger)
    for number in range(2, 120):
        ledger.register(f"r{number}")
    fill(ledger, 1, run_id="r7", days_ago=1)
    ledger.conn.execute("INSERT INTO etl.run_retry VALUES ('r2', now(), 'write', 1, 5, '{}')")
    ledger.conn.execute(
        "UPDATE etl.pipeline_run SET registered_at = registered_at - interval '400 days', heartbeat_at = NULL"
    )
    ledger.conn.execute("UPDATE etl.pipeline_run SET ended_at = now() WHERE run_id = 'r8'")
    assert clean(ledger, dry_run=True).totals == {"runs": 16}
    assert clean(ledger, batch_size=3, history_days=None).totals == {}
    assert clean(ledger, batch_size=3).totals == {"runs": 16}
    # The query's first one, one with a batch, one that ended lately, and the hundred newest.
    kept = {row[0] for row in ledger.conn.execute("SELECT run_id FROM etl.pipeline_run")}
    assert kept == {"r1", "r7", "r8", *(f"r{number}" for number in range(20, 120))}
    assert ledger.one("SELECT count(*) FROM etl.run_retry") == 0


def test_old_changes_of_breakers_go_but_for_the_newest(ledger: Any) -> None:
    ledger.conn.execute("INSERT INTO etl.circuit_breaker (system) VALUES ('s')")
    ledger.conn.execute(
        "INSERT INTO etl.circuit_breaker_event (system, at, from_state, to_state, reason) "
        "SELECT 's', now() - interval '200 days', 'closed', 'open', 'x' FROM generate_series(1, 130)"
    )
    assert clean(ledger, dry_run=True).totals == {"breaker_events": 30}
    assert clean(ledger, batch_size=7).totals == {"breaker_events": 30}
    assert ledger.one("SELECT count(*), min(event_id) FROM etl.circuit_breaker_event") == (100, 31)
