"""Fresh, complete, balanced, so far: the conditions of the sensors, on a real ledger."""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest
from watched import NOON, Watched

from spark_jobs.contracts.cleanup import MINIMUM_BATCHES, CleanupRequest
from spark_jobs.contracts.errors import (
    ClocksDisagreeError,
    ConfigError,
    ContractVersionError,
    EtlError,
    GapError,
)
from spark_jobs.contracts.run_request import RunRequest
from spark_jobs.contracts.tracker import decisions, runs
from spark_jobs.contracts.tracker.cleanup import clean
from spark_jobs.contracts.tracker.decisions import Right
from spark_jobs.contracts.tracker.retire import retire_run
from spark_jobs.contracts.watch import registry
from spark_jobs.contracts.watch.balance import LedgerBalance
from spark_jobs.contracts.watch.condition import in_words
from spark_jobs.contracts.watch.freshness import Freshness
from spark_jobs.contracts.watch.query_progress import QueryProgress
from spark_jobs.contracts.watch.watermark import WatermarkReached


@pytest.fixture
def ledger(tracker):
    return Watched(tracker)


def config(**changes: Any) -> dict[str, Any]:
    streaming = {
        "checkpointLocation": "/c",
        "queryName": "orders",
        "watermark": {"eventTimeColumn": "at", "delayThreshold": "10 minutes"},
    }
    return {
        "pipelineId": "orders",
        "mode": "streaming",
        "schemas": {"order": "id BIGINT, at TIMESTAMP"},
        "extract": {"sourceType": "file", "schemaName": "order", "connectionParams": {"path": "/in", "format": "json"}},
        "load": {"sinkType": "postgresql", "table": "orders", "credentialId": "warehouse"},
        "streamingConfigJson": streaming,
        **changes,
    }


def register(ledger: Watched, run_id: str, document: dict[str, Any]) -> None:
    request = RunRequest(run_id=run_id, pipeline_id="orders", config=document, started_by="me")
    runs.register_run(ledger.tracker.conn, "etl", request)


# -- freshness --------------------------------------------------------------------------------------------------------


def fresh(**changes: Any) -> Freshness:
    return Freshness.of(**{"pipeline": "orders", "younger_than": "1 hour", **changes})


def test_a_young_commit_is_fresh_and_an_old_one_is_not(ledger):
    assert "nothing was ever committed; its newest run is running" in ledger.look(fresh()).message
    ledger.query()
    ledger.batches(0)
    assert ledger.look(fresh()).done
    ledger.sql("UPDATE etl.batch_tracker SET processed_at = now() - interval '2 hours 5 minutes'")
    seen = ledger.look(fresh())
    assert not seen.done
    assert "micro-batch 0 is 2 h 5 min old" in seen.message
    assert ledger.look(fresh(younger_than=timedelta(hours=3))).done


def test_an_idle_run_counts_where_it_is_asked_to(ledger):
    ledger.query()
    ledger.batches(0)
    ledger.sql("UPDATE etl.batch_tracker SET processed_at = now() - interval '1 day'")
    runs.finish_run(ledger.tracker.conn, "etl", "r1", "finished", 0)
    assert not ledger.look(fresh()).done
    assert ledger.look(fresh(idle_runs_count=True)).done
    ledger.tracker.start("r2")
    runs.finish_run(ledger.tracker.conn, "etl", "r2", "failed", 1)
    ledger.sql("UPDATE etl.pipeline_run SET ended_at = now() - interval '1 day' WHERE run_id = 'r1'")
    assert not ledger.look(fresh(idle_runs_count=True)).done


def test_a_commit_of_the_future_says_nothing(ledger):
    ledger.query()
    ledger.batches(0)
    ledger.sql("UPDATE etl.batch_tracker SET processed_at = now() + interval '3 hours'")
    with pytest.raises(ClocksDisagreeError, match="ahead of the server's clock"):
        ledger.look(fresh())


def test_the_newest_commit_is_the_newest_in_any_zone_and_form(ledger):
    ledger.query()
    ledger.batches(0, 1)
    ledger.sql("UPDATE etl.batch_tracker SET processed_at = now() - interval '40 days' WHERE batch_id = 1")
    ledger.sql("SET DateStyle = 'SQL, DMY'")
    ledger.sql("SET TimeZone = 'Europe/Berlin'")
    assert ledger.look(fresh()).value["id"] == 0
    plan = ledger.sql(
        "EXPLAIN SELECT b.processed_at::text AS at FROM etl.batch_tracker b WHERE b.pipeline_id = 'orders' "
        "ORDER BY b.processed_at DESC LIMIT 1"
    )
    assert "text" not in str([row for row in plan if "Sort Key" in row[0]])


