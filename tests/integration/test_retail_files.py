"""A real shop's files through the pipelines as they stand, compared with DuckDB straight from the files."""

from __future__ import annotations

from pathlib import Path

from ledger_books import balanced_totals
from pipeline_runs import Pipelines
from retail import Shop


def test_every_invoice_line_arrives_once_in_several_runs(
    pipelines: Pipelines, reference_pipelines: Path, shop: Shop, inbox: Path
) -> None:
    pipeline = reference_pipelines / "invoice_lines.json"
    variables = {"data": str(inbox), "checkpoints": str(pipelines.checkpoints)}
    written = []
    for start, stop in ((0, 130), (130, 290), (290, 305)):
        shop.part(start, stop).arrive(inbox)
        written.append(pipelines.finish(pipeline, **variables).result.rows["written"])
    idle = pipelines.finish(pipeline, **variables)
    assert shop.line_differences(pipelines.database, with_file=True) == []
    assert written == [shop.part(*part).count() for part in ((0, 130), (130, 290), (290, 305))]
    assert (idle.result.batches, idle.result.rows["source"]) == (0, 0)
    totals = balanced_totals(pipelines, "invoice-lines")
    assert totals["source_rows"] == totals["written_rows"] == shop.count()
    assert pipelines.one("SELECT count(*) FROM etl.batch_tracker") == 7 + 8 + 1
    assert pipelines.one("SELECT count(DISTINCT path) FROM etl.batch_file") == len(shop.files)


def test_revenue_is_right_to_the_cent_in_several_runs(
    pipelines: Pipelines, reference_pipelines: Path, shop: Shop, inbox: Path
) -> None:
    pipeline = reference_pipelines / "revenue_by_country_day.json"
    variables = {"data": str(inbox), "checkpoints": str(pipelines.checkpoints)}
    for start, stop in ((0, 150), (150, 305)):
        shop.part(start, stop).arrive(inbox)
        pipelines.finish(pipeline, **variables)
        assert shop.part(0, stop).revenue_differences(pipelines.database) == []
    idle = pipelines.finish(pipeline, **variables)
    assert idle.result.batches == 0
    totals = balanced_totals(pipelines, "revenue-by-country-day", stateful=True)
    assert totals["source_rows"] == shop.count()
    assert totals["passed_rows"] == shop.sold_lines()
    assert totals["filtered_rows"] == shop.count() - shop.sold_lines()
