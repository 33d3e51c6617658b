"""The fence under generated interleavings of registrations, claims, commits and frozen drivers."""

from __future__ import annotations

import itertools
import threading
from contextlib import closing, suppress

import psycopg
from hypothesis import HealthCheck, settings
from hypothesis import strategies as some
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from spark_jobs.contracts.errors import EtlError, FencedError
from spark_jobs.contracts.run_request import RunRequest
from spark_jobs.contracts.tracker import runs
from spark_jobs.contracts.tracker import statements as st
from spark_jobs.contracts.tracker.connect import raw

NAMES = itertools.count()
DRIVERS = some.integers(0, 2)


def passes_fence(conn, pipeline_id, run_id, epoch):
    try:
        conn.execute("BEGIN")
        raw(conn, st.begin_settings(), runs.application_name(pipeline_id, epoch), "20ms", "600s")
        runs.check_fence(conn, "etl", pipeline_id, run_id, epoch, lock=True)
    except (EtlError, psycopg.Error):
        return False
    return True


def machine_for(tracker, pool):
    """Return the machine; its three drivers have real sessions of their own."""

    class Fence(RuleBasedStateMachine):
        @initialize()
        def begin(self):
            self.pipeline = f"p{next(NAMES)}"
            self.epoch = 0
            self.epochs = [None, None, None]
            self.run_of = [None, None, None]
            self.inside = set()
            self.committed = []
            for place in range(3):
                self.renew(place)
            self.a_run_is_registered()
            self.a_driver_claims(0, stale=False)

        def renew(self, place):
            with suppress(psycopg.Error):
                pool[place].rollback()
            if pool[place].closed:
                pool[place] = tracker.connect("driver")
            self.inside.discard(place)

        @rule()
        def a_run_is_registered(self):
            self.newest = f"{self.pipeline}-{next(NAMES)}"
            tracker.register(self.newest, self.pipeline, lock_timeout_ms=20)

        @rule(place=DRIVERS, stale=some.booleans())
        def a_driver_claims(self, place, stale):
            run = self.run_of[place] if stale and self.run_of[place] else self.newest
            try:
                epoch = runs.claim_epoch(tracker.conn, "etl", self.pipeline, run, lock_timeout_ms=20)
            except FencedError:
                assert run != self.newest
                return
            assert run == self.newest
            assert epoch == self.epoch + 1
            self.epoch = epoch
            self.renew(place)
            self.epochs[place], self.run_of[place] = epoch, run

        @precondition(lambda self: self.outside())
        @rule(choice=DRIVERS)
        def a_commit_passes_the_fence(self, choice):
            place = self.outside()[choice % len(self.outside())]
            conn = pool[place]
            allowed = self.run_of[place] == self.newest and self.epochs[place] == self.epoch
            passed = passes_fence(conn, self.pipeline, self.run_of[place], self.epochs[place])
            if passed:
                assert allowed
                self.inside.add(place)
            else:
                # Another driver that passed before may still hold the fence.
                assert not allowed or self.inside
                self.renew(place)

        def outside(self):
            return [place for place in range(3) if self.epochs[place] is not None and place not in self.inside]

        @precondition(lambda self: self.inside)
        @rule(choice=DRIVERS)
        def a_commit_ends(self, choice):
            place = sorted(self.inside)[choice % len(self.inside)]
            epoch, run = self.epochs[place], self.run_of[place]
            try:
                pool[place].execute("COMMIT")
            except psycopg.Error:
                # Its session was ended by a newer run: nothing of it is there.
                assert (run, epoch) != (self.newest, self.epoch)
                self.renew(place)
            else:
                assert (run, epoch) == (self.newest, self.epoch)
                self.committed.append(epoch)
                self.inside.discard(place)

        @invariant()
        def commits_are_in_the_order_of_epochs(self):
            assert self.committed == sorted(self.committed)

    return Fence


def test_interleavings(tracker):
    pool = [tracker.connect("driver") for _ in range(3)]
    try:
        run_state_machine_as_test(
            machine_for(tracker, pool),
            settings=settings(
                max_examples=120,
                stateful_step_count=25,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        for conn in pool:
            conn.close()


def test_drivers_that_run_at_the_same_time(tracker):
    """Each driver takes over, commits as long as it may, and gives way; the witness tells in which order."""
    tracker.conn.execute("CREATE TABLE witness (seq bigserial, epoch bigint)")
    barrier, failures = threading.Barrier(4), []

    def drive(number):
        barrier.wait()
        for turn in range(6):
            try:
                live(f"run-{number}-{turn}")
            except (psycopg.OperationalError, EtlError):
                # Fenced, or its session was ended by a newer run: nothing of the transaction is there.
                continue
            except BaseException as error:
                failures.append(error)
                raise

    def live(run_id):
        with closing(tracker.connect()) as conn:
            runs.register_run(conn, "etl", request_of(run_id))
            epoch = runs.claim_epoch(conn, "etl", "orders", run_id)
            for _ in range(20):
                with conn.transaction():
                    raw(conn, st.begin_settings(), runs.application_name("orders", epoch), "10s", "60s")
                    runs.check_fence(conn, "etl", "orders", run_id, epoch, lock=True)
                    conn.execute("INSERT INTO witness (epoch) VALUES (%s)", (epoch,))

    live("first")
    threads = [threading.Thread(target=drive, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    live("last")
    assert not failures
    epochs = [epoch for (epoch,) in tracker.conn.execute("SELECT epoch FROM witness ORDER BY seq")]
    assert epochs == sorted(epochs)
    assert epochs.count(epochs[0]) == epochs.count(epochs[-1]) == 20
    assert epochs[-1] == tracker.one("SELECT epoch FROM etl.pipeline")


def request_of(run_id):
    return RunRequest(run_id=run_id, pipeline_id="orders", config={}, started_by="me")
