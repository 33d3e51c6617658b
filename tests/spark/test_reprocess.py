"""Committed micro-batches again: no row is lost and none comes twice; what cannot be done so is refused, and why."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pipeline_runs import BeforeBatch, Pipelines, aggregation, file_pipeline, filter_by, select, write_lines
from single_letters import APART

from spark_jobs.contracts.errors import ConfigError, EtlError, ReprocessRefusedError
from spark_jobs.contracts.reprocess_batches import ReprocessRequest

_TABLE = "SELECT id, quantity FROM result ORDER BY id, quantity"


def _files(inbox: Path, *batches: list[Any]) -> None:
    """Write a file for each micro-batch, in the order of their times."""
    began = datetime(2026, 1, 1, tzinfo=UTC)
    for number, rows in enumerate(batches):
        path = inbox / f"{number}.json"
        write_lines(path, *rows)
        at = (began + timedelta(minutes=number)).timestamp()
        os.utime(path, (at, at))


def _appending(pipelines: Pipelines, inbox: Path, *transforms: dict[str, Any], **load: Any) -> dict[str, Any]:
    return file_pipeline(
        "orders",
        inbox,
        pipelines.checkpoints,
        schema="id BIGINT, quantity INT",
        transforms=list(transforms),
        load={"batchColumn": "etl_batch", **load},
        options={"maxFilesPerTrigger": "1"},
    )


def _upserting(pipelines: Pipelines, inbox: Path, **load: Any) -> dict[str, Any]:
    return _appending(pipelines, inbox, batchColumn=None, writeMode="upsert", keys=["id"], **load)


def _rows(first: int, count: int, quantity: int = 1) -> list[dict[str, int]]:
    return [{"id": number, "quantity": quantity} for number in range(first, first + count)]


def _refused(pipelines: Pipelines, *said: str, **choice: Any) -> None:
    """Insist that it is refused with these words, and that nothing has changed."""
    everything = "SELECT count(*), sum(hashtext(t::text)) FROM result t"
    letters = "SELECT status, count(*) FROM etl.dead_letter GROUP BY 1 ORDER BY 1"
    before = pipelines.rows(everything), pipelines.rows(letters)
    ended = pipelines.reprocess("orders", **choice)
    assert isinstance(ended.error, ReprocessRefusedError), ended.error
    for words in said:
        assert words in str(ended.error)
    assert (pipelines.rows(everything), pipelines.rows(letters)) == before


@pytest.mark.parametrize("strategy", ["single", "staged"])
def test_rows_of_an_append_are_replaced(pipelines: Pipelines, inbox: Path, strategy: str) -> None:
    _files(inbox, _rows(0, 10), _rows(10, 20), _rows(30, 30))
    pipelines.finish(_appending(pipelines, inbox, select(id="id", quantity="quantity"), writeStrategy=strategy))
    corrected = select(id="id", quantity="quantity * 100")
    pipelines.finish(_appending(pipelines, inbox, corrected, filter_by("id <> 15"), writeStrategy=strategy))

    summary = pipelines.reprocessed("orders", batches="1-2")

    assert (summary.batches, summary.rows_before, summary.rows_after) == (2, 50, 49)
    assert [(one.batch_id, one.rows_before, one.rows_after) for one in summary.shown] == [(1, 20, 19), (2, 30, 30)]
    assert pipelines.rows(_TABLE) == [(n, 1 if n < 10 else 100) for n in range(60) if n != 15]
    own = (
        "SELECT batch_id, source_rows, written_rows, filtered_rows, strategy FROM etl.batch_tracker "
        "WHERE pipeline_id LIKE %s ORDER BY 1"
    )
    assert pipelines.rows(own, "orders/reprocess/%") == [(1, 20, 19, 1, strategy), (2, 30, 30, 0, strategy)]
    # The books of the pipeline itself are as they were.
    assert pipelines.one("SELECT sum(written_rows) FROM etl.batch_tracker WHERE pipeline_id = 'orders'") == 60
    # And once more: what stands there now is what the last time has written.
    assert pipelines.reprocessed("orders", batches="1").rows_before == 19
    assert pipelines.one("SELECT count(*) FROM result") == 59
    # The pipeline goes on behind it.
    write_lines(inbox / "9.json", *_rows(60, 5))
    pipelines.finish(_appending(pipelines, inbox, writeStrategy=strategy))
    assert pipelines.one("SELECT count(*) FROM result") == 64


def test_a_dry_run_says_what_would_be_and_writes_nothing(pipelines: Pipelines, inbox: Path) -> None:
    _files(inbox, _rows(0, 10), [*_rows(10, 5), "no json"])
    pipelines.finish(_appending(pipelines, inbox))
    pipelines.finish(_appending(pipelines, inbox, filter_by("id <> 12")))
    before = pipelines.rows("SELECT * FROM result ORDER BY id")
    batches = pipelines.one("SELECT count(*) FROM etl.batch_tracker")

    summary = pipelines.reprocessed("orders", batches="0-1", dry_run=True)

    assert [tuple(one.model_dump().values()) for one in summary.shown] == [(0, 10, 10, 0, 0), (1, 5, 4, 1, 1)]
    assert summary.dry_run
    assert pipelines.rows("SELECT * FROM result ORDER BY id") == before
    assert pipelines.one("SELECT count(*) FROM etl.batch_tracker") == batches
    assert pipelines.rows("SELECT status FROM etl.dead_letter") == [("pending",)]


@pytest.mark.parametrize("strategy", ["single", "staged"])
def test_letters_of_a_batch_are_made_anew(pipelines: Pipelines, inbox: Path, strategy: str) -> None:
    pipelines.execute("CREATE TABLE result (id bigint, quantity int CHECK (quantity < 9), etl_batch text)")
    _files(inbox, [*_rows(0, 3), {"id": 3, "quantity": 9}, {"id": 4, "quantity": 10}, "no json"], _rows(5, 2))
    pipelines.finish(_appending(pipelines, inbox, writeStrategy=strategy))
    assert pipelines.one("SELECT count(*) FROM etl.dead_letter WHERE status = 'pending'") == 3
    pipelines.execute("ALTER TABLE result DROP CONSTRAINT result_quantity_check, ADD CHECK (quantity < 10)")

    summary = pipelines.reprocessed("orders", batches="0")

    assert (summary.rows_before, summary.rows_after) == (3, 4)
    assert (summary.letters_before, summary.letters_after) == (3, 2)
    assert pipelines.rows(_TABLE) == [(0, 1), (1, 1), (2, 1), (3, 9), (5, 1), (6, 1)]
    letters = (
        "SELECT status, stage, count(*), min(pipeline_id), min(batch_id) FROM etl.dead_letter "
        "GROUP BY 1, 2 ORDER BY 1, 2"
    )
    assert pipelines.rows(letters) == [
        ("discarded", "parse", 1, "orders", 0),
        ("discarded", "write", 2, "orders", 0),
        ("pending", "parse", 1, "orders", 0),
        ("pending", "write", 1, "orders", 0),
    ]
    # The letters of the second time go the same way, and those that wait come home once.
    pipelines.execute("ALTER TABLE result DROP CONSTRAINT result_quantity_check")
    assert pipelines.reprocessed("orders", batches="0").letters_after == 1
    assert pipelines.rows(_TABLE) == [(0, 1), (1, 1), (2, 1), (3, 9), (4, 10), (5, 1), (6, 1)]
    assert pipelines.replayed("orders").taken == 1


def test_a_batch_whose_letters_came_home_is_refused(pipelines: Pipelines, inbox: Path) -> None:
    _files(inbox, [*_rows(0, 3), '{"id": 3, "quantity": "4"}', "no json"], _rows(5, 2))
    pipelines.finish(_appending(pipelines, inbox))
    assert pipelines.replayed("orders", patch={"_value": "replace(_value, '\"4\"', '4')"}).replayed == 1
    _refused(pipelines, "Micro-batch 0", "came home by a replay", batches="0-1")
    # A cleanup makes nobody forget it.
    pipelines.execute(APART, "DELETE FROM etl.dead_letter_single WHERE status = 'replayed'")
    _refused(pipelines, "1 of its 2 dead letters are in the table", batches="0-1")
    assert pipelines.reprocessed("orders", batches="1").rows_after == 2


def test_letters_that_a_replay_holds_are_refused(pipelines: Pipelines, inbox: Path) -> None:
    _files(inbox, [*_rows(0, 3), "no json"])
    pipelines.finish(_appending(pipelines, inbox))
    pipelines.execute(
        f"UPDATE etl.dead_letter_bundle SET status = 'replaying', status_before = 'pending', replay_id = '{uuid4()}'"
    )
    _refused(pipelines, "are in one", batches="0")


def test_rows_that_are_not_as_the_ledger_says_are_refused(pipelines: Pipelines, inbox: Path) -> None:
    _files(inbox, _rows(0, 3), _rows(3, 3), _rows(6, 3))
    without = _appending(pipelines, inbox, batchColumn=None)
    pipelines.finish(without)
    _refused(pipelines, "append without load.batchColumn", batches="0")
    write_lines(inbox / "8.json", *_rows(9, 3))
    pipelines.finish(_appending(pipelines, inbox, schemaEvolution="add_columns"))
    _refused(pipelines, "Micro-batch 1", "0 rows of the target name it", batches="1-3")
    assert pipelines.reprocessed("orders", batches="3").rows_after == 3
    pipelines.execute("DELETE FROM result WHERE id = 10")
    _refused(pipelines, "2 rows of the target name it", "3 rows that the ledger says", batches="3")


@pytest.mark.parametrize("change", ["gone", "longer", "touched"])
def test_files_that_are_gone_or_others_are_refused_before_anything(
    pipelines: Pipelines, inbox: Path, change: str
) -> None:
    _files(inbox, _rows(0, 3), _rows(3, 3), _rows(6, 3))
    pipelines.finish(_appending(pipelines, inbox))
    path = inbox / "2.json"
    if change == "gone":
        path.rename(inbox / ".2.json")
    elif change == "longer":
        path.write_text(path.read_text() + '{"id": 77}\n')
    else:
        os.utime(path, (1, 1))
    _refused(pipelines, "micro-batch 2", "2.json", "2 of them are there", batches="0-2")
    assert pipelines.one("SELECT count(*) FROM etl.batch_tracker WHERE pipeline_id <> 'orders'") == 0
    assert pipelines.reprocessed("orders", batches="0-1").rows_after == 6


def test_a_source_that_gives_fewer_rows_is_refused(pipelines: Pipelines, inbox: Path) -> None:
    _files(inbox, _rows(0, 3))
    pipelines.finish(_appending(pipelines, inbox))
    # As if it were a broker's compacted topic: the range is there, and some of its rows are not.
    pipelines.execute("UPDATE etl.batch_tracker SET source_rows = 4, filtered_rows = 1")
    _refused(pipelines, "3 rows of its range now", "4 rows, as it gave then", batches="0")


def test_batches_that_the_ledger_does_not_have_are_refused(pipelines: Pipelines, inbox: Path) -> None:
    _files(inbox, _rows(0, 3), _rows(3, 3), _rows(6, 3))
    pipelines.finish(_appending(pipelines, inbox))
    _refused(pipelines, "without 3, 4", "micro-batches 0 to 2", batches="2-4")
    pipelines.execute(
        "INSERT INTO etl.batch_retention (pipeline_id, query_id, removed_through_batch, through_time, "
        "removed_batches, removed_rows) SELECT pipeline_id, query_id, 0, processed_at, 1, 3 "
        "FROM etl.batch_tracker WHERE batch_id = 0",
        "DELETE FROM etl.batch_tracker WHERE batch_id = 0",
    )
    _refused(pipelines, "without 0", "micro-batches 1 to 2; those up to 0 were removed by a cleanup", batches="0-1")
    with pytest.raises(ConfigError, match="not in the ledger"):
        pipelines.reprocess("other", batches="0")


def test_pipelines_whose_batches_are_not_by_themselves_are_refused(pipelines: Pipelines, inbox: Path) -> None:
    _files(inbox, _rows(0, 3))
    config = _upserting(pipelines, inbox)
    config["load"]["keys"] = ["quantity"]
    config["transforms"] = [aggregation(groupByColumns="quantity", aggregations="n:count")]
    config["streamingConfigJson"]["outputMode"] = "update"
    pipelines.finish(config)
    _refused(pipelines, "it keeps state", batches="0")


def test_rows_that_others_refer_to_are_not_removed_with_them(pipelines: Pipelines, inbox: Path) -> None:
    pipelines.execute("CREATE TABLE result (id bigint PRIMARY KEY, quantity int, etl_batch text)")
    _files(inbox, _rows(0, 3))
    pipelines.finish(_appending(pipelines, inbox))
    pipelines.execute(
        "CREATE TABLE note (id bigint REFERENCES result ON DELETE CASCADE)", "INSERT INTO note VALUES (1)"
    )
    _refused(pipelines, "note (note_id_fkey)", batches="0")
    assert pipelines.one("SELECT count(*) FROM note") == 1
    pipelines.execute("ALTER TABLE note DROP CONSTRAINT note_id_fkey, ADD FOREIGN KEY (id) REFERENCES result")
    ended = pipelines.reprocess("orders", batches="0")
    assert "is still referenced" in str(ended.error)
    assert pipelines.one("SELECT count(*) FROM etl.batch_reprocessed") == 0
    pipelines.execute("ALTER TABLE note DROP CONSTRAINT note_id_fkey")
    assert pipelines.reprocessed("orders", batches="0").rows_after == 3
    assert pipelines.rows("SELECT id FROM note JOIN result USING (id)") == [(1,)]


def test_times_choose_batches(pipelines: Pipelines, inbox: Path) -> None:
    rows = [[{"id": day, "quantity": day, "at": f"2026-03-0{day}T12:00:00Z"}] for day in (1, 2, 3, 4)]
    _files(inbox, *rows)
    config = _appending(pipelines, inbox)
    config["schemas"]["row"] += ", at TIMESTAMP"
    config["streamingConfigJson"]["watermark"] = {"eventTimeColumn": "at", "delayThreshold": "1 hour"}
    pipelines.finish(config)
    days = {"since": "2026-03-02T00:00:00Z", "until": "2026-03-03T12:00:00Z"}
    assert [one.batch_id for one in pipelines.reprocessed("orders", **days).shown] == [1]
    at = pipelines.rows("SELECT processed_at FROM etl.batch_tracker WHERE pipeline_id = 'orders' ORDER BY batch_id")
    committed = {"since": at[1][0], "until": at[3][0], "times": "commit_time"}
    assert [one.batch_id for one in pipelines.reprocessed("orders", **committed).shown] == [1, 2]
    _refused(pipelines, "No micro-batch touches this time", since="2027-01-01T00:00:00Z", until="2027-01-02T00:00:00Z")


def test_a_batch_none_of_whose_rows_has_passed_is_chosen_with_its_neighbours(pipelines: Pipelines, inbox: Path) -> None:
    """A filter that was wrong for two days: what it has left out has no event times in the ledger."""
    rows = [[{"id": day, "quantity": day, "at": f"2026-03-0{day}T12:00:00Z"}] for day in (1, 2, 3, 4, 5)]
    _files(inbox, *rows)
    config = _appending(pipelines, inbox)
    config["schemas"]["row"] += ", at TIMESTAMP"
    config["streamingConfigJson"]["watermark"] = {"eventTimeColumn": "at", "delayThreshold": "1 hour"}
    config["transforms"] = [filter_by("id NOT IN (2, 3)")]
    pipelines.finish(config)
    config["transforms"] = [filter_by("true")]
    pipelines.finish(config)
    days = {"since": "2026-03-02T00:00:00Z", "until": "2026-03-04T00:00:00Z"}
    assert [one.batch_id for one in pipelines.reprocessed("orders", **days).shown] == [1, 2]
    assert pipelines.rows("SELECT id FROM result ORDER BY 1") == [(n,) for n in (1, 2, 3, 4, 5)]


def test_without_event_times_nobody_chooses_by_them(pipelines: Pipelines, inbox: Path) -> None:
    _files(inbox, _rows(0, 3))
    pipelines.finish(_appending(pipelines, inbox))
    _refused(pipelines, "commit_time", since="2026-01-01T00:00:00Z", until="2026-01-02T00:00:00Z")


def test_an_upsert_with_an_order_column_keeps_newer_rows(pipelines: Pipelines, inbox: Path) -> None:
    _files(inbox, _rows(0, 5, 1), _rows(3, 5, 2))
    pipelines.finish(_upserting(pipelines, inbox, orderColumn="quantity"))
    pipelines.execute("DELETE FROM result WHERE id IN (0, 4)")
    assert pipelines.reprocessed("orders", batches="0").batches == 1
    assert pipelines.rows(_TABLE) == [(0, 1), (1, 1), (2, 1), (3, 2), (4, 1), (5, 2), (6, 2), (7, 2)]


def test_an_upsert_without_order_is_done_up_to_the_newest_or_not_at_all(pipelines: Pipelines, inbox: Path) -> None:
    _files(inbox, _rows(0, 5, 1), _rows(3, 5, 2), _rows(6, 5, 3))
    pipelines.finish(_upserting(pipelines, inbox))
    expected = [(n, 1 if n < 3 else 2 if n < 6 else 3) for n in range(11)]
    assert pipelines.rows(_TABLE) == expected
    _refused(pipelines, "upsert without load.orderColumn", "Reprocess 0-2", batches="0-1")
    pipelines.execute("DELETE FROM result WHERE id IN (0, 5, 9)")
    assert pipelines.reprocessed("orders", batches="0-2").batches == 3
    assert pipelines.rows(_TABLE) == expected
    assert pipelines.reprocessed("orders", batches="2").batches == 1
    assert pipelines.rows(_TABLE) == expected


def test_an_upsert_without_order_is_rehearsed(pipelines: Pipelines, inbox: Path) -> None:
    _files(inbox, _rows(0, 5, 1), _rows(3, 5, 2))
    pipelines.finish(_upserting(pipelines, inbox))
    # The second micro-batch is refused: were the first one done, its old values would stay.
    pipelines.execute("UPDATE etl.batch_tracker SET source_rows = 6, filtered_rows = 1 WHERE batch_id = 1")
    _refused(pipelines, "Micro-batch 1", "5 rows of its range now", batches="0-1")
    assert pipelines.one("SELECT count(*) FROM etl.batch_reprocessed") == 0


def test_letters_that_came_home_do_not_matter_where_rows_have_keys(pipelines: Pipelines, inbox: Path) -> None:
    _files(inbox, [*_rows(0, 3), '{"id": 3, "quantity": "4"}', "no json"])
    pipelines.finish(_upserting(pipelines, inbox, maxDeadLetterFraction=1))
    assert pipelines.replayed("orders", patch={"_value": "replace(_value, '\"4\"', '4')"}).replayed == 1
    summary = pipelines.reprocessed("orders", batches="0")
    assert (summary.letters_before, summary.letters_after) == (2, 2)
    assert pipelines.rows(_TABLE) == [(0, 1), (1, 1), (2, 1), (3, 4)]
    letters = "SELECT status, count(*) FROM etl.dead_letter GROUP BY 1 ORDER BY 1"
    assert pipelines.rows(letters) == [("discarded", 1), ("pending", 2), ("replayed", 1)]


def test_batches_that_come_meanwhile_are_done_again_behind(pipelines: Pipelines, inbox: Path) -> None:
    _files(inbox, _rows(0, 5, 1), _rows(3, 5, 2))
    config = _upserting(pipelines, inbox)
    pipelines.finish(config)

    class NewerBatch(BeforeBatch):
        def enter_batch(self) -> None:
            super().enter_batch()
            # Behind the rehearsal of both, and the first one.
            if self._batches == 4:
                write_lines(inbox / "7.json", *_rows(4, 3, 9))
                pipelines.finish(config)

    ended = pipelines.reprocess("orders", batches="0-1", stop=NewerBatch(0, pipelines))
    assert ended.error is None, str(ended.error)
    assert pipelines.rows(_TABLE) == [(0, 1), (1, 1), (2, 1), (3, 2), (4, 9), (5, 9), (6, 9), (7, 2)]
    assert pipelines.one("SELECT (summary ->> 'batches')::int FROM etl.reprocess") == 3


def test_an_upsert_that_leaves_rows_alone_takes_any_batch(pipelines: Pipelines, inbox: Path) -> None:
    _files(inbox, _rows(0, 5, 1), _rows(3, 5, 2))
    pipelines.finish(_upserting(pipelines, inbox, onConflict="nothing"))
    pipelines.execute("DELETE FROM result WHERE id = 4")
    assert pipelines.reprocessed("orders", batches="1").batches == 1
    assert pipelines.rows(_TABLE) == [(0, 1), (1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2), (7, 2)]


def test_deleted_rows_do_not_come_back_by_an_old_batch(pipelines: Pipelines, inbox: Path) -> None:
    def row(number: int, at: int, gone: bool = False) -> dict[str, Any]:
        return {"id": number, "quantity": at, "gone": gone}

    _files(inbox, [row(1, 1), row(2, 1)], [row(1, 2, gone=True)])
    config = _upserting(pipelines, inbox, orderColumn="quantity", deleteMarker="gone")
    config["schemas"]["row"] += ", gone BOOLEAN"
    pipelines.finish(config)
    assert pipelines.rows(_TABLE) == [(2, 1)]
    _refused(pipelines, "deleteMarker", "Reprocess 0-1", batches="0")
    assert pipelines.reprocessed("orders", batches="0-1").batches == 2
    assert pipelines.rows(_TABLE) == [(2, 1)]


def test_the_pipeline_may_run_meanwhile(pipelines: Pipelines, inbox: Path) -> None:
    _files(inbox, _rows(0, 5), _rows(5, 5))
    config = _appending(pipelines, inbox)
    pipelines.finish(config)

    class Meanwhile(BeforeBatch):
        def enter_batch(self) -> None:
            super().enter_batch()
            if self._batches == 1:
                write_lines(inbox / "7.json", *_rows(10, 5))
                pipelines.finish(config)

    ended = pipelines.reprocess("orders", batches="0-1", stop=Meanwhile(0, pipelines))
    assert ended.error is None, str(ended.error)
    assert pipelines.rows("SELECT id, count(*) FROM result GROUP BY 1 ORDER BY 1") == [(n, 1) for n in range(15)]


def test_a_further_attempt_goes_on_where_the_first_stopped(pipelines: Pipelines, inbox: Path) -> None:
    _files(inbox, _rows(0, 5), _rows(5, 5), _rows(10, 5))
    config = _appending(pipelines, inbox)
    pipelines.finish(config)
    wanted = {"reprocess_id": uuid4(), "batches": "0-2"}
    gone = BeforeBatch(2, pipelines, "ALTER TABLE result RENAME TO hidden")
    ended = pipelines.reprocess("orders", stop=gone, **wanted)
    assert isinstance(ended.error, EtlError)
    pipelines.execute("ALTER TABLE hidden RENAME TO result")
    summary = pipelines.reprocessed("orders", **wanted)
    assert (summary.batches, summary.rows_after) == (3, 15)
    assert pipelines.rows("SELECT id, count(*) FROM result GROUP BY 1 ORDER BY 1") == [(n, 1) for n in range(15)]
    times = "SELECT batch_id, count(*) FROM etl.batch_reprocessed GROUP BY 1 ORDER BY 1"
    assert pipelines.rows(times) == [(0, 1), (1, 1), (2, 1)]
    other = pipelines.reprocess("orders", **{**wanted, "batches": "0-1"})
    assert isinstance(other.error, ConfigError)


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"batches": "3-1"},
        {"batches": "all"},
        {"batches": "1", "since": "2026-01-01T00:00:00Z", "until": "2026-01-02T00:00:00Z"},
        {"since": "2026-01-01T00:00:00Z"},
        {"since": "2026-01-01T00:00:00", "until": "2026-01-02T00:00:00"},
        {"batches": "1", "times": "lunch"},
        {"offsets": "orders"},
        {"offsets": "orders/0:9-1"},
        {"offsets": "orders/0:1-9", "batches": "1"},
        {"batches": "1", "pipeline_id": f"orders/replay/{uuid4()}"},
    ],
)
def test_a_choice_that_says_nothing_is_refused(choice: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ReprocessRequest.of(**{"reprocess_id": uuid4(), "pipeline_id": "orders", **choice})
