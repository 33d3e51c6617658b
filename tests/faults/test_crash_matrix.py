"""kill -9 of the whole driver at every fault point × strategy × write mode: nothing lost, nothing twice.

The kills form chains: each driver recovers from the last kill and runs into the next point. After each kill the target
must be what the ledger says; at the end both must be what DuckDB finds in the input files.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pytest
from drivers import Garage
from pipeline_runs import Pipelines, aggregation, file_pipeline, write_lines

from spark_jobs.faults import POINTS

WHOLE = bool(os.environ.get("WHOLE_MATRIX"))
"""With it every point is combined with every mode, also those that have nothing to do with writing."""
_BEFORE = ("run.after_claim", "run.after_recovery", "batch.before_fence", "batch.after_identity")
_AFTER = ("batch.after_commit", "run.before_end")
_OF_STRATEGY = {
    name: tuple(point for point in POINTS if point.startswith(f"{name}.")) for name in ("single", "staged", "two_phase")
}
# A recovery's own points lie behind the crash that makes it recover.
_THEN = {
    "two_phase.before_decision": "recovery.before_rollback",
    "two_phase.after_decision": "recovery.before_finish",
}


@dataclass(frozen=True)
class Combination:
    strategy: str
    mode: str

    @property
    def points(self) -> list[str]:
        own = [then for point in _OF_STRATEGY[self.strategy] for then in (point, _THEN.get(point, "")) if then]
        # What comes before and after the writing is the same for every write mode.
        return [*_BEFORE, *own, *_AFTER] if self.mode == "append" or WHOLE else own

    def config(self, pipelines: Pipelines, inbox: Path) -> dict[str, Any]:
        load: dict[str, Any] = {"writeStrategy": self.strategy}
        streaming: dict[str, Any] = {}
        transforms = []
        if self.mode == "upsert":
            load |= {"writeMode": "upsert", "keys": "id"}
        if self.mode == "overwrite":
            load |= {"writeMode": "overwrite"}
            streaming = {"outputMode": "complete"}
            transforms = [aggregation(groupByColumns="id", aggregations="amount:sum")]
        return file_pipeline(
            "matrix",
            inbox,
            pipelines.checkpoints,
            schema="id INT, amount INT",
            transforms=transforms,
            load=load,
            streaming=streaming,
            options={"maxFilesPerTrigger": "2"},
        )


COMBINATIONS = [
    *(Combination(strategy, mode) for strategy in ("single", "staged") for mode in ("append", "upsert", "overwrite")),
    Combination("two_phase", "append"),
]


def test_every_point_is_in_the_matrix() -> None:
    assert {point for combination in COMBINATIONS for point in combination.points} == set(POINTS)


@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda c: f"{c.strategy}-{c.mode}")
def test_a_kill_at_every_point_loses_nothing_and_doubles_nothing(
    pipelines: Pipelines, garage: Garage, combination: Combination
) -> None:
    inbox = pipelines.folder / "in box"
    config = combination.config(pipelines, inbox)
    for number, point in enumerate(combination.points):
        _add_files(inbox, number)
        garage.driver().killed_at(config, point)
        _check_against_ledger(pipelines, combination, point)
    _add_files(inbox, len(combination.points))
    answer = garage.driver(another=False).run(config)
    assert (answer.exit_code, answer.error) == (0, "")
    _check_against_files(pipelines, combination, inbox)


def _add_files(inbox: Path, number: int) -> None:
    for half in range(2):
        first = number * 10 + half * 5
        rows = [{"id": (first + i) % 37, "amount": first + i} for i in range(5)]
        write_lines(inbox / f"{number:03}-{half}.json", *rows, f"not json {number}-{half}")


def _check_against_ledger(pipelines: Pipelines, combination: Combination, point: str) -> None:
    if pipelines.one("SELECT to_regclass('public.result') IS NULL"):
        return
    decided = pipelines.one("SELECT count(*) FROM etl.batch_decision")
    if combination.mode == "append" and not decided:
        [(there, told)] = pipelines.rows(
            "SELECT (SELECT count(*) FROM result), (SELECT coalesce(sum(written_rows), 0) FROM etl.batch_tracker)"
        )
        assert there == told, point
    [(letters, told)] = pipelines.rows(
        "SELECT (SELECT count(*) FROM etl.dead_letter), "
        "(SELECT coalesce(sum(dead_lettered_rows), 0) FROM etl.batch_tracker)"
    )
    assert letters == told or decided, point


def _check_against_files(pipelines: Pipelines, combination: Combination, inbox: Path) -> None:
    lines = duckdb.connect().execute(
        "SELECT filename, line, try_cast(line AS json) FROM (SELECT filename, "
        "unnest(string_split(rtrim(content, chr(10)), chr(10))) AS line FROM read_text(?)) ORDER BY filename",
        [str(inbox / "*.json")],
    )
    rows, bad = [], 0
    for _, line, parsed in lines.fetchall():
        if parsed is None:
            bad += 1
        else:
            rows.append(eval(line))
    if combination.mode == "append":
        expected = sorted((row["id"], row["amount"]) for row in rows)
        found = pipelines.rows("SELECT id, amount FROM result ORDER BY 1, 2")
    elif combination.mode == "upsert":
        expected = sorted({row["id"]: row["amount"] for row in rows}.items())
        found = pipelines.rows("SELECT id, amount FROM result ORDER BY 1")
    else:
        sums: dict[int, int] = {}
        for row in rows:
            sums[row["id"]] = sums.get(row["id"], 0) + row["amount"]
        expected = sorted(sums.items())
        found = pipelines.rows("SELECT id, amount_sum FROM result ORDER BY 1")
    assert found == expected
    source, letters = pipelines.rows("SELECT sum(source_rows), sum(dead_lettered_rows) FROM etl.batch_tracker")[0]
    assert (source, letters) == (len(rows) + bad, bad)
    assert pipelines.one("SELECT count(*) FROM etl.dead_letter") == bad
    assert pipelines.rows("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()") == []
    assert pipelines.rows("SELECT relname FROM pg_class WHERE relname LIKE 'stage\\_%' AND relkind = 'r'") == []
    leftover = "SELECT count(*) FROM etl.batch_decision UNION ALL SELECT count(*) FROM etl.batch_part"
    assert pipelines.rows(leftover) == [(0,), (0,)]
