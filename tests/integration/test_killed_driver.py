"""A driver that is killed, wherever it is, and run again: complete, and nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from driver_processes import QUICK, java_environ, kill_group, under_watch, wait_for_line, wait_until
from ledger_books import balanced_totals
from pipeline_runs import Pipelines
from retail import Shop
from variants import read, with_limits, with_variables

_COPY_RUNS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
    "AND state = 'active' AND query ILIKE 'COPY%'"
)


@pytest.fixture
def variables(pipelines: Pipelines, inbox: Path) -> dict[str, str]:
    return {"data": str(inbox), "checkpoints": str(pipelines.checkpoints)}


def test_invoice_lines_after_a_kill_between_batches(
    pipelines: Pipelines, reference_pipelines: Path, shop: Shop, inbox: Path, variables: dict[str, str]
) -> None:
    pipeline = reference_pipelines / "invoice_lines.json"
    shop.arrive(inbox)
    _kill_after_batch(pipelines, pipeline, variables, "batch=3")
    done = pipelines.one("SELECT count(*) FROM etl.batch_tracker")
    assert 4 <= done < 16
    ended = pipelines.finish(pipeline, **variables)
    assert (
        ended.result.batches
        + pipelines.one("SELECT count(*) FROM etl.batch_tracker WHERE run_id <> %s", ended.result.run_id)
        == 16
    )
    assert shop.line_differences(pipelines.database, with_file=True) == []
    assert balanced_totals(pipelines, "invoice-lines")["written_rows"] == shop.count()


def test_revenue_after_a_kill_between_batches(
    pipelines: Pipelines, reference_pipelines: Path, shop: Shop, inbox: Path, variables: dict[str, str]
) -> None:
    pipeline = reference_pipelines / "revenue_by_country_day.json"
    shop.arrive(inbox)
    _kill_after_batch(pipelines, pipeline, variables, "batch=1")
    assert pipelines.one("SELECT count(*) FROM etl.batch_tracker") < 7
    pipelines.finish(pipeline, **variables)
    assert shop.revenue_differences(pipelines.database) == []
    assert balanced_totals(pipelines, "revenue-by-country-day", stateful=True)["source_rows"] == shop.count()


@pytest.mark.parametrize("strategy", ["single", "staged"])
def test_invoice_lines_after_a_kill_in_the_middle_of_a_copy(
    pipelines: Pipelines, reference_pipelines: Path, shop: Shop, inbox: Path, variables: dict[str, str], strategy: str
) -> None:
    document = with_limits(read(reference_pipelines / "invoice_lines.json"), maxFilesPerTrigger=60)
    document["load"]["writeStrategy"] = strategy
    part = shop.part(0, 100)
    part.arrive(inbox)
    command = pipelines.command(
        "run", str(pipelines.path(document)), *with_variables(variables), *QUICK, **java_environ()
    )
    with under_watch(command) as driver, pipelines.database.connect(autocommit=True) as conn:
        wait_until(lambda: conn.execute(_COPY_RUNS).fetchone()[0] > 0, driver)
        kill_group(driver)
    pipelines.finish(document, **variables)
    assert part.line_differences(pipelines.database, with_file=True) == []
    assert balanced_totals(pipelines, "invoice-lines")["written_rows"] == part.count()
    assert pipelines.rows("SELECT relname FROM pg_class WHERE relname LIKE 'stage\\_%' AND relkind = 'r'") == []


def _kill_after_batch(pipelines: Pipelines, pipeline: Path, variables: dict[str, str], batch: str) -> None:
    command = pipelines.command("run", str(pipeline), *with_variables(variables), *QUICK, **java_environ())
    with under_watch(command) as driver:
        wait_for_line(driver, f"event=batch_committed {batch} ")
        kill_group(driver)
