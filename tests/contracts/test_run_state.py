"""How a run is, by the clock of the ledger's server; and the same answer in every reader."""

from __future__ import annotations

import itertools

import pytest

from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.tracker import runs
from spark_jobs.contracts.tracker.queries import pipeline_status
from spark_jobs.contracts.tracker.retire import retire_run
from spark_jobs.contracts.tracker.run_state import (
    SILENT_AFTER_SECONDS,
    RunPhase,
    newest_request,
    newest_run_life,
    run_life,
    run_phase,
)

_AGO = "UPDATE etl.pipeline_run SET heartbeat_at = clock_timestamp() - make_interval(secs => %s) WHERE run_id = %s"


def _phase(tracker, pipeline_id="orders"):
    life = newest_run_life(tracker.conn, "etl", pipeline_id)
    if life.run_id is not None:
        (status,) = pipeline_status(tracker.conn, "etl", pipeline_id)
        assert (status.run_id, status.run_phase) == (life.run_id, life.phase)
        assert run_life(tracker.conn, "etl", life.run_id).phase == life.phase
    return life.phase


def test_a_runs_life(long_up):
    tracker = long_up
    assert _phase(tracker) == RunPhase.NEVER_STARTED
    tracker.register("r1")
    assert _phase(tracker) == RunPhase.REGISTERED
    assert newest_run_life(tracker.conn, "etl", "orders").advice
    runs.claim_epoch(tracker.conn, "etl", "orders", "r1")
    assert _phase(tracker) == RunPhase.RUNNING
    tracker.conn.execute(_AGO, (SILENT_AFTER_SECONDS - 30, "r1"))
    assert _phase(tracker) == RunPhase.RUNNING
    tracker.conn.execute(_AGO, (SILENT_AFTER_SECONDS + 1, "r1"))
    assert _phase(tracker) == RunPhase.SILENT
    life = newest_run_life(tracker.conn, "etl", "orders")
    assert life.silent_seconds is not None
    assert SILENT_AFTER_SECONDS < life.silent_seconds < SILENT_AFTER_SECONDS + 600
    assert "run it again" in life.advice
    # Its driver was only asleep.
    runs.heartbeat(tracker.conn, "etl", "r1", "app-1", trigger="availablenow", ui_url="http://driver:4040")
    assert _phase(tracker) == RunPhase.RUNNING
    runs.heartbeat(tracker.conn, "etl", "r1")
    life = newest_run_life(tracker.conn, "etl", "orders")
    assert (life.application_id, life.trigger, life.ui_url) == ("app-1", "availablenow", "http://driver:4040")


@pytest.mark.parametrize("state", ["finished", "failed", "stopped"])
def test_a_run_that_has_ended_is_never_silent(long_up, state):
    long_up.start("r1")
    runs.finish_run(long_up.conn, "etl", "r1", state, 0)
    long_up.conn.execute(_AGO, (10_000, "r1"))
    assert _phase(long_up) == RunPhase(state)
    assert newest_run_life(long_up.conn, "etl", "orders").silent_seconds is None


def test_a_run_that_was_taken_over_or_given_up(long_up):
    long_up.start("r1")
    long_up.start("r2")
    assert run_life(long_up.conn, "etl", "r1").phase == RunPhase.FENCED
    assert _phase(long_up) == RunPhase.RUNNING
    retire_run(long_up.conn, "etl", "r2")
    assert _phase(long_up) == RunPhase.FENCED


def test_the_newest_run_is_told_by_the_fence_and_not_by_a_clock(long_up):
    long_up.start("r1")
    runs.finish_run(long_up.conn, "etl", "r1", "finished", 0)
    long_up.conn.execute("UPDATE etl.pipeline_run SET registered_at = clock_timestamp() + interval '1 hour'")
    long_up.start("r2")
    assert _phase(long_up) == RunPhase.RUNNING
    assert newest_run_life(long_up.conn, "etl", "orders").run_id == "r2"
    request = newest_request(long_up.conn, "etl", "orders")
    assert request is not None
    assert request["run_id"] == "r2"
    assert newest_request(long_up.conn, "etl", "nobody") is None


def test_a_run_that_failed_before_its_driver_came_up(long_up):
    long_up.register("r1")
    runs.finish_run(long_up.conn, "etl", "r1", "failed", 1)
    life = newest_run_life(long_up.conn, "etl", "orders")
    assert (life.phase, life.started_at) == (RunPhase.FAILED, None)


def test_a_server_that_was_down_makes_nobody_silent(tracker):
    """This server was started for this session of tests: nobody could give a sign of life before."""
    tracker.start("r1")
    tracker.conn.execute(_AGO, (1_000_000, "r1"))
    up = tracker.one("SELECT extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())::float")
    life = newest_run_life(tracker.conn, "etl", "orders")
    assert life.silent_seconds == pytest.approx(up, abs=60)


def test_a_run_that_is_not_there(tracker):
    with pytest.raises(ConfigError, match="'nobody'"):
        run_life(tracker.conn, "etl", "nobody")


def test_every_state_has_a_phase():
    states = ["registered", "running", "finished", "failed", "stopped", "fenced"]
    for state, silent in itertools.product(states, [None, -5.0, 0.0, 1e9]):
        phase = run_phase(state, silent)  # type: ignore[arg-type]
        assert phase == ("silent" if (state, silent) == ("running", 1e9) else state)
