"""Who writes, where to, and what is left when a batch fails late."""

from __future__ import annotations

from pathlib import Path

import pytest
from pipeline_runs import Pipelines, aggregation, file_pipeline, write_lines

from spark_jobs.contracts.errors import ConfigError, TargetMismatchError, TooManyDeadLettersError

PREPARED = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"


@pytest.mark.parametrize(
    ("strategy", "load"),
    [
        ("single", {}),
        ("staged", {}),
        ("two_phase", {}),
        ("single", {"writeMode": "upsert", "keys": "id"}),
        ("staged", {"writeMode": "upsert", "keys": "id"}),
    ],
)
def test_everything_is_written_by_the_role(
    pipelines: Pipelines, inbox: Path, role: str, strategy: str, load: dict[str, str]
) -> None:
    config = file_pipeline(
        "role", inbox, pipelines.checkpoints, schema="id INT", load={"writeStrategy": strategy, "role": role, **load}
    )
    for number in range(2):
        write_lines(inbox / f"{number}.json", {"id": number}, "broken")
    pipelines.finish(config)
    assert pipelines.rows("SELECT tableowner FROM pg_tables WHERE tablename = 'result'") == [(role,)]
    assert pipelines.rows("SELECT id FROM result ORDER BY 1") == [(0,), (1,)]
    assert pipelines.one("SELECT count(*) FROM etl.dead_letter") == 2
    assert pipelines.rows("SELECT relname FROM pg_class WHERE relname LIKE 'stage\\_%' AND relkind = 'r'") == []
    assert pipelines.rows(PREPARED) == []


def test_a_role_that_is_not_there_is_named(pipelines: Pipelines, inbox: Path) -> None:
    write_lines(inbox / "0.json", {"id": 1})
    ended = pipelines.run(file_pipeline("role", inbox, pipelines.checkpoints, schema="id INT", load={"role": "Nobody"}))
    assert isinstance(ended.error, ConfigError)
    assert "load.role 'Nobody' cannot be used" in str(ended.error)
    assert 'role "Nobody" does not exist' in str(ended.error)


def test_an_aggregations_dead_letters_are_staged_by_the_role(pipelines: Pipelines, inbox: Path, role: str) -> None:
    config = file_pipeline(
        "role",
        inbox,
        pipelines.checkpoints,
        schema="id INT",
        transforms=[aggregation(groupByColumns="id", aggregations="*:count:n")],
        load={"writeStrategy": "single", "writeMode": "upsert", "keys": "id", "role": role},
        streaming={"outputMode": "update"},
    )
    write_lines(inbox / "0.json", {"id": 1}, {"id": 1}, "broken")
    pipelines.finish(config)
    assert pipelines.rows("SELECT id, n FROM result") == [(1, 2)]
    assert pipelines.one("SELECT count(*) FROM etl.dead_letter") == 1


@pytest.mark.parametrize(
    "table",
    [
        "CREATE UNLOGGED TABLE result (id int)",
        "CREATE TABLE result (id int) PARTITION BY RANGE (id); "
        "CREATE UNLOGGED TABLE part PARTITION OF result FOR VALUES FROM (0) TO (10)",
    ],
)
def test_a_table_that_a_crash_would_empty_is_no_target(pipelines: Pipelines, inbox: Path, table: str) -> None:
    with pipelines.database.connect(autocommit=True) as conn:
        conn.execute(table)
    write_lines(inbox / "0.json", {"id": 1})
    ended = pipelines.run(file_pipeline("unsafe", inbox, pipelines.checkpoints, schema="id INT"))
    assert isinstance(ended.error, TargetMismatchError)
    assert "is not logged" in ended.error.found


def test_a_batch_that_fails_after_its_parts_were_prepared_leaves_none(pipelines: Pipelines, inbox: Path) -> None:
    for number in range(2):
        write_lines(inbox / f"{number}.json", {"id": number}, *["broken"] * 200)
    config = file_pipeline("late", inbox, pipelines.checkpoints, schema="id INT", load={"writeStrategy": "two_phase"})
    ended = pipelines.run(config)
    assert isinstance(ended.error, TooManyDeadLettersError), ended.error
    assert pipelines.rows(PREPARED) == []
    assert pipelines.one("SELECT count(*) FROM result") == 0
