"""Many pipelines at once: what a screen lets pass is what the check would let pass of each, alone."""

from __future__ import annotations

from contextlib import closing
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as some

from spark_jobs.contracts.errors import EtlError, TransientError
from spark_jobs.contracts.run_request import RunRequest
from spark_jobs.contracts.source_gaps import GAP_REASONS
from spark_jobs.contracts.tracker import runs
from spark_jobs.contracts.watch.balance import LedgerBalance
from spark_jobs.contracts.watch.batch_gaps import NOTHING_LOST, BatchGaps
from spark_jobs.contracts.watch.condition import Condition, LedgerView
from spark_jobs.contracts.watch.freshness import Freshness
from spark_jobs.contracts.watch.health import Thresholds, examine
from spark_jobs.contracts.watch.screening import screen

CONFIG = {
    "pipelineId": "orders",
    "mode": "streaming",
    "extract": {"sourceType": "rate", "connectionParams": {"rowsPerBatch": "10"}},
    "load": {"sinkType": "postgresql", "table": "orders", "credentialId": "warehouse"},
    "streamingConfigJson": {"checkpointLocation": "/c", "queryName": "orders"},
}
# Days: in front of the window, in it, in the last day, and by a clock that is ahead, by a little and by an hour.
AGES = (30, 8, 6, 2, 0.5, 0.001, -0.0003, -0.05)


@some.composite
def batches(draw: Any) -> list[dict[str, Any]]:
    """A query's micro-batches: as a rule they join up, and are the younger the higher their id."""
    number = draw(some.sampled_from([0, 0, 1, 5]))
    ages = sorted(draw(some.lists(some.sampled_from(AGES), max_size=5)), reverse=True)
    found, end = [], draw(some.sampled_from([0, None]))
    for age in ages:
        start = draw(some.sampled_from([end, end, end, end, end, end, 3, None]))
        end = draw(some.sampled_from([number * 10, number * 10, number * 10, None]))
        by_clock = draw(some.sampled_from([age] * 9 + [draw(some.sampled_from(AGES))]))
        found.append({"batch_id": number, "start_offsets": start, "end_offsets": end, "age": by_clock})
        number += draw(some.sampled_from([1] * 9 + [2]))
    return found


@some.composite
def pipelines(draw: Any) -> dict[str, Any]:
    """What the ledger has of a pipeline: rarely more than one thing is wrong."""
    return {
        "queries": draw(some.lists(batches(), min_size=1, max_size=2)),
        "seeded": draw(some.integers(0, 5)) == 5,
        "wrong": draw(some.sets(some.sampled_from(sorted(_WRONG)), max_size=2)),
    }


def _ledger(*queries: list[tuple[int, int | None, int, float]], seeded: bool = False, wrong: str = "") -> Any:
    """Return a pipeline, of each query its micro-batches: id, start, end, age."""
    fields = ("batch_id", "start_offsets", "end_offsets", "age")
    found = [[dict(zip(fields, batch, strict=True)) for batch in query] for query in queries]
    return [{"queries": found, "seeded": seeded, "wrong": {wrong} - {""}}]


