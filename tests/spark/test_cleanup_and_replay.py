"""After the smallest cleanup that is allowed, whatever a checkpoint brings again is in the target once."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import Pipelines, file_pipeline, write_lines

from spark_jobs.contracts.cleanup import MINIMUM_BATCHES, CleanupRequest
from spark_jobs.contracts.errors import CheckpointMismatchError
from spark_jobs.contracts.tracker.cleanup import clean

FIRST, MORE = 5, MINIMUM_BATCHES + 5


def _arrive(inbox: Path, *numbers: int) -> None:
    for number in numbers:
        write_lines(inbox / f"{number:04}.json", {"id": number})


def _ids(pipelines: Pipelines) -> list[int]:
    return [row[0] for row in pipelines.rows("SELECT id FROM result ORDER BY id")]


def _clean(pipelines: Pipelines) -> dict[str, int]:
    pipelines.execute("UPDATE etl.batch_tracker SET processed_at = processed_at - interval '1 year'")
    request = CleanupRequest.of(days=0, keep_batches=MINIMUM_BATCHES)
    with closing(pipelines.database.connect(autocommit=True)) as conn:
        return clean(conn, "etl", request).totals


def _last(checkpoint: Path, folder: str) -> int:
    return max(int(path.name) for path in (checkpoint / folder).iterdir() if path.name.isdigit())


def _forget(checkpoint: Path, folder: str, number: int) -> None:
    for name in (str(number), f".{number}.crc"):
        (checkpoint / folder / name).unlink(missing_ok=True)


@pytest.fixture
def config(pipelines: Pipelines, inbox: Path) -> dict[str, Any]:
    options = {"maxFilesPerTrigger": "1"}
    return file_pipeline("orders", inbox, pipelines.checkpoints, schema="id INT", options=options)


def test_a_replayed_an_old_and_a_lost_checkpoint_load_no_row_twice(
    pipelines: Pipelines, inbox: Path, config: dict[str, Any]
) -> None:
    checkpoint, old = pipelines.checkpoints / "orders", pipelines.folder / "old"
    _arrive(inbox, *range(FIRST))
    pipelines.finish(config)
    shutil.copytree(checkpoint, old)
    _arrive(inbox, *range(FIRST, FIRST + MORE))
    assert pipelines.finish(config).result.batches == MORE
    everything = list(range(FIRST + MORE))
    assert _clean(pipelines) == {"batches": 10}

    # Spark runs its last micro-batch again.
    last = _last(checkpoint, "commits")
    _forget(checkpoint, "commits", last)
    again = pipelines.finish(config).result
    assert (again.batches, again.duplicates) == (0, 1)
    assert _ids(pipelines) == everything

    # The oldest one that its checkpoint still has.
    oldest = min(int(path.name) for path in (checkpoint / "offsets").iterdir() if path.name.isdigit())
    kept = pipelines.one("SELECT min(batch_id) FROM etl.batch_tracker")
    assert 0 < kept < oldest

    # A copy from before everything that the ledger has kept.
    newest = checkpoint.rename(pipelines.folder / "newest")
    old.rename(checkpoint)
    _forget(checkpoint, "commits", FIRST - 1)
    refused = pipelines.run(config).error
    assert isinstance(refused, CheckpointMismatchError), str(refused)
    assert "a cleanup has removed its row" in str(refused)
    assert _ids(pipelines) == everything

    # None at all: the files of removed batches count as read.
    shutil.rmtree(checkpoint)
    shutil.rmtree(newest)
    _arrive(inbox, FIRST + MORE)
    resumed = pipelines.run(config, resume="from_ledger")
    assert resumed.error is None, str(resumed.error)
    assert _ids(pipelines) == [*everything, FIRST + MORE]


def test_names_of_files_that_are_gone_stop_a_resume(pipelines: Pipelines, inbox: Path, config: dict[str, Any]) -> None:
    _arrive(inbox, 0)
    pipelines.finish(config)
    shutil.rmtree(pipelines.checkpoints / "orders")
    pipelines.execute(
        "INSERT INTO etl.batch_retention (pipeline_id, query_id, removed_through_batch, through_time, "
        "removed_batches, removed_rows, removed_files) "
        "SELECT pipeline_id, query_id, 0, now(), 1, 1, 1 FROM etl.pipeline_query"
    )
    refused = pipelines.run(config, resume="from_ledger").error
    assert isinstance(refused, CheckpointMismatchError)
    assert "does not know all files" in str(refused)
    assert _ids(pipelines) == [0]
