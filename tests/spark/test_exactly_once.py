"""What was committed is never written again, and what was not is never taken for written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import BeforeBatch, Pipelines, aggregation, file_pipeline, select, write_lines

from spark_jobs.contracts.errors import CheckpointMismatchError, LedgerConflictError

SCHEMA = "id INT, name STRING"
STRATEGIES = ["single", "staged", "two_phase"]


def _orders(pipelines: Pipelines, inbox: Path, **load: Any) -> dict[str, Any]:
    return file_pipeline("orders", inbox, pipelines.checkpoints, schema=SCHEMA, load=load)


def _write(inbox: Path, number: int, count: int = 10) -> None:
    first = number * count
    write_lines(inbox / f"{number}.json", *({"id": i, "name": f"n{i}"} for i in range(first, first + count)))


def _ids(pipelines: Pipelines) -> list[int]:
    return [row[0] for row in pipelines.rows("SELECT id FROM result ORDER BY id")]


# As a standby that was behind: the database has lost the micro-batch 1.
_FORGET = (
    "DELETE FROM result WHERE id = "
    "(SELECT substring(path FROM '([0-9])[.]json')::int FROM etl.batch_file WHERE batch_id = 1)",
    "DELETE FROM etl.batch_tracker WHERE batch_id = 1",
)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_database_that_forgot_a_batch_gets_no_further_ones(pipelines: Pipelines, inbox: Path, strategy: str) -> None:
    for number in range(4):
        write_lines(inbox / f"{number}.json", {"id": number})
    load, options = {"writeStrategy": strategy}, {"maxFilesPerTrigger": "1"}
    config = file_pipeline("rows", inbox, pipelines.checkpoints, schema="id INT", load=load, options=options)
    ended = pipelines.run(config, stop=BeforeBatch(3, pipelines, *_FORGET))
    assert isinstance(ended.error, CheckpointMismatchError), str(ended.error)
    assert "does not hold micro-batch 1 any more" in str(ended.error)
    shutil.rmtree(pipelines.checkpoints / "rows")
    resumed = pipelines.run(config, resume="from_ledger")
    assert resumed.error is None, str(resumed.error)
    assert _ids(pipelines) == list(range(4))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_only_new_files_are_read_and_an_idle_run_writes_nothing(
    pipelines: Pipelines, inbox: Path, strategy: str
) -> None:
    config = _orders(pipelines, inbox, writeStrategy=strategy)
    _write(inbox, 0)
    first = pipelines.finish(config)
    _write(inbox, 1)
    second = pipelines.finish(config)
    idle = pipelines.finish(config)
    assert _ids(pipelines) == list(range(20))
    assert [first.result.rows["written"], second.result.rows["written"], idle.result.batches] == [10, 10, 0]
    assert pipelines.rows("SELECT batch_id, source_rows, written_rows, strategy FROM etl.batch_tracker ORDER BY 1") == [
        (0, 10, 10, strategy),
        (1, 10, 10, strategy),
    ]
    assert pipelines.rows("SELECT relname FROM pg_class WHERE relname LIKE 'stage\\_%' AND relkind = 'r'") == []


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_replayed_batch_is_skipped_and_counted(pipelines: Pipelines, inbox: Path, strategy: str) -> None:
    config = _orders(pipelines, inbox, writeStrategy=strategy)
    _write(inbox, 0)
    pipelines.finish(config)
    _forget_commit(pipelines, "orders", 0)
    ended = pipelines.finish(config)
    assert (ended.result.batches, ended.result.duplicates) == (0, 1)
    assert _ids(pipelines) == list(range(10))
    assert pipelines.one("SELECT duplicate_count FROM etl.batch_tracker") == 1


def test_a_replayed_batch_with_other_files_stops_the_run(pipelines: Pipelines, inbox: Path) -> None:
    config = _orders(pipelines, inbox)
    _write(inbox, 0)
    pipelines.finish(config)
    # The log entry is lost, and the same number is planned again from other files.
    for name in ("commits/0", "offsets/0", "sources/0/0"):
        _remove(pipelines.checkpoints / "orders" / name)
    _write(inbox, 1)
    ended = pipelines.run(config)
    assert isinstance(ended.error, LedgerConflictError)
    assert _ids(pipelines) == list(range(10))


def test_a_lost_checkpoint_stops_the_run_and_writes_nothing(pipelines: Pipelines, inbox: Path) -> None:
    config = _orders(pipelines, inbox)
    _write(inbox, 0)
    pipelines.finish(config)
    shutil.rmtree(pipelines.checkpoints / "orders")
    _write(inbox, 1)
    ended = pipelines.run(config)
    assert isinstance(ended.error, CheckpointMismatchError)
    assert "--resume-from-ledger" in str(ended.error)
    assert "--accept-new-checkpoint" in str(ended.error)
    assert _ids(pipelines) == list(range(10))
    assert not (pipelines.checkpoints / "orders" / "metadata").exists()


def test_resume_from_ledger_reads_only_what_the_ledger_lacks(pipelines: Pipelines, inbox: Path) -> None:
    config = _orders(pipelines, inbox)
    _write(inbox, 0)
    pipelines.finish(config)
    shutil.rmtree(pipelines.checkpoints / "orders")
    _write(inbox, 1)
    resumed = pipelines.run(config, resume="from_ledger")
    assert resumed.error is None, str(resumed.error)
    _write(inbox, 2)
    pipelines.finish(config)
    assert _ids(pipelines) == list(range(30))
    assert pipelines.rows("SELECT origin FROM etl.pipeline_query ORDER BY created_at") == [("fresh",), ("resumed",)]


def test_accept_new_checkpoint_starts_over_and_is_recorded(pipelines: Pipelines, inbox: Path) -> None:
    config = _orders(pipelines, inbox)
    _write(inbox, 0)
    pipelines.finish(config)
    shutil.rmtree(pipelines.checkpoints / "orders")
    accepted = pipelines.run(config, resume="accept_new_checkpoint")
    assert accepted.error is None
    assert pipelines.one("SELECT count(*) FROM result") == 20
    assert pipelines.rows("SELECT origin FROM etl.pipeline_query ORDER BY created_at") == [("fresh",), ("accepted",)]


def test_resume_is_refused_for_running_totals(pipelines: Pipelines, inbox: Path) -> None:
    config = file_pipeline(
        "totals",
        inbox,
        pipelines.checkpoints,
        schema=SCHEMA,
        transforms=[aggregation(groupByColumns="name", aggregations="id:sum")],
        load={"writeMode": "upsert", "keys": "name"},
        streaming={"outputMode": "update"},
    )
    _write(inbox, 0)
    pipelines.finish(config)
    shutil.rmtree(pipelines.checkpoints / "totals")
    ended = pipelines.run(config, resume="from_ledger")
    assert isinstance(ended.error, CheckpointMismatchError)
    assert "restart from nothing" in str(ended.error)


def test_a_checkpoint_ahead_of_the_ledger_stops_the_run(pipelines: Pipelines, inbox: Path) -> None:
    config = _orders(pipelines, inbox)
    for number in (0, 1):
        _write(inbox, number)
        pipelines.finish(config)
    with pipelines.database.connect() as conn:
        conn.execute("DELETE FROM etl.batch_tracker WHERE batch_id = 1")
    _write(inbox, 2)
    ended = pipelines.run(config)
    assert isinstance(ended.error, CheckpointMismatchError)
    assert "ahead of the ledger" in str(ended.error)
    assert _ids(pipelines) == list(range(20))


def test_a_checkpoint_of_another_pipeline_stops_the_run(pipelines: Pipelines, inbox: Path) -> None:
    config = _orders(pipelines, inbox)
    _write(inbox, 0)
    pipelines.finish(config)
    other = {**config, "pipelineId": "others"}
    ended = pipelines.run(other)
    assert isinstance(ended.error, CheckpointMismatchError)
    assert "'orders'" in str(ended.error)


def test_a_changed_source_under_an_old_checkpoint_stops_the_run(
    pipelines: Pipelines, inbox: Path, tmp_path: Path
) -> None:
    config = _orders(pipelines, inbox)
    _write(inbox, 0)
    pipelines.finish(config)
    elsewhere = tmp_path / "elsewhere"
    _write(elsewhere, 1)
    config["extract"]["connectionParams"]["path"] = str(elsewhere)
    ended = pipelines.run(config)
    assert isinstance(ended.error, CheckpointMismatchError)
    assert str(elsewhere) in str(ended.error)


def test_changed_transforms_of_a_stateless_pipeline_go_on(pipelines: Pipelines, inbox: Path) -> None:
    config = _orders(pipelines, inbox)
    _write(inbox, 0)
    pipelines.finish(config)
    config["transforms"] = [select(id="id", name="upper(name)")]
    _write(inbox, 1)
    pipelines.finish(config)
    assert pipelines.one("SELECT name FROM result WHERE id = 11") == "N11"


@pytest.mark.parametrize("strategy", ["single", "staged"])
def test_an_upsert_takes_the_last_of_a_key_and_counts_the_others(
    pipelines: Pipelines, inbox: Path, strategy: str
) -> None:
    config = _orders(pipelines, inbox, writeMode="upsert", keys="id", writeStrategy=strategy)
    write_lines(inbox / "0.json", {"id": 1, "name": "a"}, {"id": 1, "name": "b"}, {"id": 2, "name": "c"})
    pipelines.finish(config)
    write_lines(inbox / "1.json", {"id": 2, "name": "d"}, {"id": None, "name": "e"})
    pipelines.finish(config)
    write_lines(inbox / "2.json", {"id": None, "name": "f"})
    pipelines.finish(config)
    assert pipelines.rows("SELECT id, name FROM result ORDER BY id") == [(1, "b"), (2, "d"), (None, "f")]
    assert pipelines.rows(
        "SELECT sink_rows, written_rows, write_deduplicated_rows FROM etl.batch_tracker ORDER BY batch_id"
    ) == [(3, 2, 1), (2, 2, 0), (1, 1, 0)]


def _forget_commit(pipelines: Pipelines, pipeline: str, batch: int) -> None:
    """Take away Spark's word that a batch was committed: what a driver killed right after our commit leaves."""
    _remove(pipelines.checkpoints / pipeline / "commits" / str(batch))


def _remove(path: Path) -> None:
    path.unlink()
    path.with_name(f".{path.name}.crc").unlink(missing_ok=True)
