"""A reprocess beside another one, and beside a replay of the same letters: each waits for what the other has locked."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pipeline_runs import Pipelines, file_pipeline, write_lines

from spark_jobs.contracts.errors import ReprocessRefusedError
from spark_jobs.runtime.run import Ended


@pytest.fixture
def config(pipelines: Pipelines, inbox: Path) -> dict[str, Any]:
    """A pipeline that has committed one micro-batch, with a letter."""
    write_lines(inbox / "0.json", *({"id": n} for n in range(5)), "no json")
    made = file_pipeline("orders", inbox, pipelines.checkpoints, schema="id BIGINT", load={"batchColumn": "etl_batch"})
    pipelines.finish(made)
    return made


class Together:
    """Reprocesses batch 0, each in a thread of its own."""

    def __init__(self, pipelines: Pipelines, count: int) -> None:
        self.ended: list[Ended] = []
        self._pipelines = pipelines
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        self.ended.append(self._pipelines.reprocess("orders", batches="0"))

    def wait_blocked(self) -> None:
        """Wait until all of them wait for a lock."""
        waiting = "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted"
        deadline = time.monotonic() + 120
        while self._pipelines.one(waiting) < len(self._threads):
            assert time.monotonic() < deadline, self.ended
            time.sleep(0.05)

    def join(self) -> list[Ended]:
        for thread in self._threads:
            thread.join(180)
        return self.ended


@pytest.mark.usefixtures("config")
def test_two_of_the_same_batch_come_one_after_the_other(pipelines: Pipelines) -> None:
    with pipelines.database.connect() as conn:
        conn.execute("SELECT 1 FROM etl.batch_tracker WHERE batch_id = 0 FOR UPDATE")
        both = Together(pipelines, 2)
        both.wait_blocked()
    assert [ended.error for ended in both.join()] == [None, None]
    assert pipelines.rows("SELECT id, count(*) FROM result GROUP BY 1 ORDER BY 1") == [(n, 1) for n in range(5)]
    assert pipelines.rows("SELECT rows_before, rows_after FROM etl.batch_reprocessed") == [(5, 5), (5, 5)]
    letters = "SELECT status, count(*) FROM etl.dead_letter GROUP BY 1 ORDER BY 1"
    assert pipelines.rows(letters) == [("discarded", 2), ("pending", 1)]


@pytest.mark.usefixtures("config")
def test_a_replay_that_has_just_taken_the_letters_is_respected(pipelines: Pipelines) -> None:
    with pipelines.database.connect() as conn:
        conn.execute(
            "UPDATE etl.dead_letter_bundle SET status = 'replaying', status_before = 'pending', replay_id = %s",
            (uuid4(),),
        )
        one = Together(pipelines, 1)
        one.wait_blocked()
    (ended,) = one.join()
    # It sees what became of the letter that it waited for.
    assert isinstance(ended.error, ReprocessRefusedError)
    assert pipelines.one("SELECT count(*) FROM result") == 5
    again = pipelines.reprocess("orders", batches="0")
    assert isinstance(again.error, ReprocessRefusedError)
    assert pipelines.rows("SELECT status FROM etl.dead_letter") == [("replaying",)]


@pytest.mark.usefixtures("config")
def test_letters_that_were_perhaps_sent_to_their_topic_are_refused(pipelines: Pipelines) -> None:
    replay_id = uuid4()
    pipelines.execute(
        "INSERT INTO etl.dead_letter_replay (replay_id, pipeline_id, mode, dry_run, request, requested_by, letters) "
        f"VALUES ('{replay_id}', 'orders', 'redrive', false, '{{}}', 'me', 1)",
        "INSERT INTO etl.dead_letter_replay_item (replay_id, position, dead_letter_id, stage, error_class, "
        f"has_raw_value) SELECT '{replay_id}', 1, dead_letter_id, stage, error_class, true FROM etl.dead_letter",
        "INSERT INTO etl.dead_letter_redrive (replay_id, batch_id, first_position, last_position, start_offsets) "
        f"VALUES ('{replay_id}', 0, 0, 1, '{{}}')",
    )
    ended = pipelines.reprocess("orders", batches="0")
    assert isinstance(ended.error, ReprocessRefusedError)
    assert "were sent to their topic" in str(ended.error)
    assert pipelines.rows("SELECT status FROM etl.dead_letter") == [("pending",)]
