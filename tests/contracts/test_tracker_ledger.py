"""Batches in the ledger: their books, their identity, and the statements through both drivers."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from datetime import datetime
from pathlib import Path

import adbc_driver_manager
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as some

from spark_jobs.contracts.errors import BooksDoNotBalanceError, ContractVersionError, DataError, LedgerConflictError
from spark_jobs.contracts.events import BatchCommitted, RunFinished, read_event
from spark_jobs.contracts.tracker import statements as st
from spark_jobs.contracts.tracker.connect import classify, raw
from spark_jobs.contracts.tracker.queries import pipeline_status, summarise_run
from spark_jobs.contracts.tracker.records import BOOK_NAMES, BatchIdentity, Books, StoredBatch, settle
from spark_jobs.sinks.copying import Session, transaction

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference" / "002_json_config_and_exactly_once.txt"
LEDGER_PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "ledger.md"

COUNTS = some.integers(0, 2**40)
OFFSETS = some.none() | some.dictionaries(
    some.sampled_from(["orders", "returns"]), some.dictionaries(some.sampled_from("0123"), some.integers(0, 2**62))
)
DIGESTS = some.none() | some.text("0123456789abcdef", min_size=1, max_size=8)
RANGES = some.tuples(OFFSETS, OFFSETS, DIGESTS)


def through_psycopg(tracker):
    """Yield a function that runs one statement in an open transaction."""
    with tracker.conn.transaction():
        yield lambda statement, *parameters: raw(tracker.conn, statement, *parameters)


def through_adbc(tracker):
    with transaction(Session(tracker.connection.uri(), "test", "30s", "30s")) as cursor:
        yield lambda statement, *parameters: cursor.execute(statement, parameters)
        cursor.run("COMMIT")


DRIVERS = pytest.mark.parametrize(
    "session",
    [contextlib.contextmanager(through_psycopg), contextlib.contextmanager(through_adbc)],
    ids=["psycopg", "adbc"],
)


@DRIVERS
@pytest.mark.parametrize(("setting", "used"), [("off", "on"), ("on", "on"), ("local", "local")])
def test_a_commit_waits_for_the_disk(tracker, session, setting, used):
    with session(tracker) as run:
        run("SELECT set_config('synchronous_commit', $1::text, true)", setting)
        run(st.begin_settings(), "etl:x:1", "5s", "30s")
        assert run("SELECT current_setting('synchronous_commit')") == [(used,)]


@DRIVERS
def test_a_whole_commit(tracker, session):
    epoch = tracker.start("r1")
    record = tracker.record(3, epoch=epoch, source_digest="abc")
    event = BatchCommitted(pipeline_id="orders", query_id="q", batch_id=3, run_id="r1", epoch=epoch, rows=7)
    tracker.conn.execute("LISTEN etl_batch")
    with session(tracker) as run:
        run(st.begin_settings(), "etl:x:1", "5s", "30s")
        assert run(st.find_batch(tracker.ident), *record.identity.key) == []
        run(st.insert_batch(tracker.ident), record.row_json())
        run(st.insert_files(tracker.ident), record.files_json())
        run(st.insert_gaps(tracker.ident), record.gaps_json())
        run(st.notify(), event.payload())
        assert run(st.lock_epoch(tracker.ident), "orders", str(epoch), "r1") == [(True,)]
        assert run(st.read_epoch(tracker.ident), "orders", str(epoch), "r2") == [(False,)]
        ((found,),) = run(st.find_batch(tracker.ident), *record.identity.key)
    stored = StoredBatch.from_json(found)
    assert (stored.run_id, stored.epoch, stored.status) == ("r1", epoch, "committed")
    assert settle(stored, record.identity) == "committed"
    row = tracker.conn.cursor(row_factory=psycopg.rows.dict_row).execute("SELECT * FROM etl.batch_tracker").fetchone()
    for column, value in record.to_row().items():
        found = row[column]
        assert (
            found.astimezone(datetime.fromisoformat(value).tzinfo).isoformat() if isinstance(found, datetime) else found
        ) == value
    assert row["duplicate_count"] == 0
    assert tracker.one("SELECT path, size_bytes FROM etl.batch_file") == ("/in/3.csv", 123)
    assert tracker.one("SELECT source, missing_rows FROM etl.source_gap") == ({"topic": "orders", "partition": 0}, 3)
    (notification,) = tracker.conn.notifies(timeout=10, stop_after=1)
    assert read_event(notification.payload) == event


@DRIVERS
def test_the_same_identity_twice_rolls_the_second_back(tracker, session):
    tracker.start("r1")
    record = tracker.record()
    tracker.commit(record)
    tracker.conn.execute("CREATE TABLE target (id int)")

    def write_again():
        with session(tracker) as run:
            run("INSERT INTO target VALUES (1)")
            run(st.insert_batch(tracker.ident), record.row_json())

    with pytest.raises((psycopg.Error, adbc_driver_manager.Error)) as caught:
        write_again()
    assert caught.value.sqlstate == "23505"
    assert tracker.one("SELECT count(*) FROM target") == 0
    assert isinstance(classify(caught.value), DataError)


@DRIVERS
def test_duplicates_are_counted_at_the_batch_and_at_the_run_that_skipped_it(tracker, session):
    tracker.start("r1")
    record = tracker.record()
    tracker.commit(record)
    tracker.start("r2")
    with session(tracker) as run:
        run(st.count_duplicate(tracker.ident), *record.identity.key, "r2")
        run(st.count_duplicate(tracker.ident), "orders", "another query", "0", "r2")
    assert tracker.one("SELECT duplicate_count FROM etl.batch_tracker") == 1
    assert summarise_run(tracker.conn, "etl", "r1").duplicates == 0
    assert summarise_run(tracker.conn, "etl", "r2").duplicates == 1


@pytest.mark.parametrize("name", BOOK_NAMES)
def test_the_table_refuses_books_that_do_not_balance(tracker, name):
    tracker.start("r1")
    row = tracker.record().to_row()
    row[f"{name}_rows"] += 1
    with pytest.raises(psycopg.errors.CheckViolation):
        raw(tracker.conn, st.insert_batch(tracker.ident), json.dumps(row))
    with pytest.raises(BooksDoNotBalanceError):
        dataclasses.replace(tracker.record().books, **{name: row[f"{name}_rows"]}).verify()


@pytest.mark.parametrize(
    "change", [{"record_count": 6}, {"status": "decided"}, {"batch_id": -1}, {"source_rows": None}, {"epoch": None}]
)
def test_the_table_refuses_what_is_no_committed_batch(tracker, change):
    tracker.start("r1")
    tracker.commit(tracker.record())
    ((column, value),) = change.items()
    with pytest.raises(psycopg.errors.IntegrityError):
        tracker.conn.execute(f"UPDATE etl.batch_tracker SET {column} = %s", (value,))


def test_a_row_that_names_no_pipeline_of_the_ledger_is_refused(tracker):
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        raw(tracker.conn, st.insert_batch(tracker.ident), tracker.record().row_json())


def test_retention_takes_files_with_their_batch_and_leaves_gaps(tracker):
    tracker.start("r1")
    tracker.commit(tracker.record())
    tracker.conn.execute("DELETE FROM etl.batch_tracker")
    assert tracker.one("SELECT count(*) FROM etl.batch_file") == 0
    assert tracker.one("SELECT count(*) FROM etl.source_gap") == 1


def monitoring_queries(path):
    text = path.read_text(encoding="utf-8").split("### Monitoring Queries" if path == REFERENCE else "## Monitoring")[1]
    block = "\n".join(re.findall(r"```sql\n(.*?)```", text, re.DOTALL)[: 1 if path == REFERENCE else None])
    return [statement for statement in re.sub(r"--.*", "", block).split(";") if statement.strip()]


@pytest.mark.parametrize("path", [REFERENCE, LEDGER_PAGE], ids=["reference", "docs"])
def test_the_four_monitoring_queries_as_they_stand(tracker, path):
    tracker.start("r1")
    tracker.start("s1", "stale")
    for batch_id in (0, 1, 4):
        tracker.commit(tracker.record(batch_id))
    tracker.commit(tracker.record(0, pipeline_id="stale", run_id="s1"))
    tracker.conn.execute("UPDATE etl.batch_tracker SET processed_at = now() - interval '2 hours' WHERE run_id = 's1'")
    tracker.conn.execute("SET search_path = etl")
    last, stale, rate, gaps = [tracker.conn.execute(query).fetchall() for query in monitoring_queries(path)]
    assert [(row[0], row[1], row[3]) for row in last] == [("orders", 4, 21), ("stale", 0, 7)]
    assert [row[0] for row in stale] == ["stale"]
    assert (sum(row[2] for row in rate), sum(row[3] for row in rate)) == (3, 21)
    assert gaps == [("orders", 1, 4, 2)]


def test_a_runs_summary(tracker):
    epoch = tracker.start("r1")
    assert summarise_run(tracker.conn, "etl", "r1").batches == 0
    for batch_id in (9, 10, 11):
        tracker.commit(tracker.record(batch_id, epoch=epoch))
    result = summarise_run(tracker.conn, "etl", "r1")
    assert (result.state, result.batches, result.duplicates, result.ledger) == ("running", 3, 0, "balanced")
    assert (result.start_offsets, result.end_offsets) == ({"orders": {"0": 90}}, {"orders": {"0": 120}})
    assert result.rows == {name: getattr(tracker.record().books, name) * 3 for name in BOOK_NAMES}
    assert result.dead_letters == 3
    assert 0 < result.duration_seconds < 60


def test_books_without_their_checks_are_seen_as_unbalanced(tracker):
    tracker.start("r1")
    tracker.commit(tracker.record())
    tracker.conn.execute("ALTER TABLE etl.batch_tracker DROP CONSTRAINT source_books_balance")
    tracker.conn.execute("UPDATE etl.batch_tracker SET source_rows = 11")
    assert summarise_run(tracker.conn, "etl", "r1").ledger == "unbalanced"
    assert [status.ledger for status in pipeline_status(tracker.conn, "etl")] == ["unbalanced"]


@given(some.lists(some.lists(COUNTS, min_size=9, max_size=9), max_size=5))
def test_sums_of_balanced_books_balance(lists):
    total = Books.empty()
    for passed, rejected, dead, late, filtered, dedup, written, write_dead, write_dedup in lists:
        total += Books(
            source=passed + rejected + dead + late + filtered + dedup,
            passed=passed,
            rejected=rejected,
            dead_lettered=dead,
            late=late,
            filtered=filtered,
            deduplicated=dedup,
            sink=written + write_dead + write_dedup,
            written=written,
            write_dead_lettered=write_dead,
            write_deduplicated=write_dedup,
        )
    assert total.verify().source == sum(sum(counts[:6]) for counts in lists)


def identity_of(start, end, digest):
    return BatchIdentity(
        pipeline_id="orders", query_id="q", batch_id=4, start_offsets=start, end_offsets=end, source_digest=digest
    )


def stored_of(start, end, digest):
    """What the ledger holds, in jsonb's own order of keys."""
    text = {"start_offsets": start, "end_offsets": end, "source_digest": digest, "run_id": "r", "epoch": 1}
    return StoredBatch.from_json(json.dumps({**text, "status": "committed"}, sort_keys=True))


