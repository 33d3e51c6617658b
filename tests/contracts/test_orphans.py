"""What drivers that are gone have left is cleared away for all pipelines; what a living one needs stays."""

from __future__ import annotations

from contextlib import closing
from typing import Any
from uuid import uuid4

import pytest
from server_age import long_up

from spark_jobs.contracts.cleanup import Orphan, SweepReport, SweepRequest
from spark_jobs.contracts.errors import ConfigError, FencedError
from spark_jobs.contracts.replay import LetterFilter, ReplayRequest
from spark_jobs.contracts.run_request import RunRequest
from spark_jobs.contracts.tracker import decisions, runs
from spark_jobs.contracts.tracker import statements as st
from spark_jobs.contracts.tracker.connect import raw
from spark_jobs.contracts.tracker.decisions import Right, Winner
from spark_jobs.contracts.tracker.left_behind import resolve_left_behind
from spark_jobs.contracts.tracker.orphans import sweep_orphans
from spark_jobs.contracts.tracker.part_names import part_names
from spark_jobs.contracts.tracker.prepared import prepared_names
from spark_jobs.contracts.tracker.replays import open_replay
from spark_jobs.contracts.tracker.staging_names import staging_prefix


def prepare(tracker: Any, epoch: int = 1, part: int = 0, *, pipeline_id: str = "orders") -> Winner:
    """Leave a prepared part of three rows, as a task does."""
    name = part_names(pipeline_id, "etl", "q", 0, epoch, 1).of(part, 0)
    with closing(tracker.connect()) as task:
        task.execute("BEGIN")
        task.execute("INSERT INTO target SELECT generate_series(1, 3)")
        raw(task, st.insert_part(tracker.ident), name, pipeline_id, "q", "0", "3")
        task.execute(f"PREPARE TRANSACTION '{name}'")
    return Winner(name, 3)


def decide(tracker: Any, *winners: Winner) -> None:
    with closing(tracker.connect(runs.application_name("orders", 1))) as driver:
        decisions.decide(driver, Right("etl", "orders", "r1", 1), tracker.record(), "{}", winners)


def staging(tracker: Any, epoch: int, pipeline_id: str = "orders", kind: str = "rows") -> str:
    name = f"{staging_prefix(pipeline_id, 'etl')}{epoch}_1_{kind}"
    tracker.conn.execute(f'CREATE UNLOGGED TABLE etl."{name}" (id int)')
    return name


def tables(tracker: Any) -> set[str]:
    found = tracker.conn.execute(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'etl' AND starts_with(tablename, 'stage')"
    )
    return {row[0] for row in found}


def fall_silent(tracker: Any, run_id: str = "r1") -> None:
    long_up(tracker.conn)
    tracker.conn.execute(
        "UPDATE etl.pipeline_run SET registered_at = registered_at - interval '1 hour', "
        "started_at = started_at - interval '1 hour', heartbeat_at = heartbeat_at - interval '1 hour' "
        "WHERE run_id = %s",
        (run_id,),
    )


def stay_alive(tracker: Any, run_id: str = "r1") -> None:
    """Let a driver's sign of life count even where none may be older than this moment."""
    tracker.conn.execute(
        "UPDATE etl.pipeline_run SET heartbeat_at = now() + interval '1 hour' WHERE run_id = %s", (run_id,)
    )


def sweep(tracker: Any, **request: Any) -> SweepReport:
    return sweep_orphans(tracker.conn, "etl", SweepRequest.of(**request))


def sweep_at_once(tracker: Any, **request: Any) -> SweepReport:
    """Sweep as if the limit had passed: when a transaction was prepared cannot be changed afterwards."""
    return sweep_orphans(tracker.conn, "etl", SweepRequest.model_construct(older_than_minutes=0, **request))


def states(report: SweepReport) -> list[tuple[str, str]]:
    return sorted((orphan.kind, orphan.state) for orphan in report.orphans)


@pytest.fixture
def ledger(tracker: Any) -> Any:
    """A ledger with a target and a driver of epoch 1, which is alive."""
    tracker.conn.execute("CREATE TABLE target (id int)")
    tracker.start("r1")
    return tracker


def test_undecided_parts_of_a_silent_driver_are_rolled_back_and_it_cannot_decide_any_more(ledger: Any) -> None:
    prepare(ledger)
    fall_silent(ledger)
    assert states(sweep(ledger)) == [("prepared", "kept")]
    assert states(sweep_at_once(ledger, dry_run=True)) == [("prepared", "rolled back")]
    assert len(prepared_names(ledger.conn, "etl", "orders")) == 1
    assert states(sweep_at_once(ledger)) == [("prepared", "rolled back")]
    assert prepared_names(ledger.conn, "etl", "orders") == set()
    with pytest.raises(FencedError):
        decide(ledger)


