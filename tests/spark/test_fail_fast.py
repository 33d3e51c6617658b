"""``failFast``: the run ends at the first dead letter, says which row and why, and has written nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import Pipelines, aggregation, file_pipeline, write_lines

from spark_jobs.contracts.errors import DeadLetterRefusedError
from spark_jobs.contracts.exit_codes import ExitCode


def _failing(pipelines: Pipelines, config: dict[str, Any]) -> str:
    ended = pipelines.run({**config, "errorHandlingConfig": {"failFast": True}})
    assert isinstance(ended.error, DeadLetterRefusedError)
    assert ended.exit_code is ExitCode.DATA_ERROR
    assert not ended.error.retryable
    for table in ("result", "etl.batch_tracker", "etl.dead_letter"):
        assert pipelines.one(f"SELECT count(*) FROM {table}") == 0
    assert pipelines.rows("SELECT relname FROM pg_class WHERE relname LIKE 'stage\\_%' AND relkind = 'r'") == []
    assert pipelines.rows("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()") == []
    return str(ended.error)


@pytest.mark.parametrize("strategy", ["single", "staged", "two_phase"])
def test_a_line_that_cannot_be_read(pipelines: Pipelines, inbox: Path, strategy: str) -> None:
    write_lines(inbox / "1.json", {"id": 1, "amount": 1}, "not json")
    config = file_pipeline(
        "orders", inbox, pipelines.checkpoints, schema="id INT, amount INT", load={"writeStrategy": strategy}
    )
    said = _failing(pipelines, config)
    assert "MALFORMED_JSON" in said
    assert "1.json" in said
    assert "'not json'" in said


@pytest.mark.parametrize("strategy", ["single", "staged", "two_phase"])
def test_a_row_that_the_target_refuses(pipelines: Pipelines, inbox: Path, strategy: str) -> None:
    pipelines.execute("CREATE TABLE result (id int, amount int CONSTRAINT small CHECK (amount < 100))")
    write_lines(inbox / "1.json", {"id": 1, "amount": 1}, {"id": 2, "amount": 200})
    config = file_pipeline(
        "orders", inbox, pipelines.checkpoints, schema="id INT, amount INT", load={"writeStrategy": strategy}
    )
    said = _failing(pipelines, config)
    assert "23514" in said
    assert '"amount": 200' in said


def test_a_row_before_an_aggregation(pipelines: Pipelines, inbox: Path) -> None:
    write_lines(inbox / "1.json", {"id": 1, "amount": 1}, "not json")
    config = file_pipeline(
        "orders",
        inbox,
        pipelines.checkpoints,
        schema="id INT, amount INT",
        transforms=[aggregation(groupByColumns="id", aggregations="amount:sum:total")],
        load={"writeMode": "overwrite"},
        streaming={"outputMode": "complete"},
    )
    assert "'not json'" in _failing(pipelines, config)


def test_rows_that_are_good_pass(pipelines: Pipelines, inbox: Path) -> None:
    write_lines(inbox / "1.json", {"id": 1, "amount": 1})
    config = file_pipeline("orders", inbox, pipelines.checkpoints, schema="id INT, amount INT")
    pipelines.finish({**config, "errorHandling": {"failFast": True}})
    assert pipelines.rows("SELECT id FROM result") == [(1,)]
