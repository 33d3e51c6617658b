"""kill -9 of the whole driver at every fault point × strategy × write mode: nothing lost, nothing twice.

The kills form chains: each driver recovers from the last kill and runs into the next point. After each kill and at the
end target, dead letters and ledger must be what DuckDB finds in the files of the committed batches.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pytest
from drivers import Garage
from pipeline_runs import Pipelines, aggregation, file_pipeline, write_lines
from test_redrive_crashes import POINTS as REDRIVE_POINTS
from test_replay_crashes import POINTS as REPLAY_POINTS
from test_reprocess_crashes import POINTS as REPROCESS_POINTS

from spark_jobs.faults import POINTS

WHOLE = bool(os.environ.get("WHOLE_MATRIX"))
"""With it every point is combined with every mode, also those that have nothing to do with writing."""
REFUSED = 1_000_000
_BEFORE = ("run.before_claim", "run.after_claim", "run.after_recovery", "batch.before_fence", "batch.after_identity")
_AFTER = ("batch.after_commit", "run.before_end")
_LETTERS = ("two_phase.before_letters_prepare", "two_phase.after_letters_prepare")
_OF_STRATEGY = {
    name: tuple(point for point in POINTS if point.startswith(f"{name}.") and point not in _LETTERS)
    for name in ("single", "staged", "two_phase")
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
        if self.refuses:
            # Not the first: only the second batch has rows that are refused.
            own.insert(1, "batch.before_second_look")
        # What comes before and after the writing is the same for every write mode.
        return [*_BEFORE, *own, *_AFTER] if self.mode == "append" or WHOLE else own

    @property
    def refuses(self) -> bool:
        """Whether the target refuses rows: not the sums of an aggregation."""
        return self.mode != "overwrite"

    @property
    def table(self) -> str:
        if not self.refuses:
            return "CREATE TABLE result (id int, total bigint)"
        key = " PRIMARY KEY" if self.mode == "upsert" else ""
        return f"CREATE TABLE result (id int{key}, amount int CHECK (amount <> {REFUSED}))"

    def config(self, pipelines: Pipelines, inbox: Path) -> dict[str, Any]:
        load: dict[str, Any] = {"writeStrategy": self.strategy}
        streaming: dict[str, Any] = {}
        transforms = []
        if self.mode == "upsert":
            load |= {"writeMode": "upsert", "keys": "id"}
        if self.mode == "overwrite":
            load |= {"writeMode": "overwrite"}
            streaming = {"outputMode": "complete"}
            transforms = [aggregation(groupByColumns="id", aggregations="amount:sum:total")]
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


# Results of an aggregation in two phases: the driver prepares the dead letters beside the parts.
_WINDOWS = (*_LETTERS, "two_phase.after_decision", "recovery.before_finish", "two_phase.between_commits")
# Between the copy of the dead letters and the commit of the batch that has them.
_COPIED = ("letters.after_publish",)
MATRIX: dict[str, Sequence[str]] = {
    **{f"{combination.strategy} {combination.mode}": combination.points for combination in COMBINATIONS},
    "two_phase windows": _WINDOWS,
    "replay": REPLAY_POINTS,
    "reprocess": REPROCESS_POINTS,
    "redrive": REDRIVE_POINTS,
    "single, letters copied": _COPIED,
}
"""The points at which a kill is made, for each strategy with each mode."""


def test_every_point_is_in_the_matrix() -> None:
    assert {point for points in MATRIX.values() for point in points} == set(POINTS)


@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda c: f"{c.strategy}-{c.mode}")
def test_a_kill_at_every_point_loses_nothing_and_doubles_nothing(
    pipelines: Pipelines, garage: Garage, combination: Combination
) -> None:
    inbox = pipelines.folder / "in box"
    config = combination.config(pipelines, inbox)
    with pipelines.database.connect(autocommit=True) as conn:
        conn.execute(combination.table)
    for number, point in enumerate(combination.points):
        _add_files(inbox, number, refused=combination.refuses)
        garage.driver().killed_at(config, point)
        _check_between(pipelines, combination, inbox, point)
    _add_files(inbox, len(combination.points), refused=combination.refuses)
    answer = garage.driver(another=False).run(config)
    assert (answer.exit_code, answer.error) == (0, "")
    assert _committed(pipelines) == len(combination.points) + 1
    _check_books(pipelines, combination, inbox, "the end")
    _check_nothing_is_left(pipelines)


def test_a_kill_between_results_and_dead_letters_parts_them_never(pipelines: Pipelines, garage: Garage) -> None:
    inbox = pipelines.folder / "in box"
    config = file_pipeline(
        "windows",
        inbox,
        pipelines.checkpoints,
        schema="id INT, at TIMESTAMP",
        transforms=[aggregation(windowDuration="1 hour", aggregations="id:sum:total")],
        load={"writeStrategy": "two_phase"},
        streaming={"outputMode": "append", "watermark": {"eventTimeColumn": "at", "delayThreshold": "1 second"}},
        options={"maxFilesPerTrigger": "1"},
    )
    hours = len(_WINDOWS) + 1
    for hour in range(hours):
        rows = [{"id": hour * 10 + number, "at": f"2026-01-01T{hour:02}:30:00Z"} for number in range(5)]
        write_lines(inbox / f"{hour:03}.json", *rows, f"not json {hour}")
        if hour < len(_WINDOWS):
            garage.driver().killed_at(config, _WINDOWS[hour])
    answer = garage.driver(another=False).run(config)
    assert (answer.exit_code, answer.error) == (0, "")
    # The last hour's window is open: it waits in Spark's state.
    assert pipelines.rows("SELECT total FROM result ORDER BY window_start") == [
        (sum(range(hour * 10, hour * 10 + 5)),) for hour in range(hours - 1)
    ]
    letters = pipelines.rows("SELECT convert_from(raw_value, 'UTF8') FROM etl.dead_letter ORDER BY 1")
    assert [text for (text,) in letters] == [f"not json {hour}" for hour in range(hours)]
    books = "SELECT sum(source_rows), sum(dead_lettered_rows), sum(written_rows) FROM etl.batch_tracker"
    assert pipelines.rows(books) == [(6 * hours, hours, hours - 1)]
    _check_nothing_is_left(pipelines)


def test_a_kill_behind_the_copy_of_the_letters_leaves_one_set_of_files(pipelines: Pipelines, garage: Garage) -> None:
    inbox, copies = pipelines.folder / "in box", pipelines.folder / "letters"
    config = {
        **file_pipeline("copied", inbox, pipelines.checkpoints, schema="id INT, amount INT"),
        "errorHandlingConfig": {"dlqConfig": {"dlqType": "files", "bucketPath": str(copies), "partitionBy": "hour"}},
    }
    for number, point in enumerate(_COPIED):
        write_lines(inbox / f"{number}.json", {"id": number, "amount": 1}, "not json", "not json")
        garage.driver().killed_at(config, point)
        before = _copied(copies)
        assert len(before) == 2 * (number + 1)
        assert pipelines.one("SELECT count(*) FROM etl.dead_letter") == 2 * number
    answer = garage.driver(another=False).run(config)
    assert (answer.exit_code, answer.error) == (0, "")
    assert _copied(copies) == before
    assert pipelines.rows("SELECT dead_letter_id::text FROM etl.dead_letter ORDER BY 1") == before
    assert pipelines.rows("SELECT id FROM result ORDER BY 1") == [(number,) for number in range(len(_COPIED))]
    _check_nothing_is_left(pipelines)


def _copied(folder: Path) -> list[Any]:
    with duckdb.connect() as duck:
        query = f"SELECT dead_letter_id FROM read_parquet('{folder}/**/*.parquet', hive_partitioning=true) ORDER BY 1"
        return duck.execute(query).fetchall()


def _check_nothing_is_left(pipelines: Pipelines) -> None:
    assert pipelines.rows("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()") == []
    assert pipelines.rows("SELECT relname FROM pg_class WHERE relname LIKE 'stage\\_%' AND relkind = 'r'") == []
    leftover = "SELECT count(*) FROM etl.batch_decision UNION ALL SELECT count(*) FROM etl.batch_part"
    assert pipelines.rows(leftover) == [(0,), (0,)]


def _add_files(inbox: Path, number: int, *, refused: bool) -> None:
    for half in range(2):
        first = number * 10 + half * 5
        rows = [{"id": (first + i) % 37, "amount": first + i} for i in range(5)]
        # Every other batch is written a second time, with care.
        if refused and half and number % 2:
            rows.insert(2, {"id": 1000 + number, "amount": REFUSED})
        write_lines(inbox / f"{number:03}-{half}.json", *rows, f"not json {number}-{half}")


def _check_between(pipelines: Pipelines, combination: Combination, inbox: Path, point: str) -> None:
    """Right after a kill: whoever looks at the target now sees whole batches, the ones in the ledger."""
    if not pipelines.one("SELECT count(*) FROM etl.batch_decision"):
        # A decided batch becomes visible part by part, and is in the ledger with the last one.
        _check_books(pipelines, combination, inbox, point)


def _committed(pipelines: Pipelines) -> int:
    return int(pipelines.one("SELECT count(*) FROM etl.batch_tracker"))


def _check_books(pipelines: Pipelines, combination: Combination, inbox: Path, point: str) -> None:
    """Target, dead letters and ledger are what DuckDB finds in the files of the committed batches: two in each."""
    files = sorted(map(str, inbox.iterdir()))[: 2 * _committed(pipelines)]
    expected = Expected.of(files)
    found = pipelines.rows("SELECT * FROM result ORDER BY 1, 2")
    assert found == getattr(expected, combination.mode), point
    letters = pipelines.rows(
        "SELECT convert_from(raw_value, 'UTF8') FROM etl.dead_letter WHERE stage = 'parse' ORDER BY 1"
    )
    assert [text for (text,) in letters] == expected.bad, point
    letters = pipelines.rows(
        "SELECT (parsed_row->>'id')::int FROM etl.dead_letter WHERE stage = 'write' AND sqlstate = '23514' ORDER BY 1"
    )
    assert [key for (key,) in letters] == expected.refused, point
    books = pipelines.rows(
        "SELECT coalesce(sum(source_rows), 0), coalesce(sum(dead_lettered_rows), 0), "
        "coalesce(sum(write_dead_lettered_rows), 0) FROM etl.batch_tracker"
    )
    bad, refused = len(expected.bad), len(expected.refused)
    assert books == [(len(expected.append) + bad + refused, bad, refused)], point


@dataclass(frozen=True)
class Expected:
    """What DuckDB finds in files, for each write mode."""

    append: list[tuple[int, int]]
    upsert: list[tuple[int, int]]
    overwrite: list[tuple[int, int]]
    refused: list[int]
    bad: list[str]

    @classmethod
    def of(cls, files: list[str]) -> Expected:
        if not files:
            return cls([], [], [], [], [])
        with duckdb.connect() as duck:
            duck.execute(
                "CREATE TABLE line AS SELECT filename, unnest(lines) AS line, generate_subscripts(lines, 1) AS number "
                "FROM (SELECT filename, string_split(rtrim(content, chr(10)), chr(10)) AS lines FROM read_text($1))",
                [files],
            )
            duck.execute(
                "CREATE TABLE good AS SELECT (line->>'id')::int AS id, (line->>'amount')::int AS amount, "
                "filename || lpad(number::text, 9, '0') AS place FROM line WHERE json_valid(line)"
            )
            duck.execute(f"CREATE TABLE refused AS SELECT id FROM good WHERE amount = {REFUSED}")
            duck.execute(f"DELETE FROM good WHERE amount = {REFUSED}")

            def ask(query: str) -> list[Any]:
                return duck.execute(query).fetchall()

            return cls(
                ask("SELECT id, amount FROM good ORDER BY 1, 2"),
                ask("SELECT id, arg_max(amount, place) FROM good GROUP BY 1 ORDER BY 1"),
                ask("SELECT id, sum(amount)::bigint FROM good GROUP BY 1 ORDER BY 1"),
                [key for (key,) in ask("SELECT id FROM refused ORDER BY 1")],
                [line for (line,) in ask("SELECT line FROM line WHERE NOT json_valid(line) ORDER BY 1")],
            )