# Rare ones: a micro-batch behind a hole that a clock has put in front of the window; a checkpoint that was resumed
# elsewhere than its predecessor ended; nothing but commits of the future.
@example(found=_ledger([(0, None, 10, 0.5), (1, 10, 20, 0.5), (3, 20, 30, 8)]), most_lost=None)
@example(found=_ledger([(0, None, 10, 2)], [(0, 15, 20, 0.5)], seeded=True), most_lost=None)
@example(found=_ledger([(0, None, 10, -0.05)], wrong="unfinished run"), most_lost=None)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(found=some.lists(pipelines(), min_size=1, max_size=3), most_lost=some.sampled_from([None, 0.1, 0.3]))
def test_what_a_screen_lets_pass_its_check_lets_pass(
    tracker: Any, found: list[dict[str, Any]], most_lost: float | None
) -> None:
    view = LedgerView(tracker.conn, "etl")
    limits = Thresholds.of(max_age="1 day", gap_window="7 days", max_lost_share=most_lost, max_new_letters=1)
    names = [_fill(tracker, one) for one in found]
    ill = {(name, check) for name in names for check, holds in _alone(view, name, limits).items() if not holds}
    own = {
        "freshness": limits.max_age,
        "gaps": limits.gap_window,
        "balance": most_lost,
        "dead_letters": limits.max_new_letters,
    }
    passed = screen(view, {check: dict.fromkeys(names, limit) for check, limit in own.items()})  # type: ignore[misc]
    assert not passed & ill
    # What a check says of the clocks, and what it excuses, nobody can see from afar; everything else passes at once.
    assert passed | ill >= {(name, check) for name in names for check in ("balance", "dead_letters", "freshness")}
    # Where there was nothing to read yet, there are no books, which a sensor waits for, and nothing is wrong.
    known = "SELECT pipeline_id FROM {schema}.batch_tracker UNION SELECT pipeline_id FROM {schema}.batch_decision"
    begun = {name for (name,) in view.rows(known, {}, "Looking")}
    excused = {(name, check) for name in set(names) - begun for check in ("gaps", "balance")}
    assert {(one.pipeline, one.check) for one in examine(view, names, limits)} == ill - excused


def _alone(view: LedgerView, name: str, limits: Thresholds) -> dict[str, bool]:
    conditions: dict[str, Condition] = {
        "freshness": Freshness.of(pipeline=name, younger_than=limits.max_age, idle_runs_count=True),
        "gaps": BatchGaps.of(pipeline=name, last=limits.gap_window, excuse=NOTHING_LOST),
        "balance": LedgerBalance.of(pipeline=name, last="1 day", at_most_lost=limits.max_lost_share),
    }
    waiting = view.rows("SELECT count(*) FROM {schema}.dead_letter WHERE pipeline_id = %s", (name,), "Counting")
    found = {check: _holds(view, condition) for check, condition in conditions.items()}
    return {**found, "dead_letters": waiting[0][0] <= 1}


def _holds(view: LedgerView, condition: Condition) -> bool:
    try:
        return condition.look(view).done
    except EtlError:
        return False


def _fill(tracker: Any, one: dict[str, Any]) -> str:
    """Put a pipeline into the ledger; return its id."""
    name = f"p{uuid4().hex}"
    _register(tracker, name)
    with tracker.conn.transaction():
        for number, found in enumerate(one["queries"]):
            tracker.conn.execute(_QUERY, (name, f"q{number}", "q0" if one["seeded"] and number else None, name))
            for batch in found:
                _batch(tracker, name, query_id=f"q{number}", **batch)
        for wrong in one["wrong"]:
            tracker.conn.execute(_WRONG[wrong], {"name": name, "gone": GAP_REASONS["partition_gone"]})
    return name


def _register(tracker: Any, name: str) -> None:
    """Register a run that has finished a moment ago, without any micro-batch."""
    request = RunRequest(run_id=name, pipeline_id=name, config={**CONFIG, "pipelineId": name}, started_by="test")
    runs.register_run(tracker.conn, "etl", request)
    runs.finish_run(tracker.conn, "etl", name, "finished", 0)


def _batch(tracker: Any, name: str, *, query_id: str = "q", age: float = 0, **fields: Any) -> None:
    record = tracker.record(pipeline_id=name, query_id=query_id, run_id=name, files=[], gaps=[], **fields)
    tracker.commit(record)
    tracker.conn.execute(_AGE, (age * 86_400, name, query_id, fields["batch_id"]))


