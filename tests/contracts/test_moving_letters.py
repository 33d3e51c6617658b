"""Letters that several transactions settle at the same moment: each has one owner, and nobody fails over it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest

from spark_jobs.contracts.errors import TransientError
from spark_jobs.contracts.replay import LetterFilter, ReplayRequest
from spark_jobs.contracts.tracker.connect import Connection
from spark_jobs.contracts.tracker.letters import count_letters, discard_letters
from spark_jobs.contracts.tracker.migrate import migrate
from spark_jobs.contracts.tracker.replays import open_replay, release
from spark_jobs.contracts.tracker.taking import Taken

WANTED = LetterFilter.of(pipeline_id="orders")


@pytest.fixture
def conn(database: Any) -> Any:
    with database.connect(autocommit=True) as conn:
        migrate(conn, "etl")
        conn.execute("INSERT INTO etl.pipeline (pipeline_id, epoch) VALUES ('orders', 1)")
        yield conn


def add(conn: Connection, letters: int) -> None:
    conn.execute(
        "INSERT INTO etl.dead_letter_single (pipeline_id, query_id, batch_id, stage, error_class, message, source) "
        "SELECT 'orders', 'q', 0, 'parse', 'BAD', 'm', '{}' FROM generate_series(1, %s)",
        (letters,),
    )


def take(conn: Connection, replay_id: UUID, limit: int | None = None) -> Taken:
    """Take letters as the run of a replay does, whose right to it is registered first."""
    request = ReplayRequest.of(replay_id=replay_id, letters=WANTED, limit=limit)
    conn.execute(
        "INSERT INTO etl.pipeline (pipeline_id, epoch, newest_run_id) VALUES (%s, 1, %s) ON CONFLICT DO NOTHING",
        (request.own_pipeline_id, str(replay_id)),
    )
    # Its driver lives: whoever comes next would take the letters of one that is gone.
    conn.execute(
        "INSERT INTO etl.pipeline_run (run_id, pipeline_id, state, request, started_by) "
        "VALUES (%s, %s, 'running', '{}', 'me') ON CONFLICT DO NOTHING",
        (str(replay_id), request.own_pipeline_id),
    )
    return open_replay(conn, "etl", request, str(replay_id), 1)


@contextmanager
def waiting_for(database: Any, *statements: str) -> Iterator[None]:
    """Hold what the statements change until somebody waits for it; then commit."""
    with database.connect() as holder, database.connect(autocommit=True) as watcher:
        for statement in statements:
            holder.execute(statement)
        holding = holder.info.backend_pid

        def commit_when_waited_for() -> None:
            waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid)))"
            while not watcher.execute(waits, (holding,)).fetchone()[0]:
                continue
            holder.commit()

        thread = threading.Thread(target=commit_when_waited_for)
        thread.start()
        yield
        thread.join()


def test_who_waits_for_a_letter_that_moves_looks_again(conn: Connection, database: Any) -> None:
    add(conn, 5)
    park = "UPDATE etl.dead_letter_single SET status = 'parked'"
    both = LetterFilter.of(pipeline_id="orders", statuses=("pending", "parked"))
    with waiting_for(database, park):
        assert discard_letters(conn, "etl", both, by="ada", reason="test data") == 5
    assert [(count.status, count.letters) for count in count_letters(conn, "etl")] == [("discarded", 5)]


def test_what_moves_for_ever_ends_with_a_passing_fault(conn: Connection) -> None:
    add(conn, 1)
    # A trigger stands for others that always come first.
    conn.execute(
        "CREATE FUNCTION etl.first() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "RAISE EXCEPTION 'moved' USING ERRCODE = 'serialization_failure'; END $$"
    )
    conn.execute(
        "CREATE TRIGGER first BEFORE UPDATE ON etl.dead_letter_single FOR EACH ROW EXECUTE FUNCTION etl.first()"
    )
    with pytest.raises(TransientError, match="Discarding"):
        discard_letters(conn, "etl", WANTED, by="ada", reason="test data")
    assert [(count.status, count.letters) for count in count_letters(conn, "etl")] == [("pending", 1)]


def test_many_at_once_leave_no_letter_with_two_owners(conn: Connection, database: Any) -> None:
    add(conn, 400)
    replays = [uuid4() for _ in range(4)]
    together = threading.Barrier(6, timeout=30)

    def takes(replay_id: UUID) -> int:
        with database.connect(autocommit=True) as mine:
            together.wait()
            return take(mine, replay_id, limit=90).letters

    def gives_back(replay_id: UUID) -> int:
        with database.connect(autocommit=True) as mine:
            first = take(mine, replay_id, limit=60).letters
            together.wait()
            assert release(mine, "etl", [replay_id]) == first
            return 0

    def discards() -> int:
        with database.connect(autocommit=True) as mine:
            together.wait()
            return discard_letters(mine, "etl", WANTED, by="ada", reason="test data")

    with ThreadPoolExecutor(6) as pool:
        given_back = pool.submit(gives_back, uuid4())
        taken = [pool.submit(takes, replay_id) for replay_id in replays]
        discarded = pool.submit(discards)
        letters = {replay_id: one.result() for replay_id, one in zip(replays, taken, strict=True)}
        assert given_back.result() == 0
    held = dict(
        conn.execute("SELECT replay_id, count(*) FROM etl.dead_letter WHERE status = 'replaying' GROUP BY 1").fetchall()
    )
    assert held == {replay_id: number for replay_id, number in letters.items() if number}
    counts = {count.status: count.letters for count in count_letters(conn, "etl")}
    assert sum(counts.values()) == 400
    assert counts.get("discarded", 0) == discarded.result()
    assert counts.get("replaying", 0) == sum(letters.values())
    assert dict(conn.execute("SELECT status, count(*) FROM etl.dead_letter GROUP BY 1").fetchall()) == counts
