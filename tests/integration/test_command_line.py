"""``etl-pipeline run`` says what is wrong in one message: an exit code for each kind, no trace on the terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from driver_processes import QUICK, java_environ
from one_terminal import MARK
from pipeline_runs import file_pipeline, select, write_lines

from sandbox.ports import free_port
from sandbox.postgres import PostgresServer
from spark_jobs.contracts.exit_codes import ExitCode


@dataclass(frozen=True)
class Answer:
    """What the terminal showed."""

    code: int
    out: str
    err: str


class Cases:
    """Pipelines that each have one fault, all in one folder and one database."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inbox = folder / "inbox"
        write_lines(self.inbox / "0.json", {"id": 1, "name": "a"}, {"id": 0, "name": "b"})
        self.commands: list[tuple[str, list[str]]] = []

    def pipeline(self, name: str, **parts: Any) -> dict[str, Any]:
        load = {"table": f"public.{name}", **parts.pop("load", {})}
        data = parts.pop("data", self.inbox)
        return file_pipeline(name, data, self.folder / "checkpoints", schema="id INT, name STRING", load=load, **parts)

    def add(self, name: str, document: dict[str, Any], *words: str) -> None:
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(document))
        self.commands.append((name, ["run", str(path), *QUICK, *words]))


@pytest.fixture(scope="module")
def answers(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Answer]]:
    cases = Cases(tmp_path_factory.mktemp("command line"))
    _add_cases(cases)
    name = "test_command_line"
    postgres_server.create_database(name)
    with postgres_server.connect(name, autocommit=True) as conn:
        conn.execute("CREATE TABLE missing_column (id int)")
        conn.execute("CREATE TABLE no_unique_key (id int, name text)")
    warehouse = postgres_server.airflow_uri(name)
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_CONN_")},
        **java_environ(),
        "PYSPARK_PYTHON": sys.executable,
        "AIRFLOW_CONN_WAREHOUSE": warehouse,
        "AIRFLOW_CONN_NOBODY": warehouse.replace(str(postgres_server.port), str(free_port())),
        "AIRFLOW_CONN_STRANGER": warehouse.replace(postgres_server.password, "not-this-one"),
    }
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("one_terminal.py"))],
        input=json.dumps(cases.commands),
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    yield _answers(done.stdout, done.stderr)
    postgres_server.drop_database(name)


def _add_cases(cases: Cases) -> None:
    unknown = cases.pipeline("unknown_key")
    unknown["load"]["tabel"] = "x"
    cases.add("unknown_key", unknown)
    cases.add("missing_connection", cases.pipeline("missing_connection", load={"credentialId": "absent"}))
    cases.add("unreachable_database", cases.pipeline("unreachable_database", load={"credentialId": "nobody"}))
    cases.add("wrong_password", cases.pipeline("wrong_password", load={"credentialId": "stranger"}))
    cases.add("missing_path", cases.pipeline("missing_path", data=cases.folder / "nowhere"))
    cases.add("missing_table", cases.pipeline("missing_table", load={"autoCreateTable": False}))
    cases.add("missing_column", cases.pipeline("missing_column", load={"autoCreateTable": False}))
    upsert = {"writeMode": "upsert", "keys": "id", "autoCreateTable": False}
    cases.add("no_unique_key", cases.pipeline("no_unique_key", load=upsert))
    cases.add("good", cases.pipeline("good"), "--json")
    foreign = cases.pipeline("foreign_checkpoint")
    foreign["streamingConfigJson"]["checkpointLocation"] = str(cases.folder / "checkpoints" / "good")
    cases.add("foreign_checkpoint", foreign)
    failing = cases.pipeline("failing_expression", transforms=[select(id="1 / id")])
    cases.add("failing_expression", failing | {"errorHandlingConfig": {"failFast": True}})


def _answers(out: str, err: str) -> dict[str, Answer]:
    shown = dict(_parts(out))
    return {name: Answer(code, shown[name][1], text) for name, (code, text) in _parts(err)}


def _parts(output: str) -> Iterator[tuple[str, tuple[int, str]]]:
    text: list[str] = []
    for line in output.splitlines():
        if line.startswith(MARK):
            name, code = line.removeprefix(MARK).split()
            yield name, (0 if code == "None" else int(code), "\n".join(text))
            text = []
        else:
            text.append(line)


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("unknown_key", ExitCode.CONFIG_INVALID, ["load.tabel", "table"]),
        ("missing_connection", ExitCode.CONNECTION_MISSING, ["AIRFLOW_CONN_ABSENT"]),
        ("unreachable_database", ExitCode.DATABASE_UNREACHABLE, ["127.0.0.1"]),
        ("wrong_password", ExitCode.DATABASE_UNREACHABLE, ["password"]),
        ("missing_path", ExitCode.SOURCE_UNREACHABLE, ["nowhere", "connectionParams.path"]),
        ("missing_table", ExitCode.TARGET_MISMATCH, ["missing_table", "autoCreateTable"]),
        ("missing_column", ExitCode.TARGET_MISMATCH, ["missing_column", "name"]),
        ("no_unique_key", ExitCode.TARGET_MISMATCH, ["no_unique_key", "id"]),
        ("foreign_checkpoint", ExitCode.CHECKPOINT_MISMATCH, ["'good'", "checkpointLocation"]),
        ("failing_expression", ExitCode.DATA_ERROR, ["1 / id", "transforms[0]"]),
    ],
)
def test_an_error_is_one_message(answers: dict[str, Answer], name: str, code: ExitCode, words: list[str]) -> None:
    answer = answers[name]
    assert answer.code == code, answer.err
    (message,) = [line for line in answer.err.splitlines() if line.startswith("Error: ")]
    assert all(word in answer.err for word in words), answer.err
    assert "What to do:" in answer.err or "did you mean" in answer.err
    assert message
    assert _traces(answer) == []
    assert "not-this-one" not in answer.out + answer.err


def test_a_good_run_ends_with_its_result(answers: dict[str, Answer]) -> None:
    good = answers["good"]
    assert good.code == ExitCode.FINISHED, good.err
    result = json.loads(good.out)
    assert (result["state"], result["batches"], result["rows"]["written"]) == ("finished", 1, 2)
    assert "event=batch_committed batch=0" in good.err
    assert _traces(good) == []


def _traces(answer: Answer) -> list[str]:
    traces = ("Traceback (most recent call last)", "\tat ", "    at ", "Exception in thread", "py4j.")
    return [line for line in (answer.out + answer.err).splitlines() if any(trace in line for trace in traces)]
