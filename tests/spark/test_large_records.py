"""Records of a megabyte, more than fill one Arrow batch, pass through two gigabytes that other tests share."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline_runs import Pipelines, file_pipeline

from spark_jobs.runtime.session import DEFAULTS

BYTES = 1_000_000


def test_records_of_a_megabyte(pipelines: Pipelines, inbox: Path) -> None:
    rows = int(DEFAULTS["spark.sql.execution.arrow.maxRecordsPerBatch"]) + 50
    with (inbox / "0.json").open("w") as file:
        for number in range(rows):
            file.write(json.dumps({"id": number, "document": chr(97 + number % 26) * BYTES}) + "\n")
    pipelines.finish(file_pipeline("rows", inbox, pipelines.checkpoints, schema="id INT, document STRING"))
    found = pipelines.rows(
        "SELECT count(DISTINCT id), sum(length(document)), "
        "bool_and(document = repeat(chr(97 + id % 26), length(document))) FROM result"
    )
    assert found == [(rows, rows * BYTES, True)]
