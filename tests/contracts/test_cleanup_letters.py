"""Settled dead letters and ended replays go; a letter that waits, and what an open replay needs, never do."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, get_args
from uuid import UUID, uuid4

import pytest

from spark_jobs.contracts.cleanup import CleanupReport, CleanupRequest
from spark_jobs.contracts.replay import LetterFilter, LetterStatus, ReplayRequest, ReplaySummary
from spark_jobs.contracts.run_request import RunRequest
from spark_jobs.contracts.tracker import cleanup, runs
from spark_jobs.contracts.tracker.connect import raw
from spark_jobs.contracts.tracker.letters import count_letters, discard_letters
from spark_jobs.contracts.tracker.replays import finish_replay, open_replay, release
from spark_jobs.contracts.tracker.staging_names import staging_prefix
from spark_jobs.sinks.dead_letter_rows import insert_letters_from_json

WANTED = LetterFilter.of(pipeline_id="orders")


def add(tracker: Any, letters: int, *, days_ago: int = 500) -> None:
    tracker.conn.execute(
        "INSERT INTO etl.dead_letter_single (pipeline_id, query_id, batch_id, stage, error_class, message, source, "
        "first_failed_at, last_failed_at) SELECT 'orders', 'q', 0, 'parse', 'BAD', 'm', '{}', t, t "
        "FROM generate_series(1, %s), LATERAL (SELECT now() - make_interval(days => %s)) AS x(t)",
        (letters, days_ago),
    )


def replay(tracker: Any, letters: int) -> UUID:
    """Let a replay take letters and bring them home, as its driver does; its batch is in the ledger."""
    request = ReplayRequest.of(replay_id=uuid4(), letters=WANTED, limit=letters)
    own, run_id = request.own_pipeline_id, str(request.replay_id)
    runs.register_run(
        tracker.conn, "etl", RunRequest(run_id=run_id, pipeline_id=own, config={}, started_by="me", replay=request)
    )
    epoch = runs.claim_epoch(tracker.conn, "etl", own, run_id)
    assert open_replay(tracker.conn, "etl", request, run_id, epoch).letters == letters
    tracker.commit(tracker.record(0, pipeline_id=own, query_id=run_id, run_id=run_id, gaps=[]))
    tracker.conn.execute(
        "UPDATE etl.dead_letter_single SET status = 'replayed', home_query_id = %s, home_batch_id = 0, "
        "closed_at = now() WHERE replay_id = %s",
        (run_id, request.replay_id),
    )
    return request.replay_id


def end(tracker: Any, replay_id: UUID) -> None:
    numbers = {"taken": 1, "replayed": 1, "failed": 0, "parked": 0}
    finish_replay(
        tracker.conn,
        "etl",
        ReplaySummary(replay_id=replay_id, pipeline_id="orders", mode="reprocess", dry_run=False, **numbers),
    )
    runs.finish_run(tracker.conn, "etl", str(replay_id), "finished", 0)


def grow_old(tracker: Any, days: int = 400) -> None:
    for table, columns in (
        ("dead_letter_single", ("closed_at",)),
        ("dead_letter_replay", ("requested_at", "ended_at")),
        ("pipeline_run", ("registered_at", "started_at", "heartbeat_at", "ended_at")),
    ):
        changes = ", ".join(f"{column} = {column} - make_interval(days => {days})" for column in columns)
        tracker.conn.execute(f"UPDATE etl.{table} SET {changes}")


def clean(tracker: Any, **request: Any) -> CleanupReport:
    return cleanup.clean(tracker.conn, "etl", CleanupRequest.of(**{"history_days": None, **request}))


def letters(tracker: Any) -> dict[str, int]:
    counted = {count.status: count.letters for count in count_letters(tracker.conn, "etl")}
    assert counted == Counter(row[0] for row in tracker.conn.execute("SELECT status FROM etl.dead_letter"))
    return counted


@pytest.fixture
def ledger(tracker: Any) -> Any:
    tracker.start("r1")
    return tracker


def test_only_letters_that_were_settled_long_ago_go(ledger: Any) -> None:
    for _ in get_args(LetterStatus):
        add(ledger, 10)
    replay(ledger, 10)
    assert discard_letters(ledger.conn, "etl", WANTED, by="ada", reason="test") == 40
    grow_old(ledger, 200)
    add(ledger, 30)
    ledger.conn.execute(
        "UPDATE etl.dead_letter_single SET status = 'parked' WHERE dead_letter_id IN "
        "(SELECT dead_letter_id FROM etl.dead_letter WHERE status = 'pending' LIMIT 10)"
    )
    ledger.conn.execute(
        "UPDATE etl.dead_letter_single SET status = 'replaying', status_before = 'pending', "
        "replay_id = gen_random_uuid() WHERE dead_letter_id IN "
        "(SELECT dead_letter_id FROM etl.dead_letter WHERE status = 'pending' LIMIT 10)"
    )
    waiting = {"pending": 10, "parked": 10, "replaying": 10}
    assert clean(ledger).totals == {}
    assert clean(ledger, letter_days=None).totals == {}
    assert clean(ledger, letter_days=100, dry_run=True).totals == {"dead_letters": 50}
    assert letters(ledger) == {**waiting, "replayed": 10, "discarded": 40}
    assert clean(ledger, letter_days=100, batch_size=7).totals == {"dead_letters": 50}
    assert letters(ledger) == waiting
    assert clean(ledger, days=0, letter_days=0).totals == {}


def test_bundles_go_in_steps_as_letters_by_themselves_do(ledger: Any) -> None:
    for kind, size in (("A", 25), ("B", 10), ("C", 5)):
        said = {"stage": "parse", "error_class": kind, "message": "m", "source": "{}"}
        text = json.dumps([json.dumps(said)] * size)
        raw(ledger.conn, insert_letters_from_json("etl"), "orders", "q", "0", text)
    some = LetterFilter.of(pipeline_id="orders", error_classes=("A", "B"))
    assert discard_letters(ledger.conn, "etl", some, by="ada", reason="test") == 35
    assert clean(ledger).totals == {}
    ledger.conn.execute(
        "UPDATE etl.dead_letter_bundle SET first_failed_at = first_failed_at - interval '400 days', "
        "closed_at = closed_at - interval '400 days'"
    )
    # Given up lately, whenever it failed.
    ledger.conn.execute("UPDATE etl.dead_letter_bundle SET closed_at = clock_timestamp() WHERE error_class = 'B'")
    assert clean(ledger, dry_run=True).totals == {"dead_letters": 25}
    assert clean(ledger, batch_size=7).totals == {"dead_letters": 25}
    assert letters(ledger) == {"discarded": 10, "pending": 5}
    bundled = "SELECT count(*), count(DISTINCT bundle_id) FROM etl.dead_letter_bundled"
    assert ledger.conn.execute(bundled).fetchone() == (15, 2)


def test_a_letter_that_failed_long_ago_and_was_settled_today_stays(ledger: Any) -> None:
    add(ledger, 5)
    discard_letters(ledger.conn, "etl", WANTED, by="ada", reason="test")
    assert clean(ledger, letter_days=300, batch_size=2).totals == {}
    assert letters(ledger) == {"discarded": 5}


def test_an_ended_replay_goes_whole_and_after_its_letters(ledger: Any) -> None:
    add(ledger, 25)
    replay_id = replay(ledger, 20)
    end(ledger, replay_id)
    written = ledger.one("SELECT sum(record_count)::bigint FROM etl.batch_tracker")
    assert clean(ledger).totals == {}
    grow_old(ledger)
    assert clean(ledger, dry_run=True).by_pipeline == {"orders": {"dead_letters": 20, "replays": 1}}
    assert clean(ledger, batch_size=3).by_pipeline == {"orders": {"dead_letters": 20, "replays": 1}}
    for table in ("dead_letter_replay", "dead_letter_replay_item", "batch_file", "batch_tracker"):
        assert ledger.one(f"SELECT count(*) FROM etl.{table}") == 0, table
    assert [row[0] for row in ledger.conn.execute("SELECT pipeline_id FROM etl.pipeline")] == ["orders"]
    assert ledger.one("SELECT count(*) FROM etl.pipeline_run") == 1
    assert letters(ledger) == {"pending": 5}
    # What it brought home is in the target, and stays in the books.
    kept = "SELECT pipeline_id, query_id, removed_batches, removed_rows FROM etl.batch_retention"
    assert ledger.conn.execute(kept).fetchall() == [("orders", str(replay_id), 1, written)]


def test_an_open_replay_keeps_everything(ledger: Any) -> None:
    add(ledger, 20)
    replay_id = replay(ledger, 20)
    grow_old(ledger)
    assert clean(ledger, letter_days=0, days=0).totals == {"dead_letters": 20}
    assert ledger.one("SELECT count(*) FROM etl.dead_letter_replay_item") == 20
    assert ledger.one("SELECT count(*) FROM etl.batch_tracker WHERE query_id = %s", str(replay_id)) == 1


def test_what_a_redrive_may_have_sent_stays_known(ledger: Any) -> None:
    add(ledger, 4)
    replay_id = replay(ledger, 4)
    ledger.conn.execute("INSERT INTO etl.dead_letter_redrive VALUES (%s, 0, 0, 4, '{}')", (replay_id,))
    release(ledger.conn, "etl", [replay_id])
    runs.finish_run(ledger.conn, "etl", str(replay_id), "failed", 1)
    grow_old(ledger)
    assert "replays" not in clean(ledger).totals
    assert ledger.one("SELECT count(*) FROM etl.dead_letter_replay_item") == 4


def test_a_replay_that_left_a_staging_table_is_swept_first(ledger: Any) -> None:
    add(ledger, 1)
    replay_id = replay(ledger, 1)
    end(ledger, replay_id)
    grow_old(ledger)
    table = f'"{staging_prefix(f"orders/replay/{replay_id}", "etl")}1_1_rows"'
    ledger.conn.execute(f"CREATE TABLE etl.{table} ()")
    assert clean(ledger).totals == {"dead_letters": 1}
    ledger.conn.execute(f"DROP TABLE etl.{table}")
    assert clean(ledger).totals == {"replays": 1}
