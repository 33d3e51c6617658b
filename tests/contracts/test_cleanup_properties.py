"""Whatever the batches, their times, the limits and the decisions: what a checkpoint could run again stays."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from spark_jobs.contracts.cleanup import MINIMUM_BATCHES, CleanupRequest
from spark_jobs.contracts.tracker import cleanup
from spark_jobs.contracts.tracker import statements as st
from spark_jobs.contracts.tracker.connect import raw
from spark_jobs.contracts.tracker.records import StoredBatch

DAYS = 30
MOST = MINIMUM_BATCHES + 60


@some.composite
def queries(draw: Any) -> dict[str, Any]:
    """Batches by their ids; the first ones are old, as a rule, and the others young."""
    number = draw(some.integers(0, MOST))
    first = draw(some.integers(0, 5))
    old = draw(some.integers(0, number))
    against_the_rule = draw(some.sets(some.integers(0, max(number - 1, 0)), max_size=4))
    ages = [100 if (index < old) != (index in against_the_rule) else 1 for index in range(number)]
    return {"first": first, "ages": ages, "decided": draw(some.integers(0, 4)) == 4}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    found=some.lists(queries(), min_size=1, max_size=3),
    keep=some.integers(MINIMUM_BATCHES, MINIMUM_BATCHES + 50),
    size=some.sampled_from([1, 7, 1000]),
    passes=some.integers(1, 2),
)
def test_only_a_query_s_oldest_batches_go_and_only_if_age_and_number_agree(
    tracker: Any, found: list[dict[str, Any]], keep: int, size: int, passes: int
) -> None:
    pipeline = f"p{uuid4().hex}"
    tracker.start(pipeline, pipeline)
    before = {f"q{number}": _commit(tracker, pipeline, f"q{number}", one) for number, one in enumerate(found)}
    request = CleanupRequest.of(pipelines=(pipeline,), days=DAYS, keep_batches=keep, batch_size=size, pause_seconds=0)
    for _ in range(passes):
        cleanup.clean(tracker.conn, "etl", request)
    for (query_id, batches), one in zip(before.items(), found, strict=True):
        expected = _gone(batches, one, keep)
        kept = _ids(tracker, pipeline, query_id)
        assert kept == [batch_id for batch_id, _ in batches[expected:]]
        assert kept[-MINIMUM_BATCHES:] == [batch_id for batch_id, _ in batches[-MINIMUM_BATCHES:]]
        _compare_with_what_is_written_down(tracker, pipeline, query_id, batches, expected)


def _gone(batches: list[tuple[int, int]], one: dict[str, Any], keep: int) -> int:
    """Return how many batches are to go, by the rules as people read them."""
    gone = 0
    while not one["decided"] and gone < len(batches) - keep and batches[gone][1] > DAYS:
        gone += 1
    return gone


def _compare_with_what_is_written_down(
    tracker: Any, pipeline: str, query_id: str, batches: list[tuple[int, int]], gone: int
) -> None:
    row = tracker.conn.execute(
        "SELECT removed_through_batch, removed_batches FROM etl.batch_retention "
        "WHERE pipeline_id = %s AND query_id = %s",
        (pipeline, query_id),
    ).fetchone()
    assert row == ((batches[gone - 1][0], gone) if gone else None)
    # Every batch that ever was is known for committed or removed, whichever a checkpoint brings again.
    for index in {0, gone - 1, gone, len(batches) - 1} & set(range(len(batches))):
        ((text,),) = raw(tracker.conn, st.find_batch(tracker.ident), pipeline, query_id, str(batches[index][0]))
        assert StoredBatch.from_json(text).status == ("removed" if index < gone else "committed")


def _commit(tracker: Any, pipeline: str, query_id: str, one: dict[str, Any]) -> list[tuple[int, int]]:
    batches = [(one["first"] + index, age) for index, age in enumerate(one["ages"])]
    with tracker.conn.transaction():
        for batch_id, age in batches:
            record = tracker.record(batch_id, pipeline_id=pipeline, query_id=query_id, run_id=pipeline)
            raw(tracker.conn, st.insert_batch(tracker.ident), record.row_json())
            if age != 1:
                tracker.conn.execute(
                    "UPDATE etl.batch_tracker SET processed_at = now() - make_interval(days => %s) "
                    "WHERE pipeline_id = %s AND query_id = %s AND batch_id = %s",
                    (age, pipeline, query_id, batch_id),
                )
        if one["decided"]:
            tracker.conn.execute(
                "INSERT INTO etl.batch_decision (pipeline_id, query_id, batch_id, epoch, run_id, winners, record, "
                "event) VALUES (%s, %s, %s, 1, %s, '[]', '{}', '{}')",
                (pipeline, query_id, one["first"] + len(batches), pipeline),
            )
    return batches


def _ids(tracker: Any, pipeline: str, query_id: str) -> list[int]:
    rows = tracker.conn.execute(
        "SELECT batch_id FROM etl.batch_tracker WHERE pipeline_id = %s AND query_id = %s ORDER BY 1",
        (pipeline, query_id),
    )
    return [row[0] for row in rows]


@pytest.mark.parametrize("number", [0, 1, MINIMUM_BATCHES])
def test_the_smallest_cleanup_keeps_what_spark_keeps(tracker: Any, number: int) -> None:
    tracker.start("r1")
    _commit(tracker, "orders", "q", {"first": 0, "ages": [100] * number, "decided": False})
    request = CleanupRequest.of(days=0, keep_batches=MINIMUM_BATCHES)
    assert cleanup.clean(tracker.conn, "etl", request).totals == {}
