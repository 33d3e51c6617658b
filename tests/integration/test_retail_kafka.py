"""The same lines through a real broker, each as a JSON record."""

from __future__ import annotations

from pathlib import Path

from ledger_books import balanced_totals
from pipeline_runs import Pipelines
from retail import Shop
from variants import read, through_kafka

from sandbox.kafka import KafkaBroker


def test_every_invoice_line_arrives_once_through_kafka(
    pipelines: Pipelines, reference_pipelines: Path, shop: Shop, kafka: KafkaBroker, retail_topic: str
) -> None:
    document = read(reference_pipelines / "invoice_lines.json")
    config = through_kafka(document, kafka.bootstrap_servers, retail_topic, per_trigger=150_000)
    variables = {"data": "unused", "checkpoints": str(pipelines.checkpoints)}
    pipelines.finish(config, **variables)
    idle = pipelines.finish(config, **variables)
    assert idle.result.batches == 0
    assert shop.line_differences(pipelines.database, with_file=False) == []
    places = "SELECT count(DISTINCT (kafka_partition, kafka_offset)) FROM retail.invoice_lines"
    assert pipelines.one(places) == shop.count()
    totals = balanced_totals(pipelines, "invoice-lines")
    assert totals["source_rows"] == totals["written_rows"] == shop.count()
    assert pipelines.one("SELECT count(*) FROM etl.batch_tracker") == 4


def test_revenue_is_right_to_the_cent_through_kafka(
    pipelines: Pipelines, reference_pipelines: Path, shop: Shop, kafka: KafkaBroker, retail_topic: str
) -> None:
    document = read(reference_pipelines / "revenue_by_country_day.json")
    config = through_kafka(document, kafka.bootstrap_servers, retail_topic, per_trigger=150_000)
    variables = {"data": "unused", "checkpoints": str(pipelines.checkpoints)}
    pipelines.finish(config, **variables)
    idle = pipelines.finish(config, **variables)
    assert idle.result.batches == 0
    assert shop.revenue_differences(pipelines.database) == []
    totals = balanced_totals(pipelines, "revenue-by-country-day", stateful=True)
    assert (totals["source_rows"], totals["passed_rows"]) == (shop.count(), shop.sold_lines())