def test_what_was_decided_is_finished(ledger: Any) -> None:
    decide(ledger, prepare(ledger), prepare(ledger, part=1))
    prepare(ledger, part=2)
    fall_silent(ledger)
    assert states(sweep_at_once(ledger)) == [("decided", "committed"), ("prepared", "rolled back")]
    assert ledger.one("SELECT count(*) FROM target") == 6
    assert ledger.one("SELECT count(*) FROM etl.batch_tracker") == 1


def test_a_living_drivers_parts_stay_and_those_of_the_driver_before_go(ledger: Any) -> None:
    lost = prepare(ledger)
    ledger.start("r2")
    kept = prepare(ledger, epoch=2)
    stay_alive(ledger, "r2")
    report = sweep_at_once(ledger)
    assert {(one.name, one.state) for one in report.orphans} == {(lost.name, "rolled back"), (kept.name, "kept")}
    assert prepared_names(ledger.conn, "etl", "orders") == {kept.name}
    ledger.conn.execute(f"ROLLBACK PREPARED '{kept.name}'")


def test_others_prepared_transactions_are_left_alone(ledger: Any) -> None:
    with closing(ledger.connect()) as other:
        other.execute("BEGIN")
        other.execute("INSERT INTO target VALUES (1)")
        other.execute("PREPARE TRANSACTION 'etl:somebody:else'")
    try:
        fall_silent(ledger)
        assert sweep_at_once(ledger).orphans == ()
    finally:
        ledger.conn.execute("ROLLBACK PREPARED 'etl:somebody:else'")


def test_a_part_that_somebody_rolled_back_is_a_problem_of_its_pipeline_alone(ledger: Any) -> None:
    winner = prepare(ledger)
    decide(ledger, winner)
    ledger.conn.execute(f"ROLLBACK PREPARED '{winner.name}'")
    ledger.start("s1", "other")
    prepare(ledger, pipeline_id="other")
    fall_silent(ledger)
    fall_silent(ledger, "s1")
    report = sweep_at_once(ledger)
    assert states(report) == [("prepared", "kept"), ("prepared", "rolled back")]
    assert set(report.problems) == {"orders"}
    assert report.problems["orders"]["type"] == "DecidedPartMissingError"
    assert "--accept-missing" in report.problems["orders"]["cure"]


def test_staging_tables_go_when_their_driver_cannot_commit_any_more(ledger: Any) -> None:
    ledger.start("s1", "other")
    ledger.conn.execute("UPDATE etl.pipeline SET epoch = 3 WHERE pipeline_id = 'orders'")
    older, own = staging(ledger, 2), staging(ledger, 3, kind="letters")
    others = staging(ledger, 1, "other")
    foreign = staging(ledger, 1, "nobody")
    restored = staging(ledger, 7)
    ledger.conn.execute("CREATE TABLE etl.stage_plan ()")
    assert states(sweep(ledger, pipelines=("other",))) == [("staging", "kept")]
    assert states(sweep(ledger, dry_run=True)).count(("staging", "dropped")) == 1
    report = sweep(ledger)
    assert {(one.name, one.state) for one in report.orphans} == {
        (older, "dropped"),
        (own, "kept"),
        (others, "kept"),
        (restored, "kept"),
    }
    assert tables(ledger) == {own, others, foreign, restored, "stage_plan"}


def test_a_silent_driver_loses_its_right_before_its_staging_table(ledger: Any) -> None:
    name = staging(ledger, 1)
    fall_silent(ledger)
    assert states(sweep(ledger, dry_run=True)) == [("staging", "dropped")]
    assert tables(ledger) == {name}
    assert states(sweep(ledger)) == [("staging", "dropped")]
    assert tables(ledger) == set()
    with pytest.raises(FencedError):
        runs.check_fence(ledger.conn, "etl", "orders", "r1", 1, lock=False)


def test_a_driver_that_a_dead_server_kept_from_speaking_keeps_its_right(ledger: Any) -> None:
    fall_silent(ledger)
    long_up(ledger.conn, since="clock_timestamp() - interval '1 minute'")
    name, part = staging(ledger, 1), prepare(ledger)
    report = sweep(ledger)
    assert {(one.name, one.state, one.why) for one in report.orphans} == {
        (name, "kept", "its driver is alive"),
        (part.name, "kept", "its driver is alive"),
    }
    assert resolve_left_behind(ledger.conn, "etl", "orders") == []
    assert ledger.one("SELECT epoch FROM etl.pipeline") == 1
    ledger.conn.execute(f"ROLLBACK PREPARED '{part.name}'")


def test_the_staging_table_of_a_run_that_has_ended_goes_and_nobody_loses_a_right(ledger: Any) -> None:
    staging(ledger, 1)
    runs.finish_run(ledger.conn, "etl", "r1", "failed", 1)
    assert states(sweep(ledger)) == [("staging", "dropped")]
    assert ledger.one("SELECT epoch FROM etl.pipeline") == 1


