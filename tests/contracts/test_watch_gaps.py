"""Nothing is missing, or it is named: the condition of ``BatchGapSensor``."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from watched import Watched

from spark_jobs.contracts.cleanup import MINIMUM_BATCHES, CleanupRequest
from spark_jobs.contracts.errors import ConfigError, GapError
from spark_jobs.contracts.source_gaps import GAP_REASONS
from spark_jobs.contracts.tracker.cleanup import clean
from spark_jobs.contracts.watch.batch_gaps import BatchGaps
from spark_jobs.contracts.watch.offsets import by_partition, reaches, seams

ORDERS = BatchGaps.of(pipeline="orders")


@pytest.fixture
def ledger(tracker):
    return Watched(tracker)


def gap(ledger, condition=ORDERS):
    with pytest.raises(GapError) as raised:
        ledger.look(condition)
    assert not raised.value.retryable
    return raised.value.found


def test_batches_that_join_up(ledger):
    ledger.query()
    ledger.batches(0, 1, 2)
    seen = ledger.look(ORDERS)
    assert seen.done
    assert seen.value["batches"] == 3
    assert "3 micro-batches" in seen.message


def test_nothing_was_committed_yet(ledger):
    ledger.query()
    seen = ledger.look(ORDERS)
    assert not seen.done
    assert "no micro-batch was ever committed" in seen.message


def test_a_hole_in_the_batch_ids_and_the_offsets_that_nobody_read(ledger):
    ledger.query()
    ledger.batches(0, 1, 4)
    found = gap(ledger)
    assert "micro-batches 2 to 3 of query q are not in the ledger" in found
    assert "orders[0] offsets 20 to 40 were never read" in found


def test_a_hole_punched_into_a_ledger(ledger):
    ledger.query()
    ledger.batches(*range(5))
    ledger.sql("DELETE FROM etl.batch_tracker WHERE batch_id = 2")
    assert "micro-batch 2 of query q is not in the ledger" in gap(ledger)


def test_a_query_that_does_not_begin_at_its_beginning(ledger):
    ledger.query()
    ledger.batches(3)
    assert "micro-batches 0 to 2 of query q are not in the ledger" in gap(ledger)


def test_offsets_that_were_read_twice(ledger):
    ledger.query()
    ledger.batches(0)
    ledger.batches(1, offsets=({"orders": {"0": 5}}, {"orders": {"0": 20}}))
    assert "orders[0] offsets 5 to 10 were read twice" in gap(ledger)


def test_a_partition_that_is_new_joins_up(ledger):
    ledger.query()
    ledger.batches(0)
    ledger.batches(1, offsets=({"orders": {"0": 10}}, {"orders": {"0": 20, "1": 7}}))
    ledger.batches(2, offsets=({"orders": {"0": 20, "1": 7}}, {"orders": {"0": 30, "1": 9}}))
    assert ledger.look(ORDERS).done


def test_files_join_up_by_their_log(ledger):
    ledger.query()
    ledger.batches(0, offsets=(None, {"logOffset": 0}))
    ledger.batches(1, offsets=({"logOffset": 0}, {"logOffset": 1}))
    assert ledger.look(ORDERS).done
    ledger.batches(2, offsets=({"logOffset": 4}, {"logOffset": 5}))
    assert "offsets 1 to 4 were never read" in gap(ledger)


def test_across_a_checkpoint_that_was_resumed(ledger):
    ledger.query("first")
    ledger.batches(0, 1, query_id="first")
    ledger.query("second", "resumed", "first")
    ledger.batches(0, query_id="second", offsets=({"orders": {"0": 20}}, {"orders": {"0": 25}}))
    assert ledger.look(ORDERS).done


@pytest.mark.parametrize(
    ("start", "words"), [(17, "offsets 17 to 20 were read twice"), (23, "offsets 20 to 23 were never read")]
)
def test_a_resumed_checkpoint_that_does_not_join_up(ledger, start, words):
    ledger.query("first")
    ledger.batches(0, 1, query_id="first")
    ledger.query("second", "resumed", "first")
    ledger.batches(0, query_id="second", offsets=({"orders": {"0": start}}, {"orders": {"0": 30}}))
    found = gap(ledger)
    assert words in found
    assert "between micro-batch 1 of query first and the resumed query second" in found


def test_resumed_files_begin_behind_their_seed(ledger):
    ledger.query("first")
    ledger.batches(0, query_id="first", offsets=(None, {"logOffset": 0}))
    ledger.query("second", "resumed", "first")
    ledger.batches(1, query_id="second", offsets=({"logOffset": 0}, {"logOffset": 1}))
    assert ledger.look(ORDERS).done


def test_who_starts_over_is_named(ledger):
    ledger.query("first")
    ledger.batches(0, query_id="first")
    ledger.query("second", "accepted", "first")
    ledger.batches(0, query_id="second")
    seen = ledger.look(ORDERS)
    assert seen.done
    assert "query second was started over by a person" in seen.message


def test_rows_that_the_broker_deleted_are_excused_and_named(ledger):
    ledger.query()
    ledger.batches(0)
    where = '{"topic": "orders", "partition": 0, "from_offset": 3, "to_offset": 7}'
    record = "INSERT INTO etl.source_gap (pipeline_id, query_id, batch_id, source, missing_rows, reason) VALUES "
    ledger.sql(record + "('orders', 'q', 0, %s, 4, %s)", where, GAP_REASONS["retention"])
    seen = ledger.look(ORDERS)
    assert seen.done
    assert "4 rows missing at orders[0] 3 to 7, deleted by the broker" in seen.message
    assert "4 rows missing at orders[0] 3 to 7" in gap(ledger, BatchGaps.of(pipeline="orders", excuse=["compaction"]))
    ledger.sql(record + "('orders', 'q', 0, %s, NULL, %s)", where, GAP_REASONS["partition_gone"])
    assert "the partition is not there any more" in gap(ledger)


def test_what_is_excused_hides_nothing(ledger):
    """However much of it there is, and however old."""
    ledger.query("q0")
    ledger.batches(0, query_id="q0", offsets=({"orders": {"0": 0}}, {"orders": {"0": 10}}))
    for number in range(1, 25):
        ledger.query(f"q{number}", "resumed", f"q{number - 1}")
        at = {"orders": {"0": number * 10}}
        ledger.batches(0, query_id=f"q{number}", offsets=(at, {"orders": {"0": number * 10 + 10}}))
    record = "INSERT INTO etl.source_gap (pipeline_id, query_id, batch_id, source, missing_rows, reason) VALUES "
    for number in range(30):
        ledger.sql(record + "('orders', 'q0', %s, '{}', 2, %s)", number, GAP_REASONS["compaction"])
    seen = ledger.look(ORDERS)
    assert seen.done
    assert "micro-batches 0 to 29: 30 times rows, 60 in all, missing" in seen.message
    ledger.sql(record + "('orders', 'q0', 30, '{}', NULL, %s)", GAP_REASONS["partition_gone"])
    assert "micro-batch 30 of query q0: rows missing" in gap(ledger)
    ledger.sql("DELETE FROM etl.source_gap")
    ledger.batches(5, query_id="q24", offsets=({"orders": {"0": 900}}, {"orders": {"0": 910}}))
    found = gap(ledger)
    assert "micro-batches 1 to 4 of query q24 are not in the ledger" in found
    assert "offsets 250 to 900 were never read" in found


def test_a_hole_behind_a_query_that_has_no_batch(ledger):
    ledger.query("first")
    ledger.batches(0, query_id="first")
    ledger.query("empty", "resumed", "first")
    ledger.query("third", "resumed", "empty")
    ledger.batches(0, query_id="third", offsets=({"orders": {"0": 5000}}, {"orders": {"0": 5010}}))
    assert "orders[0] offsets 10 to 5000 were never read" in gap(ledger)
    ledger.sql("UPDATE etl.pipeline_query SET start_offsets = '{\"orders\": {\"0\": 10}}' WHERE query_id = 'empty'")
    assert "the beginning of query empty, which has no batch" in gap(ledger)


def test_a_hole_in_front_of_a_window_is_named_as_it_is(ledger):
    ledger.query()
    ledger.batches(0, 1, 4)
    ledger.sql("UPDATE etl.batch_tracker SET processed_at = now() - interval '3 days' WHERE batch_id < 2")
    found = gap(ledger, BatchGaps.of(pipeline="orders", last="1 day"))
    assert "micro-batches 2 to 3 of query q are not in the ledger" in found
    assert "orders[0] offsets 20 to 40 were never read" in found


def test_offsets_of_a_source_of_ones_own(ledger):
    ledger.query()
    ledger.batches(0, offsets=(None, {"stream": {"shard-0": "49590"}}))
    ledger.batches(1, offsets=({"stream": {"shard-0": "49590"}}, {"stream": {"shard-0": "49599"}}))
    assert ledger.look(ORDERS).done
    ledger.batches(2, offsets=({"stream": {"shard-0": "50000"}}, {"stream": {"shard-0": "50001"}}))
    assert "goes on at" in gap(ledger)


def test_a_decided_batch_is_waited_for(ledger):
    ledger.query()
    ledger.batches(0)
    ledger.sql(
        "INSERT INTO etl.batch_decision (pipeline_id, query_id, batch_id, epoch, run_id, winners, record, event) "
        "VALUES ('orders', 'q', 1, 1, 'r1', '[]', '{}', '{}')"
    )
    seen = ledger.look(ORDERS)
    assert not seen.done
    assert "1 of query q is decided and not finished" in seen.message


def test_a_window_has_the_batch_in_front_of_it(ledger):
    ledger.query()
    ledger.batches(0, 1, 2, 3)
    ledger.sql("UPDATE etl.batch_tracker SET processed_at = now() - interval '3 days' WHERE batch_id < 2")
    window = BatchGaps.of(pipeline="orders", last="1 day")
    assert ledger.look(window).value["batches"] == 2
    ledger.sql("DELETE FROM etl.batch_tracker WHERE batch_id = 0")
    assert ledger.look(window).done
    assert "micro-batch 0 of query q is not in the ledger" in gap(ledger)
    ledger.sql("DELETE FROM etl.batch_tracker WHERE batch_id = 1")
    assert "not in the ledger" in gap(ledger, window)


def test_an_empty_window_says_when_the_last_one_was(ledger):
    ledger.query()
    ledger.batches(0)
    seen = ledger.look(BatchGaps.of(pipeline="orders", since=datetime.now(UTC) + timedelta(hours=1)))
    assert seen.done
    assert "the last one was 0" in seen.message


def test_a_pipeline_that_nobody_knows(ledger):
    with pytest.raises(ConfigError, match="pipelines such as orders"):
        ledger.look(BatchGaps.of(pipeline="order"))
    seen = ledger.look(BatchGaps.of(pipeline="order", wait_for_first_run=True))
    assert not seen.done
    assert "has never run" in seen.message


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"since": "2026-03-01T06:00", "pipeline": "orders"}, "since"),
        ({"since": "2026-03-01T06:00Z", "last": "1 day", "pipeline": "orders"}, "one window"),
        ({"last": "0 seconds", "pipeline": "orders"}, "window"),
        ({"excuse": ["everything"], "pipeline": "orders"}, "excuse"),
        ({"pipeline": ""}, "pipeline"),
        ({"pipeline": "orders", "sinse": "2026-03-01T06:00Z"}, "sinse"),
    ],
)
def test_what_cannot_be_asked_for(values, words):
    with pytest.raises(ConfigError, match=words):
        BatchGaps.of(**values)


PARTITIONS = some.dictionaries(some.sampled_from("0123"), some.integers(0, 50), min_size=1)


@given(PARTITIONS, PARTITIONS)
def test_seams_tell_exactly_what_differs(end, start):
    found = {seam.where: seam for seam in seams({"t": end}, {"t": start})}
    for part in end.keys() & start.keys():
        seam = found.pop(f"t[{part}]", None)
        if end[part] == start[part]:
            assert seam is None
        else:
            assert seam is not None
            assert (seam.kind, seam.rows) == (
                "hole" if start[part] > end[part] else "overlap",
                abs(start[part] - end[part]),
            )
    assert not found


@given(some.lists(some.integers(0, 9), min_size=1, max_size=8), some.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
def test_whatever_is_taken_out_of_the_middle_is_found(tracker, sizes, data):
    """Micro-batches of any sizes join up; without one in the middle they do not, and only it is named."""
    with contextlib.suppress(Exception):
        tracker.start("r1")
    ledger = Watched.__new__(Watched)
    ledger.tracker = tracker
    ledger.sql("DELETE FROM etl.batch_tracker")
    ledger.sql("DELETE FROM etl.pipeline_query")
    ledger.query()
    at = 0
    for number, size in enumerate(sizes):
        ledger.batches(number, offsets=({"t": {"0": at}}, {"t": {"0": at + size}}))
        at += size
    assert ledger.look(ORDERS).value["batches"] == len(sizes)
    if len(sizes) < 3:
        return
    taken = data.draw(some.integers(1, len(sizes) - 2))
    ledger.sql("DELETE FROM etl.batch_tracker WHERE batch_id = %s", taken)
    found = gap(ledger)
    assert f"micro-batch {taken} of query q is not in the ledger" in found
    assert found.count("not in the ledger") == 1


def test_arithmetic_of_offsets():
    assert by_partition({"logOffset": 3}) is None
    assert reaches({"t": {"0": 8, "1": 1}}, {"t": {"0": 8}})
    assert not reaches({"t": {"0": 7}}, {"t": {"0": 8}})
    assert not reaches({"t": {"0": 9}}, {"t": {"1": 0}})
    assert reaches({"logOffset": 4}, 3)
    assert not reaches(None, 3)


def test_what_a_cleanup_removed_is_named_and_a_hole_behind_it_is_none_of_it(ledger, tracker):
    ledger.query()
    ledger.batches(*range(MINIMUM_BATCHES + 5))
    ledger.sql("UPDATE etl.batch_tracker SET processed_at = processed_at - interval '1 year'")
    clean(tracker.conn, "etl", CleanupRequest.of(keep_batches=MINIMUM_BATCHES))
    seen = ledger.look(ORDERS)
    assert seen.done
    assert "micro-batches up to 4 of query q were removed by a cleanup" in seen.message
    ledger.sql("DELETE FROM etl.batch_tracker WHERE batch_id IN (5, 6)")
    found = gap(ledger)
    assert "micro-batches 5 to 6 of query q are not in the ledger" in found
    assert "excused: micro-batches up to 4" in found


def test_what_stays_after_a_cleanup_must_begin_where_the_removed_batches_ended(ledger, tracker):
    ledger.query()
    ledger.batches(*range(MINIMUM_BATCHES + 5))
    ledger.sql("UPDATE etl.batch_tracker SET processed_at = processed_at - interval '1 year'")
    clean(tracker.conn, "etl", CleanupRequest.of(keep_batches=MINIMUM_BATCHES))
    ledger.sql('UPDATE etl.batch_retention SET end_offsets = \'{"orders": {"0": 40}}\'')
    assert "orders[0] offsets 40 to 50 were never read" in gap(ledger)
