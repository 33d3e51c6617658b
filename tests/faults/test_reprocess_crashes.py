"""A reprocess that is killed at any step: no row is lost, none comes twice, and it goes on where it stopped."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

from drivers import Garage
from pipeline_runs import Pipelines, file_pipeline, select, write_lines

from spark_jobs.contracts.reprocess_batches import ReprocessRequest

# With batches of five rows each. The first point of all is behind one of the batches.
POINTS = (
    "run.after_claim",
    "reprocess.before_first",
    "reprocess.before_batch",
    "reprocess.after_removing",
    "single.in_copy",
    "single.before_ledger",
    "single.before_commit",
    "single.after_commit",
    "reprocess.after_batch",
    "run.before_end",
)
_BATCHES = len(POINTS) + 1


def test_a_kill_at_any_step_loses_no_row_and_has_none_twice(
    pipelines: Pipelines, garage: Garage, tmp_path: Path
) -> None:
    inbox = tmp_path / "inbox"
    for number in range(_BATCHES):
        path = inbox / f"{number}.json"
        write_lines(path, *({"id": number * 5 + n} for n in range(5)), "no json")
        os.utime(path, (number * 60, number * 60))
    config = file_pipeline(
        "orders",
        inbox,
        pipelines.checkpoints,
        schema="id BIGINT",
        load={"batchColumn": "etl_batch"},
        options={"maxFilesPerTrigger": "1"},
    )
    assert garage.driver().run({**config, "transforms": [select(id="id", price="1")]}).exit_code == 0
    config["transforms"] = [select(id="id", price="2")]
    assert garage.driver().run(config).exit_code == 0
    wanted = ReprocessRequest.of(reprocess_id=uuid4(), pipeline_id="orders", batches=f"0-{_BATCHES - 1}")

    for point in POINTS[:-1]:
        garage.driver().killed_at(wanted, point)
        # A batch is as it was or as it is now, as a whole, and so are its letters.
        done = pipelines.one("SELECT count(*) FROM etl.batch_reprocessed")
        prices = dict(pipelines.rows("SELECT price, count(*) FROM result GROUP BY 1"))
        assert prices == {1: 5 * (_BATCHES - done), 2: 5 * done} or (done == 0 and prices == {1: 5 * _BATCHES}), point
        assert pipelines.one("SELECT count(*) FROM result") == 5 * _BATCHES, point
        assert pipelines.one("SELECT count(*) FROM etl.dead_letter WHERE status = 'pending'") == _BATCHES, point
    garage.driver().killed_at(wanted, POINTS[-1])
    assert garage.driver(another=False).run(wanted).exit_code == 0

    assert pipelines.rows("SELECT id, price, count(*) FROM result GROUP BY 1, 2 ORDER BY 1") == [
        (n, 2, 1) for n in range(5 * _BATCHES)
    ]
    # Each batch once: in the ledger, with its rows.
    books = (
        "SELECT count(*), count(DISTINCT batch_id), sum(written_rows)::int, sum(dead_lettered_rows)::int "
        "FROM etl.batch_tracker WHERE pipeline_id LIKE 'orders/reprocess/%'"
    )
    assert pipelines.rows(books) == [(_BATCHES, _BATCHES, 5 * _BATCHES, _BATCHES)]
    assert pipelines.one("SELECT count(*) FROM etl.batch_reprocessed") == _BATCHES
    assert pipelines.rows("SELECT status, count(*) FROM etl.dead_letter GROUP BY 1 ORDER BY 1") == [
        ("discarded", _BATCHES),
        ("pending", _BATCHES),
    ]
