"""``etl-pipeline validate`` and ``schema``, as a process of their own and through ``main``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from config_documents import Document, shared_pipelines, stateless, windowed

from spark_jobs.cli import COMMANDS, main
from spark_jobs.contracts.config import json_schema


@pytest.fixture
def write(tmp_path: Path) -> object:
    def written(name: str, document: Document) -> str:
        path = tmp_path / name
        path.write_text(json.dumps(document))
        return str(path)

    return written


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(args)
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_valid_files(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "validate", *map(str, shared_pipelines()), "--var", "checkpoints=/tmp/c")
    assert code == 0
    assert out.count(": valid (") == 3


def test_all_problems_of_all_files(capsys: pytest.CaptureFixture[str], write) -> None:  # type: ignore[no-untyped-def]
    wrong = write("wrong.json", stateless(load__writeMode="apend", mode="[red]"))
    other = write("other.json", windowed(streamingConfigJson__watermark=...))
    code, out, err = run(capsys, "validate", wrong, str(shared_pipelines()[0]), other)
    assert code == 2
    assert f"{wrong}: 2 problems" in out
    assert '  load.writeMode\n    found:    "apend"\n' in out
    assert 'found:    "[red]"' in out
    assert f"{other}: 1 problem" in out
    assert ": valid (" in out
    assert err == ""


def test_not_supported_yet(capsys: pytest.CaptureFixture[str], write) -> None:  # type: ignore[no-untyped-def]
    path = write("later.json", stateless(streamingConfigJson__stateTimeout="1 day"))
    code, out, _ = run(capsys, "validate", path)
    assert code == 3
    assert "valid, but 1 setting not supported yet" in out
    wrong = write("wrong.json", stateless(pipelineId=...))
    assert run(capsys, "validate", path, wrong)[0] == 2


def test_json_output(capsys: pytest.CaptureFixture[str], write) -> None:  # type: ignore[no-untyped-def]
    later = write("later.json", stateless(mode="batch"))
    wrong = write("wrong.json", stateless(load__tabel="x", load__table=...))
    code, out, _ = run(capsys, "validate", later, wrong, "--json")
    assert code == 2
    first, second = json.loads(out)
    assert (first["file"], first["valid"], first["supported"]) == (later, True, False)
    assert [problem["path"] for problem in first["unsupported"]] == ["mode"]
    assert (second["valid"], second["supported"]) == (False, False)
    assert {problem["path"]: problem["hint"] for problem in second["problems"]} == {
        "load.tabel": 'did you mean "table"?',
        "load.table": "",
    }


def test_variables_are_shared_between_files(capsys: pytest.CaptureFixture[str], write) -> None:  # type: ignore[no-untyped-def]
    one, two = write("one.json", stateless(name="${a}")), write("two.json", stateless(name="${b}"))
    assert run(capsys, "validate", one, two, "--var", "a=1", "--var", "b=2")[0] == 0
    code, out, _ = run(capsys, "validate", one, two, "--var", "a=1")
    assert code == 2
    assert "the unknown variable ${b}" in out
    code, _, err = run(capsys, "validate", one, two, "--var", "a=1", "--var", "b=2", "--var", "c=3")
    assert code == 2
    assert "No file uses the variable 'c'" in err


@pytest.mark.parametrize(
    ("given", "found"),
    [(["a"], "a text without ="), (["=x"], "a value without a name"), (["a=1", "a=2"], "given twice")],
)
def test_variables_that_cannot_be_read(capsys: pytest.CaptureFixture[str], given: list[str], found: str) -> None:
    options = [word for text in given for word in ("--var", text)]
    code, _, err = run(capsys, "validate", str(shared_pipelines()[0]), *options)
    assert code == 2
    assert found in err


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "schema")
    assert code == 0
    assert json.loads(out) == json_schema()


def test_help_names_every_command_and_imports_none(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert all(name in out for name in COMMANDS)
    code, out, _ = run(capsys, "validate", "--help")
    assert code == 0
    assert "--var" in out


def test_an_unknown_command_or_option_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "valdate")[0] == 2
    assert run(capsys, "validate", "--jsn", "x.json")[0] == 2


def process(*code: str, tmp_path: Path) -> str:
    """Run Python in a process of its own, with compiled modules cached, as an installation has them."""
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environ["PYTHONPYCACHEPREFIX"] = str(tmp_path / "cache")
    done = subprocess.run([sys.executable, *code], capture_output=True, text=True, env=environ, check=True)
    return done.stdout


def test_the_program_runs_as_a_module(tmp_path: Path) -> None:
    assert "valid" in process("-m", "spark_jobs.cli", "validate", str(shared_pipelines()[0]), tmp_path=tmp_path)


IMPORTS = """
import sys, time
import typer
from pydantic import BaseModel, Field, BeforeValidator, PlainSerializer, SerializeAsAny, WithJsonSchema, model_validator
import difflib, importlib.metadata, json, pydantic.alias_generators

class Warm(BaseModel):
    field: int = Field(1, alias="other")

start = time.process_time()
import spark_jobs.contracts.config
print(time.process_time() - start)
import spark_jobs.cli.validate
print([name for name in ("pyspark", "psycopg", "airflow", "pandas", "pyarrow") if name in sys.modules])
"""


def test_importing_is_quick_and_pulls_in_nothing_big(tmp_path: Path) -> None:
    outputs = [process("-c", IMPORTS, tmp_path=tmp_path).split("\n") for _ in range(4)]
    assert {output[1] for output in outputs} == {"[]"}
    # The first run compiles; CPU seconds, the best of the others, because the machine has other work.
    assert min(float(output[0]) for output in outputs[1:]) < 0.1
