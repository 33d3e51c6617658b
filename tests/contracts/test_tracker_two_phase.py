"""Two-phase commits in the ledger: what people resolve by hand, and what stands in its way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr
from server_age import long_up
from transaction_pooler import transaction_pooler

from spark_jobs.contracts.credentials import DatabaseConnection
from spark_jobs.contracts.errors import (
    BooksDoNotBalanceError,
    DecidedPartMissingError,
    FencedError,
    GapError,
    TransientError,
    TwoPhaseUnavailableError,
)
from spark_jobs.contracts.tracker import decisions, left_behind, runs
from spark_jobs.contracts.tracker import prepared as prepared_transactions
from spark_jobs.contracts.tracker import statements as st
from spark_jobs.contracts.tracker.connect import connect, raw
from spark_jobs.contracts.tracker.decisions import Decided, Right, Winner
from spark_jobs.contracts.tracker.left_behind import resolve_left_behind
from spark_jobs.contracts.tracker.part_names import part_names
from spark_jobs.contracts.tracker.prepared import prepared_names
from spark_jobs.contracts.tracker.records import Books
from spark_jobs.contracts.watch.batch_gaps import BatchGaps
from spark_jobs.contracts.watch.condition import LedgerView

ROWS = 7


def prepare(tracker: Any, epoch: int, part: int = 0, *, role: str | None = None) -> Winner:
    """Leave a prepared part of ``ROWS`` rows, as a task does."""
    name = part_names("orders", tracker.schema, "q", 0, epoch, 1).of(part, 0)
    with closing(tracker.connect()) as task:
        task.execute("BEGIN")
        if role:
            task.execute(f"SET LOCAL ROLE {role}")
        task.execute("INSERT INTO target SELECT generate_series(1, %s)", [ROWS])
        raw(task, st.insert_part(tracker.ident), name, "orders", "q", "0", str(ROWS))
        task.execute(f"PREPARE TRANSACTION '{name}'")
    return Winner(name, ROWS)


def decide(tracker: Any, epoch: int, *winners: Winner, **changes: Any) -> None:
    with closing(tracker.connect(runs.application_name("orders", epoch))) as driver:
        record = tracker.record(epoch=epoch, strategy="two_phase", **changes)
        decisions.decide(driver, Right(tracker.schema, "orders", "r1", epoch), record, '{"rows": 7}', winners)


def fall_silent(tracker: Any) -> None:
    long_up(tracker.conn)
    tracker.conn.execute("UPDATE etl.pipeline_run SET heartbeat_at = now() - interval '10 minutes'")


def target_rows(tracker: Any) -> int:
    return int(tracker.one("SELECT count(*) FROM target"))


def before_first(work: Callable[[], None], function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, with ``work`` done before its first call."""
    done: list[bool] = []

    def wrapped(*args: Any, **options: Any) -> Any:
        if not done:
            done.append(True)
            work()
        return function(*args, **options)

    return wrapped


@pytest.fixture
def epoch(tracker: Any) -> int:
    """A driver that has a target, its epoch, and no heartbeat any more."""
    tracker.conn.execute("CREATE TABLE target (id int)")
    epoch = int(tracker.start("r1"))
    fall_silent(tracker)
    return epoch


