"""What a replay cannot do is said before it begins, or leaves the letter with its reason; never a loop of crashes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import Pipelines, file_pipeline, write_lines
from single_letters import APART

from spark_jobs.contracts.errors import ConfigError, TargetMismatchError
from spark_jobs.contracts.replay import LetterFilter, ReplayRequest


@pytest.fixture
def orders(pipelines: Pipelines, inbox: Path) -> Pipelines:
    """A pipeline with one letter that could not be read."""
    config = file_pipeline("orders", inbox, pipelines.checkpoints, schema="id BIGINT")
    write_lines(inbox / "1.json", {"id": 1}, '{"id": "x"}')
    pipelines.finish(config)
    return pipelines


def test_a_pipeline_that_is_gone(orders: Pipelines) -> None:
    orders.execute(APART, "UPDATE etl.dead_letter_single SET pipeline_id = 'gone'")
    with pytest.raises(ConfigError, match=r"'gone' is not in the ledger.*pipelines with dead letters: gone"):
        orders.replay("gone")


def test_a_patch_of_a_column_that_is_not_there(orders: Pipelines) -> None:
    ended = orders.replay("orders", patch={"amuont": "1"})
    assert isinstance(ended.error, ConfigError)
    assert "amuont" in str(ended.error)
    assert orders.rows("SELECT status, attempt FROM etl.dead_letter") == [("pending", 1)]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("java_method('java.lang.System', 'getenv', 'AIRFLOW_CONN_WAREHOUSE')", "java_method"),
        ("concat('1', `reflect`/**/('java.lang.System', 'getProperty', 'user.dir'))", "reflect"),
        ("(SELECT max(value) FROM text.`/etc/hostname`)", "subquery"),
        ("CASE WHEN EXISTS (SELECT 1 FROM text.`/etc/hostname`) THEN 1 END", "subquery"),
        ("CASE WHEN id IN (SELECT value FROM text.`/etc/hostname`) THEN 1 END", "subquery"),
    ],
)
@pytest.mark.parametrize("column", ["id", "_value"])
def test_a_patch_reaches_no_further_than_the_row(orders: Pipelines, column: str, text: str, named: str) -> None:
    ended = orders.replay("orders", patch={column: text})
    assert isinstance(ended.error, ConfigError)
    assert named in str(ended.error)
    assert orders.rows("SELECT status, attempt FROM etl.dead_letter") == [("pending", 1)]


def test_a_repair_that_fails_on_a_record_says_so(orders: Pipelines) -> None:
    summary = orders.replayed("orders", patch={"_value": "CAST(CAST(_value AS INT) AS STRING)"})
    assert (summary.failed, summary.samples[0].new_error_class) == (1, "PATCH_FAILED")


def test_a_repair_that_fails_on_a_column_says_so(orders: Pipelines) -> None:
    repaired = {"_value": "replace(_value, '\"x\"', '2')", "id": "id DIV (id - 2)"}
    summary = orders.replayed("orders", patch=repaired)
    assert (summary.failed, summary.samples[0].new_stage) == (1, "transform")
    assert "patch.id" in summary.samples[0].new_message


def test_a_patch_that_is_no_sql(orders: Pipelines) -> None:
    ended = orders.replay("orders", patch={"id": "id +"})
    assert ended.error is not None
    assert not ended.error.retryable
    assert orders.rows("SELECT status, attempt FROM etl.dead_letter") == [("pending", 1)]


def test_a_record_that_cannot_be_read_any_more_keeps_its_bytes(orders: Pipelines) -> None:
    orders.execute(APART, r"UPDATE etl.dead_letter_single SET raw_value = '\x7b22ff'")
    summary = orders.replayed("orders")
    assert (summary.failed, summary.samples[0].new_error_class) == (1, "INVALID_UTF8")
    assert orders.one("SELECT raw_value FROM etl.dead_letter") == b'{"\xff'


def test_a_letter_that_has_lost_its_record_is_parked_in_the_end(orders: Pipelines) -> None:
    orders.execute(APART, "UPDATE etl.dead_letter_single SET raw_value = NULL")
    assert orders.replayed("orders", max_attempts=2).parked == 1
    assert orders.rows("SELECT status, error_class FROM etl.dead_letter") == [("parked", "NULL_VALUE")]


def test_a_target_that_has_changed(orders: Pipelines) -> None:
    orders.execute("ALTER TABLE result RENAME COLUMN id TO number")
    ended = orders.replay("orders", patch={"_value": "replace(_value, '\"x\"', '2')"})
    assert isinstance(ended.error, TargetMismatchError)
    assert orders.rows("SELECT status, attempt FROM etl.dead_letter") == [("pending", 1)]


def test_a_kept_row_that_was_made_for_other_columns(pipelines: Pipelines, inbox: Path) -> None:
    assert pipelines.spark is not None
    pipelines.spark.sql("SELECT id FROM range(3)").write.parquet(str(inbox / "p"))
    pipelines.execute("CREATE TABLE result (id bigint CHECK (id < 2), more bigint)")
    config = file_pipeline("rows", inbox / "p", pipelines.checkpoints, schema="id BIGINT", format="parquet")
    pipelines.finish(config)
    config["transforms"] = [{"transformType": "select", "parameters": {"columns": {"id": "id", "more": "id * 2"}}}]
    pipelines.finish(config)
    summary = pipelines.replayed("rows")
    assert (summary.taken, summary.failed) == (1, 1)
    assert pipelines.rows("SELECT error_class, parsed_row FROM etl.dead_letter") == [("OTHER_COLUMNS", {"id": 2})]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"mode": "resend"}, "mode"),
        ({"limit": 0}, "limit"),
        ({"rate": -1}, "rate"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"mode": "redrive", "patch": {"id": "1"}}, "columns to patch"),
    ],
)
def test_a_request_that_makes_no_sense(values: dict[str, Any], named: str) -> None:
    letters = LetterFilter.of(pipeline_id="orders")
    with pytest.raises(ConfigError, match=named):
        ReplayRequest.of(replay_id="0189aa3e-0000-7000-8000-000000000000", letters=letters, **values)


@pytest.mark.parametrize("status", ["replayed", "discarded", "replaying"])
def test_letters_that_came_home_or_were_given_up_are_not_replayed(status: str) -> None:
    letters = LetterFilter.of(pipeline_id="orders", statuses=(status,))
    with pytest.raises(ConfigError, match="pending or parked"):
        ReplayRequest.of(replay_id="0189aa3e-0000-7000-8000-000000000000", letters=letters)


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ConfigError, match="since"):
        LetterFilter.of(pipeline_id="orders", since="2026-11-22T06:00:00")
