"""A source or a transform that fails among the rows of a task: nothing of the task's part is committed."""

from __future__ import annotations

from pathlib import Path

import pytest
from pipeline_runs import Pipelines, file_pipeline, select, write_lines

ROWS = 20_000


@pytest.mark.parametrize("bad", [300, 2_560, 5_000, ROWS - 1])
@pytest.mark.parametrize("strategy", ["single", "staged", "two_phase"])
def test_a_transform_that_fails_at_a_row(pipelines: Pipelines, inbox: Path, strategy: str, bad: int) -> None:
    write_lines(inbox / "0.json", *({"id": number} for number in range(ROWS)))
    failing = select(id=f"IF(id = {bad}, CAST(raise_error('bad row') AS INT), id)")
    config = file_pipeline(
        "failing", inbox, pipelines.checkpoints, schema="id INT", transforms=[failing], load={"writeStrategy": strategy}
    )
    ended = pipelines.run(config)
    assert ended.error is not None
    assert "bad row" in str(ended.error)
    assert pipelines.one("SELECT count(*) FROM result") == 0
    assert pipelines.one("SELECT count(*) FROM etl.batch_tracker") == 0
    config["transforms"] = []
    pipelines.finish(config)
    assert pipelines.one("SELECT count(DISTINCT id) FROM result") == ROWS
