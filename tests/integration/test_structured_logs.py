"""``etl-pipeline run --log-format json``: every line is an object that says whose it is, and none has the password."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from driver_processes import QUICK, java_environ
from one_terminal import MARK
from pipeline_runs import file_pipeline, select, write_lines

from sandbox.postgres import PostgresServer
from spark_jobs.contracts.exit_codes import ExitCode
from spark_jobs.contracts.redaction import forms

# Nothing that filters look for, and every character that some quoting changes.
ODD = "Zq7'x\"Q\\z%41 /blüe☃@h#r?&"
DATABASE = "test_structured_logs"
# What Java says before it has a log.
OF_JAVA = ("WARNING: Using incubator modules", "Picked up ", "NOTE: Picked up ")


@dataclass(frozen=True)
class Said:
    """What one command said: its exit code, standard error, and the log file."""

    code: int
    err: str
    log: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Standard error's objects; anything else there is Java's."""
        lines = self.err.splitlines()
        assert not [line for line in lines if not line.startswith(("{", *OF_JAVA))]
        return [json.loads(line) for line in lines if line.startswith("{")]

    @property
    def logged(self) -> list[dict[str, Any]]:
        """The log file's objects; every line is one."""
        return [json.loads(line) for line in self.log.splitlines()]


@pytest.fixture(scope="module")
def said(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Said]]:
    """Commands in one process, one after the other: the first one's log file has the JVM's lines of all."""
    folder = tmp_path_factory.mktemp("structured logs")
    postgres_server.create_database(DATABASE)
    with postgres_server.connect(DATABASE, autocommit=True) as conn:
        conn.execute("DROP ROLE IF EXISTS odd")
        conn.execute(b"CREATE ROLE odd SUPERUSER LOGIN PASSWORD '%s'" % ODD.replace("'", "''").encode())
    server = postgres_server.airflow_uri(DATABASE).partition("@")[2]
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_CONN_")},
        **java_environ(),
        "PYSPARK_PYTHON": sys.executable,
        "ETL_LOG_FORMAT": "json",
        "ETL_LOG_LEVEL": "debug",
        "AIRFLOW_CONN_WAREHOUSE": f"postgres://odd:{quote(ODD, safe='')}@{server}",
        "AIRFLOW_CONN_STRANGER": f"postgres://odd:{quote(ODD[::-1], safe='')}@{server}",
    }
    commands = list(_commands(folder))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("one_terminal.py"))],
        input=json.dumps(commands),
        env=environ,
        capture_output=True,
        text=True,
        timeout=400,
        check=True,
    )
    parts = dict(_parts(done.stderr))
    logs = {name: folder / f"{name}.log" for name in parts}
    yield {name: Said(*parts[name], log.read_text() if log.exists() else "") for name, log in logs.items()}
    postgres_server.drop_database(DATABASE)
    with postgres_server.connect("postgres", autocommit=True) as conn:
        conn.execute("DROP ROLE odd")


def _commands(folder: Path) -> Iterator[tuple[str, list[str]]]:
    # The password stands in the data as well: what shows a row would show it.
    write_lines(folder / "bad" / "0.json", {"id": 0, "name": f"{ODD}\n{{}}"})
    for number in (0, 1):
        write_lines(folder / "good" / f"{number}.json", {"id": number + 1, "name": ODD})
    yield _command(folder, "failing", "bad", transforms=[select(id="1 / id", name="name")])
    yield _command(folder, "good", "good", options={"maxFilesPerTrigger": "1"})
    write_lines(folder / "odd" / "0.json", "{ no JSON")
    yield _command(folder, "lettered", "odd")
    replay = ["dead-letters", "replay", "--connection", "warehouse", *QUICK, "--all", "--pipeline"]
    yield "replay", [*replay, "lettered"]
    yield "no-replay", [*replay, "nobody"]
    yield _command(folder, "stranger", "good", load={"credentialId": "stranger"})
    name, words = _command(folder, "plain", "bad", transforms=[select(id="1 / id", name="name")])
    yield name, [*words, "--log-format", "plain", "--log-level", "warning"]


