"""Letters that failed together share a row; one that is treated unlike the others is by itself, and nothing is lost."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spark_jobs.contracts.replay import LetterFilter, ReplayMode, ReplayRequest
from spark_jobs.contracts.tracker.connect import Connection, raw
from spark_jobs.contracts.tracker.letters import count_letters, discard_letters, list_letters, show_letter
from spark_jobs.contracts.tracker.migrate import migrate
from spark_jobs.contracts.tracker.replays import open_replay, release
from spark_jobs.contracts.tracker.taking import Taken
from spark_jobs.sinks.dead_letter_rows import insert_letters_from_json

PLACE = '{"topic": "orders"}'
WANTED = LetterFilter.of(pipeline_id="orders")
END = datetime.max.replace(tzinfo=UTC)
EVERYWHERE = LetterFilter.of(pipeline_id="orders", statuses=())


@pytest.fixture
def conn(database: Any) -> Any:
    with database.connect(autocommit=True) as conn:
        migrate(conn, "etl")
        conn.execute("INSERT INTO etl.pipeline (pipeline_id, epoch) VALUES ('orders', 1)")
        yield conn


def store(conn: Connection, kinds: Sequence[str], batch_id: int = 0, raw_value: str | None = "e30=") -> None:
    """Store letters of these error classes as a micro-batch does, in one statement."""
    envelopes = [
        json.dumps({"stage": "parse", "error_class": kind, "message": f"m{n}", "raw_value": raw_value, "source": PLACE})
        for n, kind in enumerate(kinds)
    ]
    raw(conn, insert_letters_from_json("etl"), "orders", "q", str(batch_id), json.dumps(envelopes))


def take(conn: Connection, replay_id: UUID | None = None, **values: Any) -> Taken:
    letters = values.pop("letters", WANTED)
    request = ReplayRequest.of(replay_id=replay_id or uuid4(), letters=letters, **values)
    own, run_id = request.own_pipeline_id, str(request.replay_id)
    conn.execute(
        "INSERT INTO etl.pipeline (pipeline_id, epoch, newest_run_id) VALUES (%s, 1, %s) ON CONFLICT DO NOTHING",
        (own, run_id),
    )
    conn.execute(
        "INSERT INTO etl.pipeline_run (run_id, pipeline_id, state, request, started_by, heartbeat_at) "
        "VALUES (%s, %s, 'running', '{}', 'me', clock_timestamp()) ON CONFLICT DO NOTHING",
        (run_id, own),
    )
    return open_replay(conn, "etl", request, run_id, 1)


def bundles(conn: Connection) -> list[tuple[str, str, int]]:
    return conn.execute(
        "SELECT error_class, status, letters FROM etl.dead_letter_bundle ORDER BY 1, 2, 3 DESC"
    ).fetchall()


def singles(conn: Connection) -> Counter[tuple[str, str]]:
    return Counter(conn.execute("SELECT error_class, status FROM etl.dead_letter_single").fetchall())


def check_books(conn: Connection) -> Counter[str]:
    """Compare bundles with what they hold, and the tally with what there is; return the letters by status."""
    held = Counter(row[0] for row in conn.execute("SELECT bundle_id FROM etl.dead_letter_bundled"))
    assert dict(conn.execute("SELECT bundle_id, letters FROM etl.dead_letter_bundle").fetchall()) == held
    there = Counter(conn.execute("SELECT status, stage, error_class FROM etl.dead_letter").fetchall())
    assert {(c.status, c.stage, c.error_class): c.letters for c in count_letters(conn, "etl")} == there
    ids = [row[0] for row in conn.execute("SELECT dead_letter_id FROM etl.dead_letter")]
    assert len(ids) == len(set(ids))
    return Counter(row[0] for row in conn.execute("SELECT status FROM etl.dead_letter"))


def test_letters_that_failed_together_in_the_same_way_are_one_bundle(conn: Connection) -> None:
    store(conn, ["A"] * 3 + ["B"])
    store(conn, ["A"] * 2, batch_id=1)
    store(conn, ["A"], batch_id=1, raw_value=None)
    assert bundles(conn) == [("A", "pending", 3), ("A", "pending", 2), ("A", "pending", 1), ("B", "pending", 1)]
    assert check_books(conn) == {"pending": 7}
    assert not singles(conn)
    letter = list_letters(conn, "etl", WANTED, limit=1)[0]
    assert show_letter(conn, "etl", letter.dead_letter_id).batch_id == 1


def test_a_bundle_has_at_most_a_thousand(conn: Connection) -> None:
    store(conn, ["A"] * 2500)
    assert bundles(conn) == [("A", "pending", 1000), ("A", "pending", 1000), ("A", "pending", 500)]


def test_a_replay_takes_bundles_whole_and_goes_through_them_in_the_order_of_time(conn: Connection) -> None:
    for batch_id in range(5):
        store(conn, ["A"] * 40, batch_id)
    taken = take(conn, batch_size=100)
    assert (taken.letters, taken.ends) == (200, (80, 160, 200))
    assert not singles(conn)
    places = conn.execute(
        "SELECT b.batch_id, r.first_position, r.last_position FROM etl.dead_letter_replay_bundle r "
        "JOIN etl.dead_letter_bundle b USING (bundle_id) ORDER BY 3"
    ).fetchall()
    assert places == [(n, n * 40, n * 40 + 40) for n in range(5)]


def test_a_bundle_that_is_larger_than_a_micro_batch_is_taken_apart(conn: Connection) -> None:
    store(conn, ["A"] * 25)
    store(conn, ["B"] * 10)
    taken = take(conn, batch_size=10)
    assert (taken.letters, taken.ends) == (35, (10, 20, 25, 35))
    assert singles(conn) == {("A", "replaying"): 25}
    assert bundles(conn) == [("B", "replaying", 10)]
    assert check_books(conn) == {"replaying": 35}


def test_what_is_taken_whole_is_given_back_whole(conn: Connection) -> None:
    store(conn, ["A"] * 20)
    replay_id = uuid4()
    take(conn, replay_id)
    assert take(conn).letters == 0
    assert release(conn, "etl", [replay_id]) == 20
    assert bundles(conn) == [("A", "pending", 20)]
    # A further attempt has positions of its own.
    assert take(conn, replay_id).ends == (40,)


@pytest.mark.parametrize("mode", list(ReplayMode))
def test_a_limit_takes_the_oldest_and_leaves_later_bundles_whole(conn: Connection, mode: ReplayMode) -> None:
    for batch_id in range(4):
        store(conn, ["A"] * 10, batch_id)
    assert take(conn, limit=15, mode=mode).letters == 15
    assert singles(conn) == {("A", "replaying"): 15, ("A", "pending"): 5}
    assert bundles(conn) == [("A", "pending", 10)] * 2
    oldest = conn.execute(
        "SELECT DISTINCT batch_id FROM etl.dead_letter WHERE status = 'replaying' ORDER BY 1"
    ).fetchall()
    assert oldest == [(0,), (1,)]


def test_a_letter_that_is_meant_by_its_id_leaves_its_bundle_and_others_stay(conn: Connection) -> None:
    store(conn, ["A"] * 10)
    store(conn, ["B"] * 10)
    one = next(letter for letter in list_letters(conn, "etl", WANTED) if letter.error_class == "A")
    chosen = LetterFilter.of(pipeline_id="orders", ids=(one.dead_letter_id,))
    assert discard_letters(conn, "etl", chosen, by="ada", reason="a test") == 1
    assert singles(conn) == {("A", "pending"): 9, ("A", "discarded"): 1}
    assert bundles(conn) == [("B", "pending", 10)]
    other = next(letter for letter in list_letters(conn, "etl", WANTED) if letter.error_class == "B")
    again = LetterFilter.of(pipeline_id="orders", ids=(other.dead_letter_id,))
    assert take(conn, letters=again).letters == 1
    assert check_books(conn) == {"pending": 18, "discarded": 1, "replaying": 1}


def test_what_failed_as_often_as_it_may_is_parked_as_a_bundle(conn: Connection) -> None:
    store(conn, ["A"] * 10)
    taken = take(conn, max_attempts=1)
    assert (taken.letters, [one.parked for one in taken.parked]) == (0, [10])
    assert bundles(conn) == [("A", "parked", 10)]


def test_a_dry_run_changes_no_bundle(conn: Connection) -> None:
    store(conn, ["A"] * 10)
    assert take(conn, dry_run=True).letters == 10
    assert bundles(conn) == [("A", "pending", 10)]
    assert conn.execute("SELECT count(*) FROM etl.dead_letter_replay_item").fetchone() == (10,)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("store"), st.lists(st.sampled_from("AB"), min_size=1, max_size=12)),
        st.tuples(st.just("take"), st.integers(1, 30)),
        st.tuples(st.just("take_all"), st.integers(3, 30)),
        st.tuples(st.just("redrive"), st.integers(1, 30)),
        st.tuples(st.just("release"), st.integers(0, 5)),
        st.tuples(st.just("discard_one"), st.integers(0, 100)),
        st.tuples(st.just("discard_class"), st.sampled_from("AB")),
        st.tuples(st.just("discard_before"), st.integers(0, 50)),
    ),
    max_size=15,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(STEPS)
def test_every_letter_has_one_status_and_one_owner_whatever_is_done(conn: Connection, steps: list[Any]) -> None:
    """A model of letters by themselves says what bundles must look like from outside."""
    for table in ("dead_letter_single", "dead_letter_bundle", "dead_letter_bundled", "dead_letter_replay"):
        conn.execute(f"DELETE FROM etl.{table}".encode())
    model: dict[UUID, tuple[str, str, datetime]] = {}
    replays: list[UUID] = []

    def all_letters() -> dict[UUID, tuple[str, str, datetime]]:
        found = list_letters(conn, "etl", EVERYWHERE, limit=10_000)
        return {one.dead_letter_id: (one.status, one.error_class, one.first_failed_at) for one in found}

    def waiting(kind: str = "AB", until: datetime = END) -> list[UUID]:
        return [key for key, (status, of, at) in model.items() if status == "pending" and of in kind and at < until]

    def become(keys: Sequence[UUID], status: str) -> None:
        model.update({key: (status, *model[key][1:]) for key in keys})

    for batch_id, (step, value) in enumerate(steps):
        if step == "store":
            store(conn, value, batch_id)
            model.update({key: letter for key, letter in all_letters().items() if key not in model})
        elif step in ("take", "redrive", "take_all"):
            replays.append(uuid4())
            more = {"batch_size": value} if step == "take_all" else {"limit": value}
            mode = ReplayMode.REDRIVE if step == "redrive" else ReplayMode.REPROCESS
            taken = take(conn, replays[-1], mode=mode, **more)
            chosen = [key for key in waiting() if all_letters()[key][0] == "replaying"]
            assert len(chosen) == taken.letters == min(len(waiting()), more.get("limit", len(waiting())))
            assert (taken.ends[-1] if chosen else 0) == len(chosen)
            # The oldest; whoever failed in the same moment is as old.
            left = [model[key][2] for key in waiting() if key not in chosen]
            assert not chosen or not left or max(model[key][2] for key in chosen) <= min(left)
            become(chosen, "replaying")
        elif step == "release" and replays:
            replay_id = replays[value % len(replays)]
            held = [row[0] for row in conn.execute(
                "SELECT dead_letter_id FROM etl.dead_letter WHERE status = 'replaying' AND replay_id = %s", (replay_id,)
            )]  # fmt: skip
            assert release(conn, "etl", [replay_id]) == len(held)
            become(held, "pending")
        elif step == "discard_one" and model:
            key = sorted(model)[value % len(model)]
            chosen = [key] if key in waiting() else []
            wanted = LetterFilter.of(pipeline_id="orders", ids=(key,))
            assert discard_letters(conn, "etl", wanted, by="ada", reason="a test") == len(chosen)
            become(chosen, "discarded")
        elif step in ("discard_class", "discard_before") and model:
            more = {"error_classes": (value,)}
            chosen = waiting(str(value))
            if step == "discard_before":
                until = sorted(at for _, _, at in model.values())[value % len(model)] + timedelta(microseconds=1)
                more, chosen = {"until": until}, waiting(until=until)
            wanted = LetterFilter.of(pipeline_id="orders", **more)
            assert discard_letters(conn, "etl", wanted, by="ada", reason="a test") == len(chosen)
            become(chosen, "discarded")
        assert all_letters() == model
        assert check_books(conn) == Counter(status for status, _, _ in model.values())


def test_two_at_once_never_have_the_same_letter(conn: Connection, database: Any) -> None:
    for batch_id in range(40):
        store(conn, ["A"] * 20, batch_id)
    together = threading.Barrier(4, timeout=30)
    numbers: list[int] = []

    def takes(**values: Any) -> None:
        with closing(database.connect(autocommit=True)) as mine:
            together.wait()
            numbers.append(take(mine, **values).letters)

    def discards() -> None:
        ids = tuple(one.dead_letter_id for one in list_letters(conn, "etl", WANTED, limit=100))
        wanted = LetterFilter.of(pipeline_id="orders", ids=ids)
        with closing(database.connect(autocommit=True)) as mine:
            together.wait()
            numbers.append(discard_letters(mine, "etl", wanted, by="ada", reason="a test"))

    work = [lambda: takes(limit=150), takes, lambda: takes(mode=ReplayMode.REDRIVE, limit=90), discards]
    threads = [threading.Thread(target=one) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    books = check_books(conn)
    assert len(numbers) == len(work)
    assert books["replaying"] + books["discarded"] == sum(numbers)
    owners = conn.execute(
        "SELECT count(*) FROM (SELECT dead_letter_id FROM etl.dead_letter_replay_item UNION ALL SELECT dead_letter_id "
        "FROM etl.dead_letter_replay_bundle JOIN etl.dead_letter_bundled USING (bundle_id)) AS owned"
    ).fetchone()
    assert owners == (books["replaying"],)
