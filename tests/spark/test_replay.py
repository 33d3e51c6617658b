"""Dead letters come home: once, with their row, by the pipeline's own way; or they stay, and say why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline_runs import Pipelines, file_pipeline, write_lines


def _letters(pipelines: Pipelines) -> list[tuple[Any, ...]]:
    return pipelines.rows(
        "SELECT status, stage, error_class, attempt, convert_from(raw_value, 'UTF8'), parsed_row "
        "FROM etl.dead_letter ORDER BY raw_value, parsed_row::text"
    )


def _tally(pipelines: Pipelines) -> dict[tuple[str, str, str], int]:
    rows = pipelines.rows(
        "SELECT status, stage, error_class, sum(letters)::int FROM etl.dead_letter_tally "
        "GROUP BY 1, 2, 3 HAVING sum(letters) <> 0"
    )
    return {(status, stage, kind): count for status, stage, kind, count in rows}


def test_a_patched_record_comes_home_and_the_others_stay(pipelines: Pipelines, inbox: Path) -> None:
    config = file_pipeline("orders", inbox, pipelines.checkpoints, schema="id BIGINT, quantity INT")
    write_lines(inbox / "1.json", {"id": 1, "quantity": 5}, '{"id": 2, "quantity": "n/a"}', "no json at all")
    pipelines.finish(config)
    assert _tally(pipelines) == {("pending", "parse", "MALFORMED_JSON"): 2}

    summary = pipelines.replayed("orders", patch={"_value": "replace(_value, '\"n/a\"', 'null')"})

    assert (summary.taken, summary.replayed, summary.failed, summary.parked) == (2, 1, 1, 0)
    assert pipelines.rows("SELECT id, quantity FROM result ORDER BY id") == [(1, 5), (2, None)]
    assert [row[:5] for row in _letters(pipelines)] == [
        ("pending", "parse", "MALFORMED_JSON", 2, "no json at all"),
        ("replayed", "parse", "MALFORMED_JSON", 1, '{"id": 2, "quantity": "n/a"}'),
    ]
    assert _tally(pipelines) == {
        ("pending", "parse", "MALFORMED_JSON"): 1,
        ("replayed", "parse", "MALFORMED_JSON"): 1,
    }
    (home,) = pipelines.rows(
        "SELECT b.source_rows, b.written_rows, b.dead_lettered_rows FROM etl.dead_letter d JOIN etl.batch_tracker b "
        "ON b.query_id = d.home_query_id AND b.batch_id = d.home_batch_id WHERE d.status = 'replayed'"
    )
    assert home == (2, 1, 1)
    again = pipelines.replayed("orders")
    assert (again.taken, again.replayed) == (1, 0)
    assert pipelines.one("SELECT count(*) FROM result") == 2
