"""The monitoring queries that people already have run against the ledger as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import Pipelines, file_pipeline, write_lines

_DOCUMENT = Path(__file__).resolve().parents[3] / "shared" / "reference" / "002_json_config_and_exactly_once.txt"


@pytest.fixture(scope="module")
def queries() -> list[str]:
    """The four queries, in the document's order: last batch, stale pipelines, rate, gaps."""
    if not _DOCUMENT.is_file():
        pytest.skip(f"no {_DOCUMENT}")
    section = _DOCUMENT.read_text().split("### Monitoring Queries", 1)[1]
    found = re.search(r"```sql\n(.*?)```", section, re.DOTALL)
    assert found is not None
    statements = [text.strip() for text in found.group(1).split(";") if text.strip()]
    assert len(statements) == 4
    return statements


def test_the_four_monitoring_queries(pipelines: Pipelines, inbox: Path, queries: list[str]) -> None:
    config = file_pipeline(
        "numbers", inbox, pipelines.checkpoints, schema="id INT", streaming={"maxFilesPerTrigger": 1}
    )
    for number in range(3):
        write_lines(inbox / f"{number}.json", *({"id": i} for i in range(10)))
    pipelines.finish(config)
    last, stale, rate, gaps = _ask(pipelines, queries)
    newest = pipelines.one("SELECT max(processed_at) FROM etl.batch_tracker")
    assert last == [("numbers", 2, newest, 30)]
    assert stale == []
    assert sum(row[2] for row in rate) == 3
    assert sum(row[3] for row in rate) == 30
    assert gaps == []

    with pipelines.database.connect() as conn:
        conn.execute("UPDATE etl.batch_tracker SET processed_at = processed_at - interval '2 hours'")
        conn.execute("DELETE FROM etl.batch_tracker WHERE batch_id = 1")
    last, stale, rate, gaps = _ask(pipelines, queries)
    assert (last[0][1], last[0][3]) == (2, 20)
    assert [row[0] for row in stale] == ["numbers"]
    assert rate == []
    assert gaps == [("numbers", 0, 2, 1)]


def _ask(pipelines: Pipelines, queries: list[str]) -> list[list[tuple[Any, ...]]]:
    with pipelines.database.connect(options="-c search_path=etl") as conn:
        return [list(conn.execute(query).fetchall()) for query in queries]
