"""Names of files that removed micro-batches have read: known while a resume needs them, and never too many at once."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from old_batches import OLD, add_query, age, clean, fill, ids

from spark_jobs.contracts.cleanup import MINIMUM_BATCHES
from spark_jobs.contracts.tracker.known_queries import known_queries
from spark_jobs.contracts.tracker.records import SourceFile

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def ledger(tracker: Any) -> Any:
    """A ledger with a run of one pipeline."""
    tracker.start("r1")
    return tracker


def test_files_stay_known_while_a_resume_needs_them(ledger: Any) -> None:
    add_query(ledger)
    fill(ledger, OLD)
    assert clean(ledger, batch_size=7).totals == {"batches": 30}
    known = "SELECT count(*) FROM (SELECT path FROM etl.batch_file UNION SELECT path FROM etl.batch_file_retained) f"
    assert ledger.one(known) == OLD
    add_query(ledger, "again", epoch=2, origin="resumed")
    ledger.conn.execute("UPDATE etl.pipeline_query SET seeded_from = 'q' WHERE query_id = 'again'")
    assert clean(ledger).totals == {}
    # Started over: the target was emptied, and nobody resumes what was before.
    add_query(ledger, "over", epoch=3, origin="accepted")
    assert clean(ledger, dry_run=True).totals == {"files": 30}
    assert clean(ledger, batch_size=7).totals == {"files": 30}
    assert ledger.one(known) == MINIMUM_BATCHES
    removed = {one.query_id: one.removed_files for one in known_queries(ledger.conn, "etl", "orders")}
    assert removed == {"q": 30, "again": 0, "over": 0}


def test_batches_of_many_files_go_in_smaller_numbers(ledger: Any) -> None:
    """Three files a batch, and forty in two of them: never more rows in a transaction than asked for."""
    many = {5: 40, 8: 40}
    for batch_id in range(5, 5 + OLD):
        files = [SourceFile(f"/in/{batch_id}/{n}.csv", NOON, 1) for n in range(many.get(batch_id, 3))]
        ledger.commit(ledger.record(batch_id, files=files, gaps=[]))
    age(ledger, 100)
    ledger.conn.execute("CREATE TABLE chunk (files bigint)")
    ledger.conn.execute(
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "INSERT INTO chunk SELECT count(*) FROM moved; RETURN NULL; END $$"
    )
    ledger.conn.execute(
        "CREATE TRIGGER note AFTER INSERT ON etl.batch_file_retained REFERENCING NEW TABLE AS moved "
        "FOR EACH STATEMENT EXECUTE FUNCTION note()"
    )
    assert clean(ledger, batch_size=10).totals == {"batches": 30}
    moved = [row[0] for row in ledger.conn.execute("SELECT files FROM chunk WHERE files > 0")]
    assert moved == [*[10] * 4, 6, *[10] * 4, *[9] * 8, 6]
    assert ledger.one("SELECT count(*) FROM etl.batch_file_retained") == 80 + 28 * 3


def test_a_batch_of_more_files_than_a_statement_has_time_for_goes_as_well(ledger: Any) -> None:
    """A statement that removes more than a hundred names ends as one that has taken too long."""
    files = [SourceFile(f"/in/{number}.csv", NOON, 1) for number in range(400)]
    ledger.commit(ledger.record(0, files=files, gaps=[]))
    fill(ledger, OLD - 1, first=1, files=[])
    age(ledger, 100)
    ledger.conn.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF (SELECT count(*) FROM gone) > 100 THEN RAISE 'too slow' USING ERRCODE = 'query_canceled'; END IF; "
        "RETURN NULL; END $$"
    )
    ledger.conn.execute(
        "CREATE TRIGGER slow AFTER DELETE ON etl.batch_file REFERENCING OLD TABLE AS gone "
        "FOR EACH STATEMENT EXECUTE FUNCTION slow()"
    )
    assert clean(ledger, batch_size=1_000).queries[0].why == "busy"
    (query,) = clean(ledger, batch_size=100).queries
    assert (query.batches, query.why) == (30, "count")
    assert ledger.one("SELECT count(*), min(path) FROM etl.batch_file_retained") == (400, "/in/0.csv")


def test_a_cleanup_that_ends_between_a_batchs_files_goes_on_there(ledger: Any) -> None:
    """All names are known at any moment, each once."""
    files = [SourceFile(f"/in/{number}.csv", NOON, 1) for number in range(95)]
    ledger.commit(ledger.record(0, files=files, gaps=[]))
    fill(ledger, OLD - 1, first=1, files=[])
    age(ledger, 100)
    ledger.conn.execute(
        "CREATE FUNCTION enough() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF (SELECT count(*) FROM etl.batch_file_retained) > 35 THEN RAISE 'enough'; END IF; RETURN NULL; END $$"
    )
    ledger.conn.execute("CREATE TRIGGER enough AFTER INSERT ON etl.batch_file_retained EXECUTE FUNCTION enough()")
    assert clean(ledger, batch_size=10).problems.keys() == {"orders"}
    assert ids(ledger) == list(range(OLD))
    assert ledger.one(KNOWN_FILES) == (95, 95)
    assert ledger.one("SELECT count(*) FROM etl.batch_file_retained") == 30
    ledger.conn.execute("DROP TRIGGER enough ON etl.batch_file_retained")
    assert clean(ledger, batch_size=10).totals == {"batches": 30}
    assert ledger.one(KNOWN_FILES) == (95, 95)


KNOWN_FILES = (
    "SELECT count(*), count(DISTINCT path) FROM ("
    "SELECT path FROM etl.batch_file UNION ALL SELECT path FROM etl.batch_file_retained) AS file"
)