def test_a_commit_after_the_clock_was_set_right_is_fresh(ledger):
    ledger.query()
    ledger.batches(0, 1)
    ledger.sql("UPDATE etl.batch_tracker SET processed_at = now() + interval '300 days' WHERE batch_id = 0")
    assert ledger.look(fresh()).value["id"] == 1


# -- watermark --------------------------------------------------------------------------------------------------------


def through(moment: Any) -> WatermarkReached:
    return WatermarkReached.of(pipeline="orders", through=moment)


def test_rows_are_complete_through_the_newest_event_less_the_delay(ledger):
    register(ledger, "r2", config())
    assert "no event time" in ledger.look(through(NOON)).message
    ledger.query()
    ledger.batches(0, watermark=None, event_time_max=NOON)
    ledger.batches(1, watermark=NOON - timedelta(minutes=10), event_time_max=NOON - timedelta(hours=3))
    ledger.finish_runs()
    seen = ledger.look(through(NOON))
    assert not seen.done
    assert "10 min short of" in seen.message
    assert ledger.look(through(NOON - timedelta(minutes=10))).done
    assert not ledger.look(through(NOON - timedelta(minutes=9, seconds=59))).done


def test_in_the_middle_of_a_backlog_rows_are_not_complete(ledger):
    register(ledger, "r2", config())
    ledger.query()
    ledger.batches(0, event_time_max=NOON)
    ledger.finish_runs()
    assert ledger.look(through(NOON - timedelta(minutes=10))).done
    # The next run's first files are newer than those that it has yet to read.
    register(ledger, "r3", config())
    ledger.batches(1, event_time_max=NOON + timedelta(hours=5))
    assert not ledger.look(through(NOON)).done
    ledger.batches(2, event_time_max=NOON + timedelta(hours=1))
    ledger.finish_runs()
    assert ledger.look(through(NOON + timedelta(hours=4))).done


def test_rows_of_runs_that_did_not_finish_are_told(ledger):
    register(ledger, "r2", config())
    ledger.query()
    ledger.batches(0, event_time_max=NOON)
    seen = ledger.look(through(NOON))
    assert not seen.done
    assert "events up to 2026-03-01 12:00:00+00 are committed, and no run has finished" in seen.message


@pytest.mark.parametrize("trigger", ["processingtime=10 seconds", "continuous=1 second"])
def test_runs_that_never_finish_do_not_say_when_rows_are_complete(ledger, trigger):
    document = config()
    document["streamingConfigJson"]["triggerMode"] = trigger
    register(ledger, "r2", document)
    ledger.query()
    ledger.batches(0, event_time_max=NOON)
    with pytest.raises(ConfigError, match="whose runs never finish"):
        ledger.look(through(NOON))


def test_a_run_that_was_given_up_still_says_what_the_pipeline_is(ledger):
    register(ledger, "r2", config())
    assert retire_run(ledger.tracker.conn, "etl", "r2")
    assert "no event time" in ledger.look(through(NOON)).message


def test_an_aggregation_is_complete_through_the_watermark_that_its_batch_began_with(ledger):
    totals = {
        "transformType": "aggregation",
        "parameters": {
            "groupByColumns": ["id"],
            "windowColumn": "at",
            "windowDuration": "1 hour",
            "aggregations": [{"column": "id", "function": "count", "output": "n"}],
        },
    }
    register(ledger, "r2", config(transforms=[totals]))
    ledger.query()
    ledger.batches(0, watermark=NOON - timedelta(hours=1), event_time_max=NOON + timedelta(hours=1))
    assert not ledger.look(through(NOON)).done
    assert ledger.look(through(NOON - timedelta(hours=1))).value["batch_id"] == 0


def test_who_started_over_has_emptied_the_target(ledger):
    register(ledger, "r2", config())
    ledger.query("first")
    ledger.batches(0, query_id="first", event_time_max=NOON + timedelta(hours=5))
    ledger.finish_runs()
    assert ledger.look(through(NOON)).done
    ledger.query("second", "accepted", "first")
    seen = ledger.look(through(NOON))
    assert not seen.done
    assert "since it was started over" in seen.message
    ledger.batches(0, query_id="second", epoch=2, event_time_max=NOON - timedelta(days=30))
    ledger.finish_runs()
    assert not ledger.look(through(NOON)).done


