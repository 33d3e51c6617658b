"""What was committed since a position: in the fence's order, whatever becomes of checkpoints and of old batches."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from watched import Watched

from spark_jobs.contracts.cleanup import MINIMUM_BATCHES, CleanupRequest
from spark_jobs.contracts.tracker import statements as st
from spark_jobs.contracts.tracker.cleanup import clean
from spark_jobs.contracts.tracker.connect import raw
from spark_jobs.contracts.watch import commits
from spark_jobs.contracts.watch.commits import CommitsAfter, NewestCommit, Position
from spark_jobs.contracts.watch.condition import LedgerView, Seen

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def watched(tracker: Any) -> Watched:
    made = Watched(tracker)
    made.query()
    return made


def after(watched: Watched, position: Position, through: Position | None = None, pipeline: str = "orders") -> Seen:
    condition = CommitsAfter.of(pipeline=pipeline, after=position, through=through)
    return condition.look(LedgerView(watched.tracker.conn, "etl"))


def newest(watched: Watched, pipeline: str = "orders") -> Seen:
    return NewestCommit.of(pipeline=pipeline).look(LedgerView(watched.tracker.conn, "etl"))


def end(seen: Seen) -> Position:
    value = seen.value
    return Position(epoch=value["epoch"], batch_id=value["last_batch_id"], query_id=value["query_id"])


def told(watched: Watched, position: Position) -> list[str]:
    """Return the ids of all that is told from a position on."""
    ids = []
    while (seen := after(watched, position)).done:
        ids.append(seen.value["id"])
        position = end(seen)
    return ids


def test_one_range_tells_of_all_commits_since(watched: Watched) -> None:
    hours = [datetime(2026, 3, 1, hour, tzinfo=UTC) for hour in range(4)]
    for number in range(3):
        watched.batches(
            number,
            watermark=hours[number],
            event_time_min=hours[number],
            event_time_max=hours[number + 1],
        )
    seen = after(watched, Position(epoch=1, batch_id=0, query_id="q"))
    assert seen.done
    committed_at = seen.value.pop("committed_at")
    assert abs((datetime.now(UTC) - datetime.fromisoformat(committed_at)).total_seconds()) < 3600
    assert seen.value == {
        "id": "orders/q/1-2",
        "pipeline": "orders",
        "after": {"epoch": 1, "batch_id": 0, "query_id": "q"},
        "query_id": "q",
        "first_batch_id": 1,
        "last_batch_id": 2,
        "batches": 2,
        "rows": 14,
        "source_rows": 20,
        "start_offsets": {"orders": {"0": 10}},
        "end_offsets": {"orders": {"0": 30}},
        "watermark": "2026-03-01T02:00:00.000000+00:00",
        "event_time_min": "2026-03-01T01:00:00.000000+00:00",
        "event_time_max": "2026-03-01T03:00:00.000000+00:00",
        "run_id": "r1",
        "epoch": 1,
        "removed_through_batch_id": None,
    }
    assert not after(watched, end(seen)).done


def test_the_newest_commit_is_by_the_fence_and_not_by_the_clock(watched: Watched) -> None:
    assert not newest(watched).done
    watched.batches(0, 1)
    watched.query("q2")
    watched.batches(0, query_id="q2", epoch=2)
    watched.sql("UPDATE etl.batch_tracker SET processed_at = processed_at - interval '1 day' WHERE epoch = 2")
    assert newest(watched).value == {"epoch": 2, "batch_id": 0, "query_id": "q2"}


def test_what_has_never_run_is_waited_for(watched: Watched) -> None:
    assert "has never run" in after(watched, Position(), pipeline="returns").message
    assert "has never run" in newest(watched, "returns").message
    watched.sql("DROP SCHEMA etl CASCADE")
    with pytest.raises(Exception, match="etl"):
        after(watched, Position())


def test_checkpoints_are_told_one_after_the_other(watched: Watched) -> None:
    """Reset, and the older one brought back: each stretch has its own range, none is told twice."""
    watched.batches(0, 1, 2)
    watched.query("q2")
    watched.batches(0, 1, query_id="q2", epoch=2)
    watched.batches(3, 4, epoch=3)
    assert told(watched, Position()) == ["orders/q/0-2", "orders/q2/0-1", "orders/q/3-4"]
    assert told(watched, Position(epoch=1, batch_id=1, query_id="q")) == [
        "orders/q/2-2",
        "orders/q2/0-1",
        "orders/q/3-4",
    ]


def test_very_many_are_told_piece_by_piece(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "_MOST_BATCHES", 3)
    watched.batches(0, 1, 2, 3)
    watched.query("q2")
    watched.batches(0, 1, query_id="q2", epoch=2)
    assert told(watched, Position()) == ["orders/q/0-2", "orders/q/3-3", "orders/q2/0-1"]


def test_a_range_is_told_once_more_as_it_was(watched: Watched) -> None:
    watched.batches(0, 1)
    first = after(watched, Position())
    watched.batches(2, 3)
    again = after(watched, Position(**first.value["after"]), through=end(first))
    assert again.value == first.value


def test_what_a_cleanup_removed_belongs_to_the_range(watched: Watched) -> None:
    newest_batch = MINIMUM_BATCHES + 9
    with watched.tracker.conn.transaction():
        for number in range(newest_batch + 1):
            raw(watched.tracker.conn, st.insert_batch(watched.tracker.ident), watched.tracker.record(number).row_json())
    watched.sql("UPDATE etl.batch_tracker SET processed_at = clock_timestamp() - interval '90 days'")
    watched.sql("UPDATE etl.batch_tracker SET processed_at = clock_timestamp() WHERE batch_id >= 8")
    request = CleanupRequest.of(days=30, keep_batches=MINIMUM_BATCHES, pause_seconds=0)
    assert clean(watched.tracker.conn, "etl", request).queries[0].through_batch == 7

    seen = after(watched, Position(epoch=1, batch_id=1, query_id="q"))
    assert seen.value["id"] == f"orders/q/2-{newest_batch}"
    assert seen.value["removed_through_batch_id"] == 7
    assert seen.value["batches"] == newest_batch - 7
    assert seen.value["start_offsets"] is None
    # A position after all that was removed knows nothing of it.
    seen = after(watched, Position(epoch=1, batch_id=7, query_id="q"))
    assert seen.value["id"] == f"orders/q/8-{newest_batch}"
    assert seen.value["removed_through_batch_id"] is None


def test_another_ledger_is_told_from_its_beginning(watched: Watched) -> None:
    watched.batches(0, 1)
    seen = after(watched, Position(epoch=40, batch_id=7, query_id="gone"))
    assert seen.value["id"] == "orders/q/0-1"
    assert seen.value["after"] == Position().model_dump()
    assert "has no micro-batch 7 of query gone any more" in seen.message
    # Restored to before the last commit: its batch comes again, under another epoch.
    seen = after(watched, Position(epoch=1, batch_id=2, query_id="q"))
    assert seen.value["id"] == "orders/q/0-1"


def test_a_time_that_no_clock_can_show_is_told(watched: Watched) -> None:
    watched.batches(0, watermark=datetime(9999, 12, 31, 23, 59, tzinfo=UTC))
    watched.sql("SET timezone = 'Asia/Tokyo'")
    assert after(watched, Position()).value["watermark"] == "9999-12-31T23:59:00.000000+00:00"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(
    stretches=some.lists(some.tuples(some.sampled_from("abc"), some.integers(1, 4)), min_size=1, max_size=6),
    looks=some.sets(some.integers(0, 24)),
)
def test_every_commit_is_told_exactly_once_whenever_one_looks(
    watched: Watched, stretches: list[tuple[str, int]], looks: set[int]
) -> None:
    """A stretch is an epoch: one query commits some batches in it."""
    watched.sql("TRUNCATE etl.batch_tracker CASCADE")
    expected: list[tuple[str, int]] = []
    seen: list[tuple[str, int]] = []
    position, committed, next_batch = Position(), 0, dict.fromkeys("abc", 0)

    def look(position: Position) -> Position:
        while (found := after(watched, position)).done:
            value = found.value
            seen.extend((value["query_id"], n) for n in range(value["first_batch_id"], value["last_batch_id"] + 1))
            position = end(found)
        return position

    for epoch, (query_id, count) in enumerate(stretches, start=1):
        for _ in range(count):
            watched.batches(next_batch[query_id], query_id=query_id, epoch=epoch)
            expected.append((query_id, next_batch[query_id]))
            next_batch[query_id] += 1
            committed += 1
            if committed in looks:
                position = look(position)
    look(position)
    assert seen == expected
