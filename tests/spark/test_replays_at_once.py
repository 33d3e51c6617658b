"""Two replays, a discard or a release at the same time: a letter has one owner, and comes home once."""

from __future__ import annotations

from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from pipeline_runs import BeforeBatch, Pipelines, file_pipeline
from pyspark.sql import SparkSession
from server_age import long_up

from spark_jobs.contracts.errors import ConfigError, DeadLettersTakenError
from spark_jobs.contracts.replay import LetterFilter
from spark_jobs.contracts.tracker.letters import discard_letters
from spark_jobs.runtime.stopping import Stop

CUT = {"_value": "replace(_value, 'x', '')"}


@pytest.fixture
def orders(pipelines: Pipelines, inbox: Path) -> Pipelines:
    """A pipeline with ten dead letters, whose ids are texts."""
    config = file_pipeline(
        "orders", inbox, pipelines.checkpoints, schema="id BIGINT", format="csv", load={"maxDeadLetterFraction": 1}
    )
    (inbox / "1.csv").write_text("".join(f"{number}x\n" for number in range(10)))
    pipelines.finish(config)
    assert waiting(pipelines) == 10
    return pipelines


def waiting(pipelines: Pipelines, status: str = "pending") -> int:
    return int(pipelines.one("SELECT count(*) FROM etl.dead_letter WHERE status = %s", status))


class Meanwhile(Stop):
    """Does something when the ``nth`` micro-batch of a run begins."""

    def __init__(self, nth: int, work: Any) -> None:
        super().__init__()
        self._left, self._work = nth, work

    def enter_batch(self) -> None:
        super().enter_batch()
        self._left -= 1
        if self._left == 0:
            self._work()


def test_a_second_replay_takes_only_what_the_first_has_not(orders: Pipelines) -> None:
    taken = []
    second = Meanwhile(1, lambda: taken.append(orders.replayed("orders", patch=CUT).taken))
    first = orders.replay("orders", patch=CUT, limit=6, stop=second)
    assert first.error is None
    assert taken == [4]
    assert orders.one("SELECT count(*) FROM result") == 10
    assert orders.one("SELECT count(DISTINCT id) FROM result") == 10
    assert waiting(orders, "replayed") == 10


def test_letters_that_are_taken_away_do_not_come_home_with_the_batch(orders: Pipelines) -> None:
    give_back = "UPDATE etl.dead_letter_bundle SET status = 'pending', replay_id = NULL WHERE status = 'replaying'"
    ended = orders.replay("orders", patch=CUT, stop=BeforeBatch(1, orders, give_back))
    assert isinstance(ended.error, DeadLettersTakenError)
    assert "0 of 10" in str(ended.error)
    assert orders.one("SELECT count(*) FROM result") == 0
    assert waiting(orders) == 10
    assert orders.replayed("orders", patch=CUT).replayed == 10
    assert orders.one("SELECT count(*) FROM result") == 10


def test_letters_of_a_replay_that_fails_wait_again(orders: Pipelines) -> None:
    ended = orders.replay("orders", patch=CUT, batch_size=3, stop=Meanwhile(2, _fail))
    assert ended.error is not None
    assert (waiting(orders, "replayed"), waiting(orders)) == (3, 7)
    assert orders.one("SELECT count(*) FROM result") == 3
    states = orders.rows("SELECT state, letters FROM etl.dead_letter_replay")
    assert states == [("released", 10)]


def _fail() -> None:
    raise RuntimeError("between two micro-batches")


def test_letters_of_a_silent_driver_are_freed_by_the_next_replay(orders: Pipelines) -> None:
    ended = orders.replay("orders", patch=CUT, stop=Meanwhile(1, _fail))
    assert ended.error is not None
    # As a SIGKILL leaves it: the run has not ended, and nobody gave its letters back.
    orders.execute(
        "UPDATE etl.dead_letter_bundle d SET status = 'replaying', status_before = 'pending', replay_id = r.replay_id "
        "FROM etl.dead_letter_replay r",
        "UPDATE etl.dead_letter_replay SET state = 'open', ended_at = NULL",
        "UPDATE etl.pipeline_run SET ended_at = NULL, state = 'running', heartbeat_at = clock_timestamp()",
    )
    assert orders.replayed("orders", patch=CUT).taken == 0
    with orders.database.connect(autocommit=True) as conn:
        long_up(conn)
    orders.execute("UPDATE etl.pipeline_run SET heartbeat_at = clock_timestamp() - interval '3 minutes'")
    assert orders.replayed("orders", patch=CUT).replayed == 10
    assert orders.one("SELECT count(DISTINCT id) FROM result") == 10


def test_a_driver_that_is_long_in_coming_up_is_not_silent(orders: Pipelines) -> None:
    """Its session waits until it was heard of twice; whoever never hears of it gives up."""
    beats = set()

    def session() -> SparkSession:
        give_up = monotonic() + 60
        while len(beats) < 2 and monotonic() < give_up:
            beats.add(orders.one("SELECT heartbeat_at FROM etl.pipeline_run WHERE strpos(pipeline_id, '/replay/') > 0"))
            sleep(0.1)
        assert orders.spark is not None
        return orders.spark

    assert orders.replay("orders", patch=CUT, session=session).error is None
    assert len(beats) == 2
    assert waiting(orders, "replayed") == 10


def test_who_discards_is_named_and_what_is_discarded_is_never_replayed(orders: Pipelines) -> None:
    wanted = LetterFilter.of(pipeline_id="orders", statuses=("pending", "parked"))
    with orders.database.connect(autocommit=True) as conn:
        for by, reason in (("", "junk"), ("ada", " ")):
            with pytest.raises(ConfigError, match="by somebody, for a reason"):
                discard_letters(conn, "etl", wanted, by=by, reason=reason)
        assert discard_letters(conn, "etl", wanted, by="ada", reason="test data") == 10
        assert discard_letters(conn, "etl", wanted, by="bob", reason="again") == 0
    assert orders.replayed("orders", patch=CUT).taken == 0
    assert orders.rows("SELECT DISTINCT closed_by, reason FROM etl.dead_letter") == [("ada", "test data")]


def test_a_letter_cannot_be_discarded_while_it_is_replayed(orders: Pipelines) -> None:
    discarded: list[int] = []

    def discard() -> None:
        wanted = LetterFilter.of(pipeline_id="orders", statuses=("pending", "parked"))
        with orders.database.connect(autocommit=True) as conn:
            discarded.append(discard_letters(conn, "etl", wanted, by="ada", reason="test data"))

    assert orders.replay("orders", patch=CUT, stop=Meanwhile(1, discard)).error is None
    assert discarded == [0]
    assert waiting(orders, "replayed") == 10