def test_without_a_watermark_nobody_can_tell(ledger):
    document = config()
    del document["streamingConfigJson"]["watermark"]
    register(ledger, "r2", document)
    with pytest.raises(ConfigError, match="has no watermark"):
        ledger.look(through(NOON))


def test_a_producer_whose_clock_is_wrong(ledger):
    register(ledger, "r2", config())
    ledger.query()
    ledger.batches(0, event_time_max=NOON.replace(year=2099))
    ledger.finish_runs()
    with pytest.raises(ClocksDisagreeError, match="a producer's clock is wrong"):
        ledger.look(through(NOON))


def test_a_time_needs_its_zone():
    with pytest.raises(ConfigError, match="through"):
        through("2026-03-01T06:00:00")


# -- books ------------------------------------------------------------------------------------------------------------


def test_books_that_balance(ledger):
    ledger.query()
    ledger.batches(0, 1)
    seen = ledger.look(LedgerBalance.of(pipeline="orders"))
    assert seen.done
    assert seen.value["rows"]["source"] == 20
    assert "20 rows read, 14 written, 6 rejected, late or dead letters (30.00%)" in seen.message
    assert not ledger.look(LedgerBalance.of(pipeline="orders", at_most_lost=0.29)).done
    assert ledger.look(LedgerBalance.of(pipeline="orders", at_most_lost=0.3)).done
    ledger.sql("UPDATE etl.batch_tracker SET processed_at = now() - interval '2 days' WHERE batch_id = 0")
    assert ledger.look(LedgerBalance.of(pipeline="orders", last="1 day")).value["batches"] == 1


def test_no_books_are_not_balanced_books(ledger):
    seen = ledger.look(LedgerBalance.of(pipeline="orders"))
    assert not seen.done
    assert "no micro-batch was ever committed" in seen.message
    with pytest.raises(ConfigError, match="last"):
        LedgerBalance.of(pipeline="orders", last=timedelta(days=-1))


def test_books_that_somebody_has_edited(ledger):
    ledger.query()
    ledger.batches(0, 1)
    ledger.sql("ALTER TABLE etl.batch_tracker DROP CONSTRAINT source_books_balance")
    ledger.sql("UPDATE etl.batch_tracker SET late_rows = 0 WHERE batch_id = 1")
    with pytest.raises(GapError, match="1 of query q"):
        ledger.look(LedgerBalance.of(pipeline="orders"))


# -- progress ---------------------------------------------------------------------------------------------------------


def progress(**goals: Any) -> QueryProgress:
    return QueryProgress.of(pipeline="orders", **goals)


def test_so_many_batches_offsets_and_rows(ledger):
    ledger.query()
    assert "no micro-batch is committed" in ledger.look(progress(batch_id=0)).message
    ledger.batches(0, 1)
    assert ledger.look(progress(batch_id=1)).done
    assert not ledger.look(progress(batch_id=2)).done
    assert ledger.look(progress(offsets={"orders": {"0": 20}})).done
    seen = ledger.look(progress(offsets={"orders": {"0": 21}}))
    assert not seen.done
    assert "offsets not reached yet" in seen.message
    assert ledger.look(progress(rows=14)).done
    assert not ledger.look(progress(rows=14, batch_id=7)).done
    assert "14 of 15 rows written" in ledger.look(progress(rows="15")).message
    assert not ledger.look(progress(rows=1, since="2100-01-01T00:00:00Z")).done


def test_rows_that_a_cleanup_removed_were_written(ledger, tracker):
    ledger.query()
    ledger.batches(*range(MINIMUM_BATCHES + 5))
    since = ledger.sql("SELECT min(processed_at) - interval '1 year' FROM etl.batch_tracker")[0][0]
    ledger.sql("UPDATE etl.batch_tracker SET processed_at = processed_at - interval '1 year'")
    ledger.sql("UPDATE etl.pipeline_run SET registered_at = registered_at - interval '1 year'")
    rows = 7 * (MINIMUM_BATCHES + 5)
    assert ledger.look(progress(rows=rows)).done
    assert ledger.look(progress(rows=rows, since=since)).done
    clean(tracker.conn, "etl", CleanupRequest.of(keep_batches=MINIMUM_BATCHES))
    assert ledger.sql("SELECT count(*) FROM etl.batch_tracker") == [(MINIMUM_BATCHES,)]
    assert ledger.look(progress(rows=rows)).done
    assert f"{rows} of {rows + 1} rows" in ledger.look(progress(rows=rows + 1)).message
    for about in ({"since": since}, {"run_id": "r1"}):
        assert ledger.look(progress(rows=rows - 35, **about)).done
        with pytest.raises(EtlError, match="cannot be told any more"):
            ledger.look(progress(rows=rows, **about))
    assert not ledger.look(progress(rows=1, since="2100-01-01T00:00:00Z")).done