def _command(folder: Path, name: str, data: str, **parts: Any) -> tuple[str, list[str]]:
    load = {"table": f"public.{name}", **parts.pop("load", {})}
    document = file_pipeline(
        name, folder / data, folder / "checkpoints", schema="id INT, name STRING", load=load, **parts
    )
    # A row on which an expression fails would be a dead letter, and the run would go on.
    document["errorHandlingConfig"] = {"failFast": "transforms" in parts}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(document))
    return name, ["run", str(path), *QUICK, "--log-file", str(folder / f"{name}.log")]


def _parts(output: str) -> Iterator[tuple[str, tuple[int, str]]]:
    text: list[str] = []
    for line in output.splitlines():
        if line.startswith(MARK):
            name, code = line.removeprefix(MARK).split()
            yield name, (0 if code == "None" else int(code), "\n".join(text))
            text = []
        else:
            text.append(line)


def test_every_line_has_the_run(said: dict[str, Said]) -> None:
    good = said["good"]
    assert good.code == ExitCode.FINISHED, good.err
    assert good.lines == good.logged
    assert {line["pipeline"] for line in good.lines} == {"good"}
    assert len({line["run"] for line in good.lines}) == 1
    assert {"ts", "level", "logger"} <= set.intersection(*(set(line) for line in good.lines))
    started = [line["event"] for line in good.lines].index("run_started")
    assert {line["epoch"] for line in good.lines[started:]} == {1}


def test_from_its_start_to_its_commit_a_batch_is_on_every_line(said: dict[str, Said]) -> None:
    lines = said["good"].lines
    events = [line.get("event") for line in lines]
    [query] = {line["query"] for line in lines if "query" in line}
    for batch in (0, 1):
        first = next(n for n, line in enumerate(lines) if events[n] == "batch_started" and line["batch"] == batch)
        last = next(n for n, line in enumerate(lines) if events[n] == "batch_committed" and line["batch"] == batch)
        assert {(line["query"], line["batch"]) for line in lines[first : last + 1]} == {(query, batch)}
        assert (lines[last]["rows_in"], lines[last]["written"], lines[last]["strategy"]) == (1, 1, "single")
        assert isinstance(lines[last]["seconds"], float)
    assert "batch" not in lines[-1]
    assert (lines[-1]["event"], lines[-1]["query"]) == ("run_ended", query)


def test_runs_one_after_the_other_do_not_mix(said: dict[str, Said]) -> None:
    runs = {name: {line["run"] for line in said[name].lines} for name in ("failing", "good", "stranger")}
    assert [len(run) for run in runs.values()] == [1, 1, 1]
    assert len(set.union(*runs.values())) == 3
    of_jvm = [line for line in said["failing"].logged if not line["logger"].startswith("etl.")]
    for line in of_jvm:
        if "run" in line and line["pipeline"] in runs:
            assert {line["run"]} == runs[line["pipeline"]], line


def test_a_trace_is_within_one_object(said: dict[str, Said]) -> None:
    failing = said["failing"]
    assert failing.code == ExitCode.DATA_ERROR, failing.err
    [failed] = [line for line in failing.lines if line.get("event") == "run_failed"]
    assert failed["exception"]["type"] == "DeadLetterRefusedError"
    assert failed["exception"]["trace"].startswith("Traceback (most recent call last):\n")
    assert "spark_jobs.contracts.errors.DeadLetterRefusedError: " in failed["exception"]["trace"]
    [error] = [line for line in failing.lines if line.get("event") == "error"]
    assert (error["exit_code"], error["run"], "1 / id" in error["found"]) == (11, failed["run"], True)
    [batch] = [line for line in failing.lines if line.get("event") == "batch_failed"]
    assert (batch["batch"], batch["query"]) == (0, failed["query"])


def test_an_executors_lines_have_the_ids(said: dict[str, Said]) -> None:
    """Spark takes them to its tasks, as log4j's MDC."""
    failing = said["failing"]
    run = failing.lines[-1]["run"]
    lost = [line for line in failing.logged if line["logger"] == "org.apache.spark.executor.Executor"]
    assert {(line["pipeline"], line["run"], line["batch"]) for line in lost[:1]} == {("failing", run, "0")}
    assert lost[0]["query"]
    assert "DIVIDE_BY_ZERO" in lost[0]["exception"]["trace"]
    plain = {(line["pipeline"], line["batch"]) for line in lost} - {("failing", "0")}
    assert plain == {("plain", "0")}