def test_a_table_in_use_stays(ledger: Any) -> None:
    name = staging(ledger, 1)
    runs.finish_run(ledger.conn, "etl", "r1", "failed", 1)
    with closing(ledger.connect()) as zombie, zombie.transaction():
        zombie.execute(f'INSERT INTO etl."{name}" VALUES (1)')
        (orphan,) = sweep(ledger).orphans
    assert (orphan.state, orphan.why) == ("kept", "another session is using it")
    assert states(sweep(ledger)) == [("staging", "dropped")]


def test_a_table_of_another_role_is_dropped_as_its_owner(ledger: Any) -> None:
    role = f"writer_{uuid4().hex[:8]}"
    ledger.conn.execute(f"CREATE ROLE {role}")
    try:
        ledger.conn.execute(f"GRANT USAGE, CREATE ON SCHEMA etl TO {role}")
        ledger.conn.execute(f'ALTER TABLE etl."{staging(ledger, 1)}" OWNER TO {role}')
        ledger.register("r2", load={"role": role})
        runs.finish_run(ledger.conn, "etl", "r1", "failed", 1)
        assert states(sweep(ledger)) == [("staging", "dropped")]
    finally:
        ledger.conn.execute(f"DROP OWNED BY {role}")
        ledger.conn.execute(f"DROP ROLE {role}")


def _open_replay(tracker: Any) -> ReplayRequest:
    tracker.conn.execute(
        "INSERT INTO etl.dead_letter_single (pipeline_id, query_id, batch_id, stage, error_class, message, source) "
        "SELECT 'orders', 'q', 0, 'parse', 'BAD', 'm', '{}' FROM generate_series(1, 5)"
    )
    request = ReplayRequest.of(replay_id=uuid4(), letters=LetterFilter.of(pipeline_id="orders"))
    own, run_id = request.own_pipeline_id, str(request.replay_id)
    run = RunRequest(run_id=run_id, pipeline_id=own, config={}, started_by="me", replay=request)
    runs.register_run(tracker.conn, "etl", run)
    open_replay(tracker.conn, "etl", request, run_id, runs.claim_epoch(tracker.conn, "etl", own, run_id))
    return request


def test_letters_of_an_abandoned_replay_wait_again(ledger: Any) -> None:
    replay_id = str(_open_replay(ledger).replay_id)
    count = "SELECT count(*) FROM etl.dead_letter WHERE status = 'pending'"
    assert sweep(ledger).orphans == ()
    fall_silent(ledger, replay_id)
    ledger.conn.execute("UPDATE etl.dead_letter_replay SET requested_at = requested_at - interval '1 hour'")
    expected = Orphan(kind="replay", pipeline_id="orders", name=replay_id, state="given back", letters=5)
    assert sweep(ledger, dry_run=True).orphans == (expected,)
    assert ledger.one(count) == 0
    assert sweep(ledger).orphans == (expected,)
    assert ledger.one(count) == 5
    assert sweep(ledger).orphans == ()


def test_expired_progress_goes_but_for_the_newest(ledger: Any) -> None:
    ledger.conn.execute(
        "INSERT INTO etl.query_progress (pipeline_id, query_id, batch_id, spark_run_id, run_id, epoch, attempt, "
        "outcome, recorded_at) SELECT 'orders', 'q', n, 's', 'r1', 1, 1, 'completed', now() - interval '91 days' "
        "FROM generate_series(1, 1130) AS n"
    )
    expected = Orphan(kind="progress", pipeline_id="orders", name="query_progress", state="removed", rows=1030)
    assert sweep(ledger, progress_days=None).orphans == ()
    assert sweep(ledger, progress_days=92).orphans == ()
    assert sweep(ledger, dry_run=True).orphans == (expected,)
    with closing(ledger.connect()) as other:
        other.execute("BEGIN")
        other.execute("LOCK TABLE etl.query_progress IN SHARE MODE")
        [kept] = sweep(ledger).orphans
        assert (kept.state, kept.why) == ("kept", "another session is using the rest")
    assert sweep(ledger).orphans == (expected,)
    assert ledger.one("SELECT min(batch_id) FROM etl.query_progress") == 1031
    assert sweep(ledger).orphans == ()


@pytest.mark.parametrize("values", [{"older_than_minutes": 1}, {"role": ""}, {"progress_days": -1}], ids=str)
def test_what_is_not_valid_is_named(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        SweepRequest.of(**values)


def test_an_unknown_pipeline_is_named(ledger: Any) -> None:
    with pytest.raises(ConfigError, match="'nobody'"):
        sweep(ledger, pipelines=("nobody",))
