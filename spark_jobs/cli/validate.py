"""``etl-pipeline validate``: what is wrong with pipeline files, without Spark, database or network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from spark_jobs.contracts.config import InvalidConfigError, Problem, load_pipeline, unsupported, variable_names
from spark_jobs.contracts.config.document import read_text
from spark_jobs.contracts.config.problems import counted, nearest
from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.exit_codes import ExitCode
from spark_jobs.contracts.name_values import parse_name_values


@dataclass(frozen=True)
class Verdict:
    """What is to be said about one file."""

    file: str
    title: str = ""
    problems: list[Problem] = field(default_factory=list)
    unsupported: list[Problem] = field(default_factory=list)

    @property
    def exit_code(self) -> ExitCode:
        """What the command ends with when this is the only file."""
        if self.problems:
            return ExitCode.CONFIG_INVALID
        return ExitCode.NOT_SUPPORTED if self.unsupported else ExitCode.FINISHED

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as ``--json`` prints it."""
        return {
            "file": self.file,
            "valid": not self.problems,
            "supported": not self.problems and not self.unsupported,
            "problems": [problem.to_json() for problem in self.problems],
            "unsupported": [problem.to_json() for problem in self.unsupported],
        }


def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Pipeline files.", show_default=False)],
    var: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A variable's value; may be given several times.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Check pipeline files; everything that is wrong, at once.

    Exit code 0: all can run; 2: something is wrong; 3: all is right, but something is not supported yet.
    """
    variables = parse_name_values(var or [], "--var")
    verdicts = [_judge(path, variables) for path in files]
    _require_used(variables, files)
    if as_json:
        typer.echo(json.dumps([verdict.to_json() for verdict in verdicts], indent=2, ensure_ascii=False))
    else:
        console = Console(highlight=False, soft_wrap=True)
        for verdict in verdicts:
            _print(console, verdict)
    codes = {verdict.exit_code for verdict in verdicts} - {ExitCode.FINISHED}
    raise typer.Exit(int(min(codes, default=ExitCode.FINISHED)))


def _judge(path: Path, variables: Mapping[str, str]) -> Verdict:
    # Several files share the --var options: each gets those that it knows.
    try:
        known = variable_names(read_text(path))
        config = load_pipeline(path, {name: value for name, value in variables.items() if name in known})
    except InvalidConfigError as error:
        return Verdict(str(path), problems=error.problems)
    return Verdict(str(path), title=config.title, unsupported=unsupported(config))


def _require_used(variables: Mapping[str, str], files: list[Path]) -> None:
    known: set[str] = set()
    for path in files:
        try:
            known |= variable_names(read_text(path))
        except InvalidConfigError:
            return
    for name in variables:
        if name not in known:
            expected = f"one of {', '.join(sorted(known))}" if known else "no --var: no file has a variable"
            raise ConfigError(f"No file uses the variable {name!r}", expected=expected, cure=nearest(name, known))


def _print(console: Console, verdict: Verdict) -> None:
    # Text, not markup: paths and values may hold square brackets.
    if not verdict.problems and not verdict.unsupported:
        console.print(Text.assemble((verdict.file, "bold"), ": ", ("valid", "green"), f" ({verdict.title})"))
        return
    if verdict.problems:
        _print_all(console, verdict.file, counted(len(verdict.problems), "problem"), verdict.problems, "red")
    if verdict.unsupported:
        count = counted(len(verdict.unsupported), "setting")
        _print_all(console, verdict.file, f"valid, but {count} not supported yet", verdict.unsupported, "yellow")


def _print_all(console: Console, file: str, summary: str, problems: list[Problem], style: str) -> None:
    console.print(Text.assemble((file, "bold"), ": ", (summary, style)))
    for problem in problems:
        path, *rest = str(problem).splitlines()
        console.print(Text.assemble("  ", (path, "bold")))
        for line in rest:
            console.print(Text(f"  {line}"))
