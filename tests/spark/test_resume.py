"""Resuming from the ledger takes what the target holds for read: what was read since it was last started over."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import Pipelines, file_pipeline, write_lines

from spark_jobs.contracts.errors import CheckpointMismatchError
from spark_jobs.contracts.run_request import Resume
from spark_jobs.runtime.stopping import Stop, StopRequestedError


@pytest.fixture
def config(pipelines: Pipelines, inbox: Path) -> dict[str, Any]:
    return file_pipeline("orders", inbox, pipelines.checkpoints, schema="id INT")


def test_files_from_before_the_target_was_started_over_are_read_again(
    pipelines: Pipelines, inbox: Path, config: dict[str, Any]
) -> None:
    _arrive(inbox, 0, 1, 2)
    pipelines.finish(config)
    _lose_checkpoint_and_rows(pipelines)
    later = [_set_aside(inbox / f"{number}.json") for number in (1, 2)]
    _run(pipelines, config, "accept_new_checkpoint")
    assert _ids(pipelines) == [0]
    for path in later:
        path.rename(inbox / path.name)
    _lose_checkpoint(pipelines)
    _run(pipelines, config, "from_ledger")
    assert _ids(pipelines) == [0, 1, 2]
    _lose_checkpoint(pipelines)
    _arrive(inbox, 3)
    _run(pipelines, config, "from_ledger")
    assert _ids(pipelines) == [0, 1, 2, 3]
    assert _origins(pipelines) == ["fresh", "accepted", "resumed", "resumed"]


def test_nothing_is_skipped_when_the_new_start_has_committed_nothing(
    pipelines: Pipelines, inbox: Path, config: dict[str, Any]
) -> None:
    _arrive(inbox, 0, 1)
    pipelines.finish(config)
    _lose_checkpoint_and_rows(pipelines)
    _accept_without_a_batch(pipelines, config)
    _lose_checkpoint(pipelines)
    lost = pipelines.run(config).error
    assert isinstance(lost, CheckpointMismatchError)
    assert "resuming reads from the beginning" in lost.found
    _run(pipelines, config, "from_ledger")
    assert _ids(pipelines) == [0, 1]
    _lose_checkpoint(pipelines)
    _arrive(inbox, 2)
    _run(pipelines, config, "from_ledger")
    assert _ids(pipelines) == [0, 1, 2]
    assert _origins(pipelines) == ["fresh", "accepted", "accepted", "resumed"]


def test_a_resumed_query_that_read_nothing_leads_to_the_one_before(
    pipelines: Pipelines, inbox: Path, config: dict[str, Any]
) -> None:
    _arrive(inbox, 0)
    pipelines.finish(config)
    for _ in range(2):
        _lose_checkpoint(pipelines)
        _run(pipelines, config, "from_ledger")
    _lose_checkpoint(pipelines)
    _arrive(inbox, 1)
    _run(pipelines, config, "from_ledger")
    assert _ids(pipelines) == [0, 1]
    seeds = pipelines.rows("SELECT query_id, seeded_from FROM etl.pipeline_query ORDER BY created_at")
    assert [seed for _, seed in seeds[1:]] == [query for query, _ in seeds[:-1]]


def test_the_checkpoint_in_use_last_is_the_one_that_is_resumed(
    pipelines: Pipelines, inbox: Path, config: dict[str, Any]
) -> None:
    checkpoint = pipelines.checkpoints / "orders"
    _arrive(inbox, 0)
    pipelines.finish(config)
    kept = checkpoint.rename(pipelines.folder / "kept")
    _accept_without_a_batch(pipelines, config)
    _lose_checkpoint(pipelines)
    kept.rename(checkpoint)
    _arrive(inbox, 1)
    pipelines.finish(config)
    _lose_checkpoint(pipelines)
    _arrive(inbox, 2)
    _run(pipelines, config, "from_ledger")
    assert _ids(pipelines) == [0, 1, 2]


@pytest.mark.parametrize("resume", ["from_ledger", "accept_new_checkpoint"])
def test_a_checkpoint_that_was_replaced_is_not_brought_back(
    pipelines: Pipelines, inbox: Path, config: dict[str, Any], resume: Resume
) -> None:
    checkpoint = pipelines.checkpoints / "orders"
    _arrive(inbox, 0)
    pipelines.finish(config)
    old = checkpoint.rename(pipelines.folder / "old")
    _arrive(inbox, 1)
    if resume == "accept_new_checkpoint":
        pipelines.execute("TRUNCATE result")
    _run(pipelines, config, resume)
    new = checkpoint.rename(pipelines.folder / "new")
    old.rename(checkpoint)
    _arrive(inbox, 2)
    error = pipelines.run(config).error
    assert isinstance(error, CheckpointMismatchError)
    assert "was replaced by another one" in str(error)
    assert _ids(pipelines) == [0, 1]
    checkpoint.rename(old)
    new.rename(checkpoint)
    pipelines.finish(config)
    assert _ids(pipelines) == [0, 1, 2]


def test_a_clock_that_was_ahead_does_not_say_which_query_is_newest(
    pipelines: Pipelines, inbox: Path, config: dict[str, Any]
) -> None:
    _arrive(inbox, 0, 1)
    pipelines.finish(config)
    with pipelines.database.connect() as conn:
        conn.execute("UPDATE etl.pipeline_query SET created_at = created_at + interval '1 day'")
        conn.execute("UPDATE etl.batch_tracker SET processed_at = processed_at + interval '1 day'")
    _lose_checkpoint_and_rows(pipelines)
    later = _set_aside(inbox / "1.json")
    _run(pipelines, config, "accept_new_checkpoint")
    later.rename(inbox / "1.json")
    _lose_checkpoint(pipelines)
    _run(pipelines, config, "from_ledger")
    assert _ids(pipelines) == [0, 1]


@pytest.mark.parametrize("resume", ["none", "from_ledger", "accept_new_checkpoint"])
def test_a_checkpoint_that_has_lost_only_its_metadata_is_not_taken_for_none(
    pipelines: Pipelines, inbox: Path, config: dict[str, Any], resume: Resume
) -> None:
    _arrive(inbox, 0)
    pipelines.finish(config)
    (pipelines.checkpoints / "orders" / "metadata").unlink()
    _arrive(inbox, 1)
    lost = pipelines.run(config, resume=resume).error
    assert isinstance(lost, CheckpointMismatchError)
    assert "has lost its file metadata" in str(lost)
    assert _ids(pipelines) == [0]


def test_a_checkpoint_whose_metadata_is_empty_is_named(
    pipelines: Pipelines, inbox: Path, config: dict[str, Any]
) -> None:
    _arrive(inbox, 0)
    pipelines.finish(config)
    (pipelines.checkpoints / "orders" / "metadata").write_text("")
    (pipelines.checkpoints / "orders" / ".metadata.crc").unlink()
    lost = pipelines.run(config).error
    assert isinstance(lost, CheckpointMismatchError)
    assert "metadata of the checkpoint" in str(lost)


@pytest.mark.parametrize("resume", ["from_ledger", "accept_new_checkpoint"])
def test_a_seed_that_was_cut_off_is_written_again(
    pipelines: Pipelines, inbox: Path, config: dict[str, Any], resume: Resume
) -> None:
    _arrive(inbox, 0)
    pipelines.finish(config)
    _lose_checkpoint(pipelines)
    _run(pipelines, config, "from_ledger")
    # As a driver leaves it that dies before the seed's last step.
    (pipelines.checkpoints / "orders" / "metadata").unlink()
    (pipelines.checkpoints / "orders" / "etl-seeding").write_text("a query")
    _arrive(inbox, 1)
    _run(pipelines, config, resume)
    assert _ids(pipelines) == ([0, 1] if resume == "from_ledger" else [0, 0, 1])


def test_a_seed_whose_mark_was_left_is_a_whole_checkpoint(
    pipelines: Pipelines, inbox: Path, config: dict[str, Any]
) -> None:
    _arrive(inbox, 0)
    pipelines.finish(config)
    _lose_checkpoint(pipelines)
    _run(pipelines, config, "from_ledger")
    # As a driver leaves it that dies after the seed's last step but one.
    (pipelines.checkpoints / "orders" / "etl-seeding").write_text("a query")
    _arrive(inbox, 1)
    pipelines.finish(config)
    (pipelines.checkpoints / "orders" / "metadata").unlink()
    lost = pipelines.run(config, resume="from_ledger").error
    assert isinstance(lost, CheckpointMismatchError)
    assert "has lost its file metadata" in str(lost)


def _arrive(inbox: Path, *numbers: int) -> None:
    for number in numbers:
        write_lines(inbox / f"{number}.json", {"id": number})


def _set_aside(path: Path) -> Path:
    return path.rename(path.parent.parent / path.name)


def _lose_checkpoint(pipelines: Pipelines) -> None:
    shutil.rmtree(pipelines.checkpoints / "orders")


def _lose_checkpoint_and_rows(pipelines: Pipelines) -> None:
    _lose_checkpoint(pipelines)
    with pipelines.database.connect() as conn:
        conn.execute("TRUNCATE result")


def _run(pipelines: Pipelines, config: dict[str, Any], resume: Resume) -> None:
    ended = pipelines.run(config, resume=resume)
    assert ended.error is None, str(ended.error)


def _accept_without_a_batch(pipelines: Pipelines, config: dict[str, Any]) -> None:
    stop = Stop()
    stop.ask()
    assert isinstance(pipelines.run(config, resume="accept_new_checkpoint", stop=stop).error, StopRequestedError)


def _ids(pipelines: Pipelines) -> list[int]:
    return [row[0] for row in pipelines.rows("SELECT id FROM result ORDER BY id")]


def _origins(pipelines: Pipelines) -> list[str]:
    return [row[0] for row in pipelines.rows("SELECT origin FROM etl.pipeline_query ORDER BY created_at")]
