"""Dead letters in the ledger: what is listed, counted and added up, whatever happens to them."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spark_jobs.contracts.replay import LetterFilter
from spark_jobs.contracts.tracker.connect import Connection
from spark_jobs.contracts.tracker.letters import compact_tally, count_letters, list_letters
from spark_jobs.contracts.tracker.migrate import migrate

START = datetime(2026, 1, 1, tzinfo=UTC)
STATUSES = ("pending", "replaying", "replayed", "parked", "discarded")


@pytest.fixture
def conn(database: Any) -> Any:
    with database.connect(autocommit=True) as conn:
        migrate(conn, "etl")
        yield conn


def add(conn: Connection, pipeline: str, status: str, kind: str, minute: int = 0, stage: str = "parse") -> str:
    """Add a letter, as it would stand there in that status."""
    letter = str(uuid4())
    conn.execute(
        "INSERT INTO etl.dead_letter_single (dead_letter_id, pipeline_id, query_id, batch_id, stage, error_class, "
        "message, source, status, first_failed_at, replay_id, status_before, home_query_id, home_batch_id, "
        "closed_by, reason) VALUES (%s, %s, 'q', 0, %s, %s, 'm', '{}', %s, %s, %s, 'pending', 'q', 1, 'ada', 'why')",
        (letter, pipeline, stage, kind, status, START + timedelta(minutes=minute), uuid4()),
    )
    return letter


def test_the_newest_come_first_and_no_more_than_asked_for(conn: Connection) -> None:
    ids = [add(conn, "orders", STATUSES[minute % 5], f"CLASS_{minute % 2}", minute) for minute in range(20)]
    add(conn, "others", "pending", "CLASS_0", 99)

    def listed(limit: int = 50, everywhere: bool = False, **values: Any) -> list[str]:
        wanted = LetterFilter.of(pipeline_id="orders", **values)
        return [
            str(one.dead_letter_id) for one in list_letters(conn, "etl", wanted, limit=limit, everywhere=everywhere)
        ]

    assert listed(statuses=()) == ids[::-1]
    assert listed(3, statuses=()) == ids[:-4:-1]
    assert listed(statuses=("parked", "replayed")) == [ids[n] for n in (18, 17, 13, 12, 8, 7, 3, 2)]
    assert listed(statuses=(), error_classes=("CLASS_1",)) == ids[::-2]
    since, until = START + timedelta(minutes=5), START + timedelta(minutes=8)
    assert listed(statuses=(), since=since, until=until) == [ids[7], ids[6], ids[5]]
    assert len(listed(everywhere=True)) == 5


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "move", "delete", "compact"]),
        st.sampled_from(STATUSES),
        st.sampled_from(["A", "B"]),
        st.sampled_from(["orders", "others"]),
    ),
    max_size=25,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(STEPS)
def test_counts_are_what_there_is(conn: Connection, steps: list[tuple[str, str, str, str]]) -> None:
    conn.execute("TRUNCATE etl.dead_letter_single")
    for step, status, kind, pipeline in steps:
        if step == "add":
            add(conn, pipeline, status, kind)
        elif step == "move":
            conn.execute("UPDATE etl.dead_letter_single SET status = %s WHERE error_class = %s", (status, kind))
        elif step == "delete":
            conn.execute("DELETE FROM etl.dead_letter_single WHERE status = %s", (status,))
        else:
            compact_tally(conn, "etl", pipeline, most=0)
    there = Counter(conn.execute("SELECT pipeline_id, status, stage, error_class FROM etl.dead_letter").fetchall())
    counted = count_letters(conn, "etl")
    assert {(c.pipeline_id, c.status, c.stage, c.error_class): c.letters for c in counted} == there


def test_what_another_transaction_adds_meanwhile_is_counted_as_well(database: Any, conn: Connection) -> None:
    for _ in range(5):
        add(conn, "orders", "pending", "A")
    with database.connect() as other:
        add(other, "orders", "pending", "A")
        assert compact_tally(conn, "etl", "orders", most=3)
        assert [count.letters for count in count_letters(conn, "etl")] == [5]
        other.commit()
    assert [count.letters for count in count_letters(conn, "etl")] == [6]
    assert conn.execute("SELECT count(*) FROM etl.dead_letter_tally").fetchone() == (2,)
    assert not compact_tally(conn, "etl", "orders", most=3)
