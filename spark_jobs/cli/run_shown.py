"""What a run shows while it runs: a live line on a terminal, plain lines elsewhere; everything in the log file."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from spark_jobs.contracts.log_settings import LogFormat, LogLevel
from spark_jobs.contracts.redaction import mask
from spark_jobs.contracts.run_request import RunResult
from spark_jobs.logs.events import Event
from spark_jobs.logs.formats import formatter


@contextmanager
def run_log(path: Path, title: str, form: LogFormat, level: LogLevel) -> Iterator[None]:
    """Log everything from DEBUG on into ``path``; show progress, or lines of ``level`` and above, on standard error."""
    to_file = logging.FileHandler(path, encoding="utf-8")
    to_file.setFormatter(formatter(form))
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.DEBUG)
    logging.getLogger("py4j").setLevel(logging.WARNING)
    root.addHandler(to_file)
    _keep_pyspark_off_the_terminal()
    try:
        with _terminal(title) if form == "plain" and sys.stderr.isatty() else _lines(form, level):
            yield
    finally:
        root.removeHandler(to_file)
        root.setLevel(before)
        to_file.close()


def _keep_pyspark_off_the_terminal() -> None:
    """PySpark prints each failing expression with a trace of its own; ours is in the log file."""
    from pyspark.logger import PySparkLogger  # noqa: PLC0415 - `status` and `validate` must not wait for Spark

    for name in ("SQLQueryContextLogger", "DataFrameQueryContextLogger"):
        logger = PySparkLogger.getLogger(name)
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
        logger.addHandler(logging.NullHandler())


@contextmanager
def _lines(form: LogFormat, level: LogLevel) -> Iterator[None]:
    handler = logging.StreamHandler(sys.stderr)
    # Plain text leaves the trace to the log file.
    handler.setFormatter(formatter(form, traces=False))
    with _handling(handler, level):
        yield


@contextmanager
def _terminal(title: str) -> Iterator[None]:
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("[bold]{task.description}"),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=None, state="starting Spark")
        with _handling(_Live(progress, task), "INFO"):
            yield


@contextmanager
def _handling(handler: logging.Handler, level: LogLevel) -> Iterator[None]:
    handler.setLevel(level)
    logger = logging.getLogger("etl")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Live(logging.Handler):
    """Moves the live line on with each micro-batch; warnings stay above it."""

    def __init__(self, progress: Progress, task: object) -> None:
        super().__init__()
        self._progress = progress
        self._task = task
        self._rows = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record."""
        name, fields = (record.msg.name, record.msg.fields) if isinstance(record.msg, Event) else ("", {})
        if name == "batch_committed":
            self._rows += fields["rows_in"]
            written = f"{fields['written']} written in {fields['seconds']:.2f} s"
            state = f"batch {fields['batch']} · {self._rows:,} rows read · {written}"
            self._progress.update(self._task, state=state)  # type: ignore[arg-type]
        elif name == "run_started":
            self._progress.update(self._task, state="reading")  # type: ignore[arg-type]
        elif record.levelno >= logging.WARNING and not record.exc_info:
            self._progress.console.print(mask(record.getMessage()), style="yellow", highlight=False, markup=False)


def show_result(result: RunResult, *, as_json: bool) -> None:
    """Print a run's result on standard output."""
    if as_json:
        print(result.model_dump_json(indent=2))
        return
    table = Table(
        title=f"{result.pipeline_id}: {result.state} in {result.duration_seconds:.1f} s", title_justify="left"
    )
    table.add_column("what")
    table.add_column("", justify="right")
    rows = [("micro-batches", result.batches), ("skipped, already there", result.duplicates)]
    rows += [
        (f"rows {name.replace('_', ' ')}", count) for name, count in result.rows.items() if count or name in _ALWAYS
    ]
    for name, value in rows:
        table.add_row(name, f"{value:,}")
    table.add_row("books", result.ledger)
    Console().print(table)


_ALWAYS = ("source", "written")