def test_a_refused_login_is_an_object_with_the_run(said: dict[str, Said]) -> None:
    stranger = said["stranger"]
    assert stranger.code == ExitCode.DATABASE_UNREACHABLE
    assert {(line["pipeline"], "run" in line) for line in stranger.lines} == {("stranger", True)}
    assert stranger.lines[-1]["event"] == "error"


def test_a_replays_lines_have_its_ids(said: dict[str, Said]) -> None:
    replay = said["replay"]
    [settled] = [line for line in replay.lines if line.get("event") == "letters_settled"]
    assert (settled["batch"], settled["letters"], settled["failed"]) == (0, 1, 1)
    assert settled["pipeline"] == f"lettered/replay/{settled['query']}"
    assert {line["run"] for line in replay.lines} == {settled["run"]}


def test_a_refused_replay_is_an_object(said: dict[str, Said]) -> None:
    refused = said["no-replay"]
    assert refused.code != ExitCode.FINISHED
    assert refused.lines[-1]["event"] == "error"
    assert "nobody" in refused.lines[-1]["what"] + refused.lines[-1]["found"]


def test_plain_lines_have_the_ids_and_cannot_be_forged(said: dict[str, Said]) -> None:
    plain = said["plain"]
    assert plain.code == ExitCode.DATA_ERROR, plain.err
    [failed] = [line for line in plain.log.splitlines() if "event=run_failed" in line]
    for name in ("pipeline=plain", "run=", "epoch=1", "query="):
        assert f" {name}" in failed
    # The option says warning: INFO is in the file only.
    assert "event=run_started" not in plain.err
    assert "event=run_started" in plain.log
    own = [line for line in plain.log.splitlines() if not line.startswith("    ")]
    assert not [line for line in own if line.startswith(("Traceback", "{}", "pyspark."))]


def test_the_password_is_in_no_line(said: dict[str, Said]) -> None:
    # What would have shown it is there: the row that failed.
    assert '"id":0' in said["failing"].lines[-1]["found"]
    for name, one in said.items():
        for form in {*forms(ODD), *forms(ODD[::-1]), "Zq7", "7qZ", "h#r", "bl\\u00fc"}:
            assert form not in one.err, (name, form)
            # Spark's own lines quote the error that it was told, and with it the row: docs/guides/logging.md.
            told = [line for line in one.log.splitlines() if '"logger":"org.apache.' in line or " org.apache." in line]
            assert form not in one.log or form in "".join(told), (name, form)


@pytest.mark.parametrize("command", ["spark_jobs.cli", "spark_jobs.run_pipeline"])
def test_an_error_without_a_word_is_an_object_too(
    command: str, database: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    name, words = _command(tmp_path, "early", "nowhere")
    faults = tmp_path / "faults"
    faults.write_text("run.before_claim fail\n")
    words = words if command == "spark_jobs.cli" else [words[1], "--log-format", "json"]
    done = subprocess.run(
        [sys.executable, "-m", command, *words],
        env={
            **os.environ,
            "AIRFLOW_CONN_WAREHOUSE": database.airflow_uri,
            "ETL_FAULTS_FILE": str(faults),
            "ETL_LOG_FORMAT": "json",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == ExitCode.UNEXPECTED, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    [failed] = [line for line in lines if line.get("event") == "driver_failed"]
    assert failed["exception"]["type"] == "OSError"
    assert {line["pipeline"] for line in lines} == {name}


@pytest.mark.parametrize("variable", ["ETL_LOG_FORMAT", "ETL_LOG_LEVEL"])
@pytest.mark.parametrize("command", [["spark_jobs.cli", "run"], ["spark_jobs.run_pipeline"]])
def test_a_choice_that_there_is_not_is_refused(command: list[str], variable: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command, str(tmp_path / "none.json")],
        env={**os.environ, variable: "loud"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == ExitCode.CONFIG_INVALID
    assert done.stderr.startswith(f"Error: {variable} ")
