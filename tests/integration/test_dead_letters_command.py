"""``etl-pipeline dead-letters``: what people and scripts see, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import VARIABLE, Pipelines, file_pipeline, write_lines

from sandbox.spark_cluster import spark_environ
from spark_jobs.contracts.exit_codes import ExitCode


@pytest.fixture
def orders(pipelines: Pipelines, inbox: Path) -> Pipelines:
    """A pipeline with two records that could not be read, and a row that the target refused."""
    pipelines.execute("CREATE TABLE result (id bigint CHECK (id < 100))")
    config = file_pipeline("orders", inbox, pipelines.checkpoints, schema="id BIGINT")
    write_lines(inbox / "1.json", {"id": 1}, '{"id": "[red]x[/red]"}', '{"id": "2"}', {"id": 500})
    pipelines.finish(config)
    return pipelines


def command(pipelines: Pipelines, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "spark_jobs.cli", "dead-letters", *words, "--connection", "warehouse"],
        env={**os.environ, **spark_environ(), VARIABLE: pipelines.database.airflow_uri, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def answer(pipelines: Pipelines, *words: str) -> Any:
    done = command(pipelines, *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_letters_are_listed_counted_shown_replayed_and_discarded(orders: Pipelines) -> None:
    listed = command(orders, "list")
    assert listed.returncode == 0, listed.stderr
    for words in ("MALFORMED_JSON", "CheckViolation", "pending", "orders"):
        assert words in listed.stdout
    letters = answer(orders, "list", "--pipeline", "orders", "--stage", "parse")
    assert {letter["error_class"] for letter in letters} == {"MALFORMED_JSON"}
    assert [(c["stage"], c["letters"]) for c in answer(orders, "count")] == [("parse", 2), ("write", 1)]

    (refused,) = answer(orders, "list", "--error-class", "CheckViolation")
    shown = answer(orders, "show", refused["dead_letter_id"])
    assert (shown["sqlstate"], shown["constraint_name"], shown["parsed_row"]) == (
        "23514",
        "result_id_check",
        {"id": 500},
    )
    markup = next(letter["dead_letter_id"] for letter in letters)
    assert command(orders, "show", markup).returncode == 0

    choice = ("--pipeline", "orders", "--stage", "parse", "--patch", "_value=replace(_value, '\"2\"', '2')")
    would = answer(orders, "replay", *choice, "--dry-run")
    assert (would["dry_run"], would["replayed"], would["failed"]) == (True, 1, 1)
    done = command(orders, "replay", *choice)
    assert done.returncode == 0, done.stderr
    assert "2 dead letters of orders" in done.stdout
    assert orders.rows("SELECT id FROM result ORDER BY id") == [(1,), (2,)]
    assert [(r["dry_run"], r["state"]) for r in answer(orders, "replays")] == [(False, "finished"), (True, "finished")]

    given_up = answer(orders, "discard", "--pipeline", "orders", "--all", "--reason", "test", "--by", "ada")
    assert given_up == {"discarded": 2, "by": "ada", "reason": "test"}
    assert answer(orders, "list") == []
    assert len(answer(orders, "list", "--status", "any")) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("replay", "--pipeline", "orders"), "--all for every one"),
        (("discard", "--pipeline", "orders", "--reason", "x"), "--all for every one"),
        (("discard", "--pipeline", "orders", "--all", "--reason", " "), "for a reason"),
        (("replay", "--pipeline", "orders", "--id", "7"), "a UUID"),
        (("list", "--since", "yesterday"), "ISO 8601"),
        (("replay", "--pipeline", "nobody", "--all"), "'nobody' is not in the ledger"),
        (("replay", "--pipeline", "orders", "--all", "--mode", "again"), "reprocess"),
        (("show", "0189aa3e-0000-7000-8000-000000000000"), "There is no dead letter"),
    ],
)
def test_what_it_refuses(migrated: Pipelines, words: tuple[str, ...], said: str) -> None:
    done = command(migrated, *words)
    assert done.returncode == ExitCode.CONFIG_INVALID, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def migrated(database: Any, tmp_path: Path) -> Pipelines:
    """A ledger without any pipeline."""
    from spark_jobs.contracts.tracker.migrate import migrate

    with database.connect(autocommit=True) as conn:
        migrate(conn, "etl")
    return Pipelines(database, tmp_path)


def test_a_replay_that_chooses_nothing_says_so(orders: Pipelines) -> None:
    done = command(orders, "replay", "--pipeline", "orders", "--error-class", "NO_SUCH_CLASS")
    assert done.returncode == 0, done.stderr
    assert "no letter was chosen" in done.stdout