def test_a_driver_that_wakes_up_before_the_rollback_has_lost_its_right(
    tracker: Any, epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    winner = prepare(tracker, epoch)
    outcome = []

    def wake() -> None:
        try:
            decide(tracker, epoch, winner)
        except FencedError as error:
            outcome.append(error)

    monkeypatch.setattr(left_behind, "resolve", before_first(wake, left_behind.resolve))
    [done] = resolve_left_behind(tracker.conn, "etl", "orders")
    assert (done.state, len(outcome), target_rows(tracker)) == ("rolled back", 1, 0)
    assert tracker.one("SELECT count(*) FROM etl.batch_decision") == 0
    # The cluster may start that driver again, and another run may take over.
    assert runs.claim_epoch(tracker.conn, "etl", "orders", "r1") == epoch + 2
    assert tracker.start("r2") == epoch + 3


def test_a_driver_whose_parts_a_newer_run_has_rolled_back_is_told_of_the_newer_run(tracker: Any, epoch: int) -> None:
    gone = Winner(part_names("orders", tracker.schema, "q", 0, epoch, 1).of(0, 0), ROWS)
    with pytest.raises(BooksDoNotBalanceError):
        decide(tracker, epoch, gone)
    tracker.start("r2")
    with pytest.raises(FencedError):
        decide(tracker, epoch, gone)


@pytest.mark.parametrize("moment", ["prepared_of", "with_fence_row"])
def test_a_driver_that_decides_before_it_has_lost_its_right_has_its_batch(
    tracker: Any, epoch: int, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    winner = prepare(tracker, epoch)
    wake = before_first(lambda: decide(tracker, epoch, winner), getattr(left_behind, moment, lambda *_: None))
    monkeypatch.setattr(left_behind, moment, wake, raising=False)
    resolve_left_behind(tracker.conn, "etl", "orders")
    resolve_left_behind(tracker.conn, "etl", "orders")
    assert target_rows(tracker) == ROWS
    assert tracker.one("SELECT written_rows FROM etl.batch_tracker") == ROWS
    assert prepared_names(tracker.conn, "etl", "orders") == set()


def test_a_driver_that_speaks_again_while_the_lock_is_awaited_keeps_its_parts(
    tracker: Any, epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    winner = prepare(tracker, epoch)
    speak = before_first(lambda: runs.heartbeat(tracker.conn, "etl", "r1"), left_behind.with_fence_row)
    monkeypatch.setattr(left_behind, "with_fence_row", speak)
    assert resolve_left_behind(tracker.conn, "etl", "orders") == []
    assert prepared_names(tracker.conn, "etl", "orders") == {winner.name}
    assert tracker.one("SELECT epoch FROM etl.pipeline") == epoch


def test_finishing_what_was_decided_takes_no_right_away(tracker: Any, epoch: int) -> None:
    decide(tracker, epoch, prepare(tracker, epoch))
    assert [done.state for done in resolve_left_behind(tracker.conn, "etl", "orders")] == ["committed"]
    runs.check_fence(tracker.conn, "etl", "orders", "r1", epoch, lock=False)


def test_only_who_may_delete_from_its_tables_may_finish(tracker: Any) -> None:
    conn = tracker.conn
    role = f"limited_{tracker.connection.database}"
    conn.execute(f"CREATE ROLE {role}")
    try:
        answers = []
        for grant in (
            "SELECT 1",
            f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA etl TO {role}",
            f"GRANT USAGE ON SCHEMA etl TO {role}",
            f"GRANT DELETE ON etl.batch_decision TO {role}",
            f"GRANT DELETE ON etl.batch_part TO {role}",
        ):
            conn.execute(grant)
            conn.execute(f"SET ROLE {role}")
            answers.append(decisions.may_finish(conn, "etl"))
            conn.execute("RESET ROLE")
        assert answers == [False, False, False, False, True]
        assert not decisions.may_finish(conn, "nowhere")
    finally:
        conn.execute(f"DROP OWNED BY {role}")
        conn.execute(f"DROP ROLE {role}")


def missing_part(tracker: Any, epoch: int, books: Books, *parts: Winner) -> tuple[dict[str, int], Any]:
    """Decide, lose the first part by hand, accept it; return the ledger's books and the gap."""
    decide(tracker, epoch, *parts, books=books, gaps=[], files=[])
    tracker.conn.execute(f"ROLLBACK PREPARED '{parts[0].name}'")
    with pytest.raises(DecidedPartMissingError):
        resolve_left_behind(tracker.conn, "etl", "orders")
    resolve_left_behind(tracker.conn, "etl", "orders", accept_missing=True)
    row = tracker.one("SELECT to_jsonb(b) FROM etl.batch_tracker b")
    assert row["record_count"] == row["written_rows"]
    gap = tracker.one("SELECT missing_rows, source->'parts', source->'rows' FROM etl.source_gap")
    assert gap[1] == [parts[0].name]
    return {name: row[name] for name in Books.empty().to_columns() if row[name]}, (gap[0], gap[2])


def test_a_missing_part_takes_its_own_rows_from_the_books(tracker: Any, epoch: int) -> None:
    lost = Books(source=20, passed=8, dead_lettered=5, late=3, filtered=4, sink=8, written=ROWS, write_dead_lettered=1)
    kept = Books(source=9, passed=8, filtered=1, sink=8, written=ROWS, write_dead_lettered=1)
    parts = [Winner(prepare(tracker, epoch, n).name, ROWS, books) for n, books in enumerate((lost, kept))]
    books, (missing, rows) = missing_part(tracker, epoch, lost + kept, *parts)
    assert books == {name: value for name, value in kept.to_columns().items() if value}
    assert missing == 20
    view = LedgerView(tracker.conn, "etl")
    with pytest.raises(GapError, match=r"20 rows missing .* rolled back by hand"):
        BatchGaps.of(pipeline="orders").look(view)
    assert "rolled back by hand" in BatchGaps.of(pipeline="orders", excuse=["rolled_back"]).look(view).message
    assert rows == {
        "source": 20, "passed": 8, "dead_lettered": 5, "late": 3, "filtered": 4,
        "sink": 8, "written": ROWS, "write_dead_lettered": 1,
    }  # fmt: skip


@pytest.mark.parametrize("told", ["rows only", "sink only", "as if stateless"])
def test_a_missing_part_of_an_aggregation_leaves_the_source_side_alone(tracker: Any, epoch: int, told: str) -> None:
    known = {
        "rows only": None,
        "sink only": Books(source=0, passed=0, sink=ROWS, written=ROWS),
        "as if stateless": Books(source=ROWS, passed=ROWS, sink=ROWS, written=ROWS),
    }[told]
    parts = [Winner(prepare(tracker, epoch, number).name, ROWS, known) for number in range(2)]
    total = Books(source=4, passed=3, dead_lettered=1, sink=2 * ROWS, written=2 * ROWS)
    books, (missing, rows) = missing_part(tracker, epoch, total, *parts)
    assert books == {
        "source_rows": 4, "passed_rows": 3, "dead_lettered_rows": 1, "sink_rows": ROWS, "written_rows": ROWS,
    }  # fmt: skip
    assert (missing, rows) == (ROWS, {"sink": ROWS, "written": ROWS})


def test_a_missing_part_that_held_the_dead_letters_of_an_aggregation(tracker: Any, epoch: int) -> None:
    letters = Books(source=2, passed=0, dead_lettered=2, sink=0, written=0)
    parts = [Winner(prepare(tracker, epoch).name, 0, letters), prepare(tracker, epoch, 1)]
    total = Books(source=12, passed=10, dead_lettered=2, sink=ROWS, written=ROWS)
    books, (missing, _) = missing_part(tracker, epoch, total, *parts)
    assert books == {"source_rows": 10, "passed_rows": 10, "sink_rows": ROWS, "written_rows": ROWS}
    assert missing == 2


def test_a_decision_of_an_older_version_is_read(tracker: Any, epoch: int) -> None:
    winner = prepare(tracker, epoch)
    decide(tracker, epoch, winner)
    tracker.conn.execute("""UPDATE etl.batch_decision SET winners = '[{"name": "a", "rows": 7}]'""")
    [batch] = decisions.decided(tracker.conn, "etl", "orders")
    assert isinstance(batch, Decided)
    assert batch.winners == (Winner("a", 7),)


@contextmanager
def commits_that_wait(tracker: Any) -> Iterator[None]:
    """Let every COMMIT wait for a standby that does not exist; what waits holds its prepared transaction."""
    over = threading.Event()

    def commit_until_it_waits() -> None:
        # The server takes the setting over in its own time.
        with closing(tracker.connect()) as probe:
            probe.execute("SET synchronous_commit = on")
            while not over.is_set():
                probe.execute("SELECT pg_current_xact_id()")

    probing = threading.Thread(target=commit_until_it_waits)
    with closing(tracker.connect()) as conn:
        conn.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        conn.execute("SELECT pg_reload_conf()")
        probing.start()
        try:
            wait_for_waiting(tracker, 1)
            yield
        finally:
            over.set()
            conn.execute("ALTER SYSTEM RESET synchronous_standby_names")
            conn.execute("SELECT pg_reload_conf()")
            probing.join(10)


def wait_for_waiting(tracker: Any, sessions: int) -> None:
    deadline = time.monotonic() + 20
    while tracker.one("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'") < sessions:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_prepared_transaction_that_another_session_is_resolving(
    tracker: Any, epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    winner = prepare(tracker, epoch)
    with closing(tracker.connect()) as other:
        other.execute("SET synchronous_commit = on")
        quicker = threading.Thread(target=lambda: other.execute(f"COMMIT PREPARED '{winner.name}'"))
        with commits_that_wait(tracker):
            quicker.start()
            wait_for_waiting(tracker, 2)
            with pytest.raises(TransientError, match="is busy") as caught:
                prepared_transactions.resolve(tracker.conn, winner.name, commit=True)
            assert caught.value.retryable
        monkeypatch.setattr(prepared_transactions, "_BUSY_TRIES", 200, raising=False)
        assert not prepared_transactions.resolve(tracker.conn, winner.name, commit=True)
        quicker.join(10)
    assert target_rows(tracker) == ROWS


@pytest.fixture
def writers(tracker: Any) -> Iterator[tuple[str, DatabaseConnection]]:
    """A role that writes, and the connection of a user who may act as it."""
    role, user = (f"{kind}_{tracker.connection.database}" for kind in ("writers", "rotated"))
    conn = tracker.conn
    conn.execute("CREATE TABLE target (id int)")
    conn.execute(f"CREATE ROLE {role}")
    conn.execute(f"CREATE ROLE {user} LOGIN PASSWORD 'x' IN ROLE {role}")
    conn.execute(f"GRANT USAGE ON SCHEMA etl TO {role}")
    conn.execute(f"GRANT ALL ON target, etl.batch_part TO {role}")
    yield role, tracker.connection.model_copy(update={"user": user, "password": SecretStr("x")})
    for name in prepared_names(conn, "etl", "orders"):
        conn.execute(f"ROLLBACK PREPARED '{name}'")
    conn.execute(f"DROP OWNED BY {role}")
    conn.execute(f"DROP ROLE {user}")
    conn.execute(f"DROP ROLE {role}")


def test_a_user_resolves_what_the_role_prepared(tracker: Any, writers: tuple[str, DatabaseConnection]) -> None:
    role, rotated = writers
    winner = prepare(tracker, tracker.start("r1"), role=role)
    with connect(rotated, application_name="driver") as conn:
        assert prepared_transactions.resolve(conn, winner.name, commit=True, role=role)
        assert not prepared_transactions.resolve(conn, winner.name, commit=True, role=role)
        assert conn.execute("SELECT current_user = session_user").fetchone() == (True,)
    assert target_rows(tracker) == ROWS


def test_a_role_behind_a_pooler_in_transaction_mode_is_named_and_left_with_nobody(
    tracker: Any, database: Any, writers: tuple[str, DatabaseConnection]
) -> None:
    role, rotated = writers
    winner = prepare(tracker, tracker.start("r1"), role=role)
    with transaction_pooler(database.server.port) as pooler:
        pooled = rotated.model_copy(update={"port": pooler.port})
        with connect(pooled, application_name="one") as one, connect(pooled, application_name="two"):
            with pytest.raises(TwoPhaseUnavailableError, match="pooler in transaction mode") as caught:
                prepared_transactions.resolve(one, winner.name, commit=True, role=role)
            assert not caught.value.retryable
            users = {one.execute("SELECT current_user").fetchone() for _ in range(6)}
            assert users == {(rotated.user,)}
    assert prepared_names(tracker.conn, "etl", "orders") == {winner.name}
    with suppress(psycopg.Error):
        tracker.conn.execute(f"ROLLBACK PREPARED '{winner.name}'")