def test_the_newest_query_counts(ledger):
    ledger.query("first")
    ledger.batches(*range(5), query_id="first")
    ledger.query("second", "resumed", "first")
    ledger.batches(0, query_id="second")
    seen = ledger.look(progress(batch_id=3))
    assert not seen.done
    assert seen.value["query_id"] == "second"


def test_a_query_whose_checkpoint_is_brought_back_is_the_newest(ledger):
    ledger.query("first")
    ledger.batches(0, query_id="first")
    ledger.query("second", "accepted", "first")
    ledger.batches(0, query_id="second", epoch=2)
    ledger.batches(1, query_id="first", epoch=3)
    assert ledger.look(progress(batch_id=1)).value["query_id"] == "first"


def test_the_end_of_a_run(ledger):
    assert not ledger.look(progress(run_finished=True)).done
    runs.finish_run(ledger.tracker.conn, "etl", "r1", "failed", 1, error={"what": "The disk was full"})
    seen = ledger.look(progress(run_finished=True))
    assert not seen.done
    assert "r1" in seen.message
    assert "is failed (The disk was full)" in seen.message
    with pytest.raises(EtlError, match="will not finish"):
        ledger.look(progress(run_finished=True, run_id="r1"))
    ledger.tracker.start("r2")
    runs.finish_run(ledger.tracker.conn, "etl", "r2", "finished", 0)
    assert ledger.look(progress(run_finished=True)).value == {"run_id": "r2", "run_state": "finished", "batch_id": None}
    assert not ledger.look(progress(run_finished=True, since="2100-01-01T00:00:00Z")).done
    with pytest.raises(ConfigError, match="'r9'"):
        ledger.look(progress(run_finished=True, run_id="r9"))
    ledger.tracker.start("r3", "returns")
    with pytest.raises(ConfigError, match="a run of 'returns'"):
        ledger.look(progress(run_finished=True, run_id="r3"))


@pytest.mark.parametrize("end", ["finished", "failed", "stopped", "fenced"])
@pytest.mark.parametrize(
    ("goals", "words"),
    [
        ({"batch_id": 2}, "micro-batch 1 of 2 is committed"),
        ({"rows": 15}, "14 of 15 rows written"),
        ({"offsets": {"orders": {"0": 21}}}, "offsets not reached yet"),
        ({"rows_per_second": 10_000}, "at least 10000 wanted"),
    ],
    ids=str,
)
def test_what_a_run_that_has_ended_did_not_reach_is_not_waited_for(ledger, end, goals, words):
    ledger.query()
    ledger.batches(0, 1)
    assert not ledger.look(progress(run_id="r1", **goals)).done
    runs.finish_run(ledger.tracker.conn, "etl", "r1", end, 0 if end == "finished" else 1)
    # The next run may.
    assert not ledger.look(progress(**goals)).done
    with pytest.raises(EtlError, match=r"r1 of pipeline 'orders' has ended") as raised:
        ledger.look(progress(run_id="r1", **goals))
    assert words in raised.value.found
    assert not raised.value.retryable
    assert ledger.look(progress(run_id="r1", batch_id=1, rows=14)).done
    if end == "finished":
        with pytest.raises(EtlError, match="has ended"):
            ledger.look(progress(run_id="r1", run_finished=True, **goals))
        with pytest.raises(EtlError, match="has ended"):
            ledger.look(progress(run_id="r1", run_finished=True, since="2100-01-01T00:00:00Z"))


def test_a_micro_batch_that_a_run_has_decided_may_come_after_its_end(ledger):
    ledger.query()
    ledger.batches(0)
    right, record = Right("etl", "orders", "r1", ledger.epoch), ledger.tracker.record(1, strategy="two_phase", gaps=[])
    with closing(ledger.tracker.connect(runs.application_name("orders", ledger.epoch))) as driver:
        decisions.decide(driver, right, record, "{}", [])
    runs.finish_run(ledger.tracker.conn, "etl", "r1", "failed", 1)
    assert not ledger.look(progress(run_id="r1", batch_id=1)).done
    (waiting,) = decisions.decided(ledger.tracker.conn, "etl")
    assert decisions.finish(ledger.tracker.conn, right, waiting)
    assert ledger.look(progress(run_id="r1", batch_id=1)).done


