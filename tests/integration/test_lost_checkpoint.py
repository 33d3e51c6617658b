"""A checkpoint that is gone: nothing is written, the message says what to do, and what it says works."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from kafka_pipelines import kafka_pipeline
from ledger_books import balanced_totals
from pipeline_runs import Pipelines
from retail import Shop
from variants import read, through_kafka

from sandbox.kafka import KafkaBroker, Record
from spark_jobs.contracts.exit_codes import ExitCode
from spark_jobs.runtime.stopping import Stop


@pytest.fixture
def variables(pipelines: Pipelines, inbox: Path) -> dict[str, str]:
    return {"data": str(inbox), "checkpoints": str(pipelines.checkpoints)}


def test_files_go_on_where_the_ledger_stopped(
    pipelines: Pipelines, reference_pipelines: Path, shop: Shop, inbox: Path, variables: dict[str, str]
) -> None:
    pipeline = reference_pipelines / "invoice_lines.json"
    shop.part(0, 30).arrive(inbox)
    pipelines.finish(pipeline, **variables)
    _lose_checkpoint(pipelines, "invoice-lines")
    shop.part(30, 45).arrive(inbox)
    _refused(pipelines, pipeline, "retail.invoice_lines", variables)
    assert shop.part(0, 30).line_differences(pipelines.database, with_file=True) == []

    resumed = pipelines.run(pipeline, resume="from_ledger", **variables)
    assert resumed.error is None, str(resumed.error)
    assert resumed.result.rows["written"] == shop.part(30, 45).count()
    shop.part(45, 50).arrive(inbox)
    pipelines.finish(pipeline, **variables)
    assert pipelines.finish(pipeline, **variables).result.batches == 0
    assert shop.part(0, 50).line_differences(pipelines.database, with_file=True) == []
    assert balanced_totals(pipelines, "invoice-lines")["written_rows"] == shop.part(0, 50).count()


def test_kafka_goes_on_where_the_ledger_stopped(
    pipelines: Pipelines, reference_pipelines: Path, shop: Shop, kafka: KafkaBroker, new_topic: Any
) -> None:
    topic = new_topic()
    document = read(reference_pipelines / "invoice_lines.json")
    config = through_kafka(document, kafka.bootstrap_servers, topic, per_trigger=10_000)
    variables = {"data": "unused", "checkpoints": str(pipelines.checkpoints)}
    kafka.produce(topic, shop.part(0, 8).json_lines())
    pipelines.finish(config, **variables)
    _lose_checkpoint(pipelines, "invoice-lines")
    kafka.produce(topic, shop.part(8, 12).json_lines())
    _refused(pipelines, config, "retail.invoice_lines", variables)

    resumed = pipelines.run(config, resume="from_ledger", **variables)
    assert resumed.error is None, str(resumed.error)
    assert resumed.result.rows["written"] == shop.part(8, 12).count()
    kafka.produce(topic, shop.part(12, 14).json_lines())
    pipelines.finish(config, **variables)
    assert shop.part(0, 14).line_differences(pipelines.database, with_file=False) == []
    assert balanced_totals(pipelines, "invoice-lines")["written_rows"] == shop.part(0, 14).count()


@pytest.mark.parametrize("starting", ["earliest", "latest"])
def test_kafka_skips_nothing_when_the_new_start_has_committed_nothing(
    pipelines: Pipelines, kafka: KafkaBroker, new_topic: Any, starting: str
) -> None:
    topic = new_topic(partitions=1)
    _produce_ids(kafka, topic, range(3))
    config = kafka_pipeline("numbers", kafka.bootstrap_servers, topic, pipelines.checkpoints, schema="id INT")
    pipelines.finish(config)
    _lose_checkpoint(pipelines, "numbers")
    with pipelines.database.connect() as conn:
        conn.execute("TRUNCATE result")
    config["extract"]["connectionParams"]["startingOffsets"] = starting
    _accept_without_a_batch(pipelines, config)
    _lose_checkpoint(pipelines, "numbers")
    _produce_ids(kafka, topic, range(3, 5))

    resumed = pipelines.run(config, resume="from_ledger")
    if starting == "latest":
        assert resumed.exit_code is ExitCode.CHECKPOINT_MISMATCH
        assert "does not say where to resume" in str(resumed.error)
        assert pipelines.one("SELECT count(*) FROM etl.pipeline_query") == 2
        return
    assert resumed.error is None, str(resumed.error)
    _lose_checkpoint(pipelines, "numbers")
    _produce_ids(kafka, topic, range(5, 6))
    assert pipelines.run(config, resume="from_ledger").error is None
    assert pipelines.rows("SELECT id FROM result ORDER BY id") == [(number,) for number in range(6)]


@pytest.mark.parametrize("subscription", ["subscribe", "subscribePattern"])
def test_kafka_goes_on_with_partitions_that_came_since(
    pipelines: Pipelines, kafka: KafkaBroker, new_topic: Any, subscription: str
) -> None:
    topic = new_topic(partitions=1)
    _produce_ids(kafka, topic, range(3))
    config = kafka_pipeline("numbers", kafka.bootstrap_servers, topic, pipelines.checkpoints, schema="id INT")
    del config["extract"]["topic"], config["extract"]["connectionParams"]["subscribe"]
    config["extract"]["connectionParams"][subscription] = topic
    pipelines.finish(config)
    _lose_checkpoint(pipelines, "numbers")
    kafka.add_partitions(topic, 3)
    kafka.produce(topic, [Record(json.dumps({"id": number}), partition=number % 3) for number in range(3, 9)])
    resumed = pipelines.run(config, resume="from_ledger")
    assert resumed.error is None, str(resumed.error)
    assert pipelines.rows("SELECT id FROM result ORDER BY id") == [(number,) for number in range(9)]


@pytest.mark.parametrize("may_lose", [False, True])
def test_kafka_does_not_go_on_without_a_partition_that_is_gone_unless_told(
    pipelines: Pipelines, kafka: KafkaBroker, new_topic: Any, may_lose: bool
) -> None:
    topics = [new_topic(partitions=1), new_topic(partitions=1)]
    _produce_ids(kafka, topics[0], range(3))
    _produce_ids(kafka, topics[1], range(3, 5))
    both = ",".join(topics)
    config = kafka_pipeline("numbers", kafka.bootstrap_servers, both, pipelines.checkpoints, schema="id INT")
    del config["extract"]["topic"]
    pipelines.finish(config)
    _lose_checkpoint(pipelines, "numbers")
    config["extract"]["connectionParams"]["subscribe"] = topics[0]
    config["extract"]["connectionParams"]["failOnDataLoss"] = str(not may_lose).lower()
    _produce_ids(kafka, topics[0], range(5, 6))
    resumed = pipelines.run(config, resume="from_ledger")
    if not may_lose:
        assert resumed.exit_code is ExitCode.CHECKPOINT_MISMATCH
        assert f"{topics[1]}-0 (at 2)" in str(resumed.error)
        config["extract"]["connectionParams"]["subscribe"] = both
        resumed = pipelines.run(config, resume="from_ledger")
    assert resumed.error is None, str(resumed.error)
    assert pipelines.rows("SELECT id FROM result ORDER BY id") == [(number,) for number in range(6)]


def _produce_ids(kafka: KafkaBroker, topic: str, ids: range) -> None:
    kafka.produce(topic, [json.dumps({"id": number}) for number in ids])


def _accept_without_a_batch(pipelines: Pipelines, config: dict[str, Any]) -> None:
    stop = Stop()
    stop.ask()
    assert pipelines.run(config, resume="accept_new_checkpoint", stop=stop).exit_code is ExitCode.STOPPED_COMMITTED
    queries = "SELECT origin, (SELECT count(*) FROM etl.batch_tracker b WHERE b.query_id = q.query_id) > 0"
    assert pipelines.rows(f"{queries} FROM etl.pipeline_query q ORDER BY created_at") == [
        ("fresh", True),
        ("accepted", False),
    ]


def test_running_totals_are_not_resumed_but_may_start_over(
    pipelines: Pipelines, reference_pipelines: Path, shop: Shop, inbox: Path, variables: dict[str, str]
) -> None:
    pipeline = reference_pipelines / "revenue_by_country_day.json"
    shop.part(0, 30).arrive(inbox)
    pipelines.finish(pipeline, **variables)
    _lose_checkpoint(pipelines, "revenue-by-country-day")
    shop.part(30, 40).arrive(inbox)
    _refused(pipelines, pipeline, "retail.revenue_by_country_day", variables)
    refused = pipelines.run(pipeline, resume="from_ledger", **variables)
    assert refused.exit_code is ExitCode.CHECKPOINT_MISMATCH
    assert "cannot be resumed from the ledger" in str(refused.error)
    assert shop.part(0, 30).revenue_differences(pipelines.database) == []

    accepted = pipelines.run(pipeline, resume="accept_new_checkpoint", **variables)
    assert accepted.error is None, str(accepted.error)
    # All files are still there, and a total that is written again is the same total.
    assert shop.part(0, 40).revenue_differences(pipelines.database) == []
    (first, _), (second, seeded_from) = pipelines.rows(
        "SELECT query_id, seeded_from FROM etl.pipeline_query ORDER BY created_at"
    )
    assert seeded_from == first != second
    assert pipelines.rows("SELECT origin, run_id FROM etl.pipeline_query ORDER BY created_at")[1] == (
        "accepted",
        accepted.result.run_id,
    )


def _lose_checkpoint(pipelines: Pipelines, name: str) -> None:
    shutil.rmtree(pipelines.checkpoints / name)


def _refused(pipelines: Pipelines, pipeline: Any, table: str, variables: dict[str, str]) -> None:
    before = _everything(pipelines, table)
    ended = pipelines.run(pipeline, **variables)
    assert ended.exit_code is ExitCode.CHECKPOINT_MISMATCH == 8
    message = str(ended.error)
    assert "is lost" in message
    assert "--resume-from-ledger" in message
    assert "--accept-new-checkpoint" in message
    assert _everything(pipelines, table) == before


def _everything(pipelines: Pipelines, table: str) -> list[tuple[Any, ...]]:
    return pipelines.rows(
        f"SELECT (SELECT count(*) FROM {table}), (SELECT max(xmin::text::bigint) FROM {table}), "
        "(SELECT count(*) FROM etl.batch_tracker), (SELECT count(*) FROM etl.pipeline_query)"
    )