_QUERY = (
    "INSERT INTO etl.pipeline_query (pipeline_id, query_id, checkpoint_location, origin, seeded_from, run_id, epoch) "
    "VALUES (%s, %s, '/c', 'resumed', %s, %s, 1)"
)
_AGE = (
    "UPDATE etl.batch_tracker SET processed_at = clock_timestamp() - make_interval(secs => %s) "
    "WHERE pipeline_id = %s AND query_id = %s AND batch_id = %s"
)
_GAP = (
    "INSERT INTO etl.source_gap (pipeline_id, query_id, batch_id, source, missing_rows, reason) "
    "VALUES (%(name)s, 'q0', 0, '{}', 4, "
)
_WRONG = {
    "decided": "INSERT INTO etl.batch_decision (pipeline_id, query_id, batch_id, epoch, run_id, winners, record, "
    "event, decided_at) VALUES (%(name)s, 'q0', 99, 1, 'r', '[]', '{}', '{}', clock_timestamp() - interval '1 hour')",
    "excused gap": _GAP + f"'{GAP_REASONS['compaction']}')",
    "lost rows": _GAP + f"'{GAP_REASONS['retention']}')",
    "gap": _GAP + "%(gone)s)",
    "letters": "INSERT INTO etl.dead_letter_single (pipeline_id, query_id, batch_id, stage, error_class, message, "
    "source) SELECT %(name)s, 'q0', 0, 'parse', 'BAD', 'm', '{}' FROM generate_series(1, 2)",
    "unfinished run": "UPDATE etl.pipeline_run SET state = 'stopped' WHERE run_id = %(name)s",
    "old run": "UPDATE etl.pipeline_run SET ended_at = now() - interval '3 days' WHERE run_id = %(name)s",
}


@pytest.fixture
def fleet(tracker: Any) -> list[str]:
    """Three hundred pipelines with nothing wrong."""
    names = [f"p{number}" for number in range(300)]
    for name in names:
        _register(tracker, name)
        for number in (0, 1):
            _batch(tracker, name, batch_id=number)
    return names


LIMITS = Thresholds.of(max_age="1 day", gap_window="7 days", max_lost_share=0.5, max_new_letters=1)


def test_many_pipelines_are_no_more_questions_than_few(tracker: Any, fleet: list[str]) -> None:
    asked = 0

    class Counted(psycopg.Cursor[Any]):
        def execute(self, *arguments: Any, **options: Any) -> Any:
            nonlocal asked
            asked += 1
            return super().execute(*arguments, **options)

    with closing(tracker.connect()) as conn:
        conn.cursor_factory = Counted
        assert examine(LedgerView(conn, "etl"), fleet[:200], LIMITS) == []
        many, asked = asked, 0
        assert examine(LedgerView(conn, "etl"), fleet[:1], LIMITS) == []
        assert many == asked > 0
        asked = 0
        assert examine(LedgerView(conn, "etl"), fleet, LIMITS) == []
        assert asked == 2 * many


def test_a_ledger_that_cannot_be_read_is_no_other_pipelines_trouble(tracker: Any, fleet: list[str]) -> None:
    """Books that no number can hold: the statement fails for all that it asks about."""
    enormous = "UPDATE etl.batch_tracker SET source_rows = %s, passed_rows = %s WHERE pipeline_id = 'p7'"
    tracker.conn.execute(enormous, (2**62, 2**62 - 3))
    tracker.conn.execute("DELETE FROM etl.batch_tracker WHERE (pipeline_id, batch_id) = ('p9', 0)")
    found = examine(LedgerView(tracker.conn, "etl"), fleet[:20], LIMITS)
    assert [(one.pipeline, one.check) for one in found] == [("p7", "balance"), ("p9", "gaps")]
    assert "22003" in found[0].message


def test_a_session_that_is_lost_is_nothing_that_is_wrong_with_a_pipeline(tracker: Any, fleet: list[str]) -> None:
    conn = tracker.connect()
    tracker.conn.execute("SELECT pg_terminate_backend(%s)", (conn.info.backend_pid,))
    with pytest.raises(TransientError):
        screen(LedgerView(conn, "etl"), {"dead_letters": {"p0": 1}})
