"""The command line ``etl-pipeline``.

Each command's module is imported only when the command runs: ``validate`` must not wait for Spark.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable, Sequence

import typer

from spark_jobs.contracts.errors import EtlError
from spark_jobs.contracts.redaction import mask

PROGRAM = "etl-pipeline"
COMMANDS = {
    "validate": "Check pipeline files; everything that is wrong, at once.",
    "run": "Run a pipeline, without Airflow.",
    "status": "Show each pipeline's last micro-batch, its run and whether its books balance.",
    "progress": "Show how a pipeline's newest micro-batches went, failed ones among them.",
    "dead-letters": "List, read, replay or discard rows that could not be read or written.",
    "reprocess": "Read committed micro-batches again, in place of what they wrote.",
    "migrate": "Create or upgrade the ledger's tables.",
    "prepared": "Show or resolve what two-phase commits of drivers that died have left behind.",
    "orphans": "Clear away what drivers that are gone have left, of all pipelines.",
    "cleanup": "Remove old rows of the ledger; never what a restart still needs.",
    "audit": "Compare the checkpoints of pipelines with ledger and source, without Spark.",
    "breakers": "Show the circuit breakers that runs share, or close one by hand.",
    "schema": "Print the JSON Schema of pipeline files, for editors.",
}
# The command's own parser reads everything after its name, --help included.
_PASS_ON = {
    "allow_extra_args": True,
    "allow_interspersed_args": False,
    "ignore_unknown_options": True,
    "help_option_names": [],
}
_log = logging.getLogger(__name__)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line. An ``EtlError`` becomes one message on stderr and its exit code.

    :param args: the words after the program's name; those of the process unless given.
    :raises SystemExit: always, with the exit code.
    """
    try:
        _program()(args=list(args) if args is not None else None, prog_name=PROGRAM)
    except EtlError as error:
        _log.debug("%s failed", PROGRAM, exc_info=True)
        print(mask(f"Error: {error}"), file=sys.stderr)
        sys.exit(int(error.exit_code))


def _program() -> typer.Typer:
    program = _typer()

    @program.callback()
    def describe() -> None:
        """Scheduled streaming into PostgreSQL, exactly once, with the books to prove it."""

    for name, summary in COMMANDS.items():
        program.command(name, help=summary, context_settings=_PASS_ON)(_deferred(name))
    return program


def _deferred(name: str) -> Callable[[typer.Context], None]:
    def command(context: typer.Context) -> None:
        found = _found(name)
        if isinstance(found, typer.Typer):
            own = found
        else:
            own = _typer()
            own.command(help=None)(found)
        own(args=context.args, prog_name=f"{PROGRAM} {name}")

    return command


def _found(name: str) -> Callable[..., None] | typer.Typer:
    """Return the command, or the program of several, of the module that is named like it."""
    own_name = name.replace("-", "_")
    module_name = f"{__name__}.{own_name}"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name:
            raise
        raise EtlError(f"This installation has no command {name}", cure="install the package again") from None
    found: Callable[..., None] | typer.Typer = getattr(module, own_name)
    return found


def _typer() -> typer.Typer:
    return typer.Typer(add_completion=False, no_args_is_help=False, pretty_exceptions_enable=False)