@given(OFFSETS, OFFSETS, DIGESTS)
def test_what_is_not_there_is_absent_and_what_is_there_is_committed(start, end, digest):
    identity = identity_of(start, end, digest)
    assert settle(None, identity) == "absent"
    assert settle(stored_of(start, end, digest), identity) == "committed"


@given(RANGES, RANGES)
def test_another_source_range_is_never_skipped(mine, theirs):
    identity, stored = identity_of(*mine), stored_of(*theirs)
    if mine == theirs:
        assert settle(stored, identity) == "committed"
    else:
        with pytest.raises(LedgerConflictError, match="batch 4 of query q of pipeline 'orders'"):
            settle(stored, identity)


def test_a_time_without_its_zone_is_refused(tracker):
    with pytest.raises(ValueError, match="time zone"):
        tracker.record(watermark=datetime(2026, 1, 1)).to_row()


def test_events_come_back_and_foreign_messages_are_named():
    event = RunFinished(pipeline_id="заказы", run_id="r", state="finished", exit_code=0)
    assert read_event(event.payload()) == event
    assert event.payload().isascii()
    for foreign in ("hello", "{}", event.payload().replace('"version":', '"version":99')):
        with pytest.raises(ContractVersionError, match="etl_batch"):
            read_event(foreign)
    with pytest.raises(ValueError, match="7999"):
        RunFinished(pipeline_id="p" * 9000, run_id="r", state="finished", exit_code=0).payload()