def test_a_driver_that_fell_silent_is_named(long_up):
    ledger = Watched(long_up)
    ledger.sql("UPDATE etl.pipeline_run SET heartbeat_at = clock_timestamp() - interval '10 minutes'")
    seen = ledger.look(progress(run_finished=True))
    assert not seen.done
    assert seen.value["run_state"] == "silent"
    assert "is silent for 10 min" in seen.message
    assert "its driver was killed" in seen.message


def test_the_speed_of_the_newest_batch(ledger):
    ledger.query()
    ledger.batches(0, duration_ms=100)
    assert ledger.look(progress(rows_per_second=100)).done
    seen = ledger.look(progress(rows_per_second=101))
    assert not seen.done
    assert "100.0 rows/s, at least 101 wanted" in seen.message


def test_a_run_of_an_older_query(ledger):
    ledger.query("first")
    ledger.batches(0, query_id="first")
    ledger.query("second", "resumed", "first")
    ledger.batches(5, query_id="second", run_id="r2", epoch=2)
    assert ledger.look(progress(batch_id=0, run_id="r1")).value["query_id"] == "first"


@pytest.mark.parametrize("offsets", [{}, {"t": {}}, {"t": {"zero": 1}}, {"t": {"0": None}}])
def test_offsets_that_nobody_can_reach(offsets):
    with pytest.raises(ConfigError, match="nobody can reach"):
        progress(offsets=offsets)


@pytest.mark.parametrize(
    ("source", "offsets", "why"),
    [
        ({"topic": "orders"}, {"order": {"0": 1}}, "reads orders"),
        ({"topic": "orders"}, 3, "counts by topic and partition"),
        ({"topic": "orders"}, {"orders": {"1": 1}}, None),
        ({"connectionParams": {"subscribe": "orders, returns"}}, {"returns": {"0": 1}}, None),
        ({"connectionParams": {"subscribe": "orders, returns"}}, {"refunds": {"0": 1}}, "reads orders, returns"),
        ({"connectionParams": {"assign": '{"orders": [0]}'}}, {"returns": {"0": 1}}, "reads orders"),
        # Tomorrow's topic.
        ({"connectionParams": {"subscribePattern": "orders.*"}}, {"orders2": {"0": 1}}, None),
    ],
    ids=str,
)
@pytest.mark.parametrize("batches", [0, 1])
def test_offsets_that_this_source_never_has(ledger, source, offsets, why, batches):
    servers = {"kafka.bootstrap.servers": "broker:9092", **source.get("connectionParams", {})}
    extract = {"sourceType": "kafka", "schema": "id INT", **source, "connectionParams": servers}
    _register(ledger, "r2", extract)
    ledger.query()
    ledger.batches(*range(batches))
    if why is None:
        assert not ledger.look(progress(offsets=offsets)).done
        return
    with pytest.raises(ConfigError, match="never gets to offsets") as raised:
        ledger.look(progress(offsets=offsets))
    assert why in raised.value.found


def test_offsets_of_kafka_for_a_source_of_files(ledger):
    _register(
        ledger, "r2", {"sourceType": "file", "schema": "id INT", "connectionParams": {"path": "/in", "format": "json"}}
    )
    ledger.query()
    assert not ledger.look(progress(offsets={"orders": {"0": 1}})).done
    ledger.batches(0, offsets=(None, {"logOffset": 0}))
    with pytest.raises(ConfigError, match="never gets to offsets"):
        ledger.look(progress(offsets={"orders": {"0": 1}}))
    assert not ledger.look(progress(offsets=1)).done


def _register(ledger, run_id, extract):
    config = {
        "pipelineId": "orders",
        "mode": "streaming",
        "extract": extract,
        "load": {"sinkType": "postgresql", "table": "orders", "credentialId": "warehouse"},
        "streamingConfigJson": {"checkpointLocation": "/c", "queryName": "orders"},
    }
    request = RunRequest(run_id=run_id, pipeline_id="orders", config=config, started_by="me")
    runs.register_run(ledger.tracker.conn, "etl", request)


def test_who_waits_for_nothing():
    with pytest.raises(ConfigError, match="Nothing is waited for"):
        progress()


# -- all --------------------------------------------------------------------------------------------------------------


def test_a_condition_of_another_version():
    with pytest.raises(ContractVersionError, match="Weather"):
        registry.from_json({"kind": "Weather", "pipeline": "orders"})


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (59.6, "1 min"), (7500, "2 h 5 min"), (90061, "1 d 1 h"), (-3, "-3 s")]
)
def test_time_in_words(seconds, words):
    assert in_words(seconds) == words
