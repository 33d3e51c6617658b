"""A day of a web shop's orders through Kafka and the pipeline as it stands, with all that makes real streams hard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kafka_pipelines import records_in
from ledger_books import balanced_totals
from order_windows import Windows
from pipeline_runs import Pipelines
from variants import read

from sandbox.kafka import KafkaBroker, Record
from sandbox.orders import Kind, order_day

_TOPIC = "orders"


def test_windows_dead_letters_and_late_rows(
    pipelines: Pipelines, reference_pipelines: Path, kafka: KafkaBroker, new_topic: Any
) -> None:
    new_topic(_TOPIC)
    day = order_day(seed=11, orders=6_000)
    third = len(day.events) // 3
    # The last ones arrive after the event from the future: all of them are late.
    runs = [day.events[:third], day.events[third : 2 * third], day.events[2 * third :], day.events[100:130]]
    assert any(event.kind is Kind.FUTURE for event in runs[2])
    expected = Windows()
    variables = {"brokers": kafka.bootstrap_servers, "checkpoints": str(pipelines.checkpoints)}
    for events in runs:
        kafka.produce(_TOPIC, [Record(event.line, key=event.key) for event in events])
        pipelines.finish(reference_pipelines / "orders_per_5_minutes.json", **variables)
        expected.run(events)

    found = pipelines.rows(
        "SELECT window_start, country, orders, quantity, average_price FROM sales.orders_per_5_minutes"
    )
    assert len(found) == len(expected.closed)
    assert {(start, country): tuple(rest) for start, country, *rest in found} == expected.closed
    assert pipelines.one(
        "SELECT bool_and(window_end = window_start + interval '5 min') FROM sales.orders_per_5_minutes"
    )

    batches = pipelines.rows(
        "SELECT source_rows, dead_lettered_rows, late_rows, written_rows FROM etl.batch_tracker ORDER BY batch_id"
    )
    assert batches == [(b.source, b.dead_lettered, b.late, b.written) for b in expected.batches]
    totals = balanced_totals(pipelines, "orders-per-5-minutes", stateful=True)
    assert totals["late_rows"] > len([event for event in runs[-1] if event.is_readable])
    assert totals["source_rows"] == sum(map(len, runs))
    _dead_letters_are_the_unreadable(pipelines, kafka, {e.line.encode() for e in day.events if not e.is_readable})


def test_an_unreadable_order_from_the_future_closes_nothing(
    pipelines: Pipelines, reference_pipelines: Path, kafka: KafkaBroker, new_topic: Any
) -> None:
    topic = new_topic()
    config = read(reference_pipelines / "orders_per_5_minutes.json")
    config["extract"]["topic"] = config["extract"]["connectionParams"]["subscribe"] = topic
    variables = {"brokers": kafka.bootstrap_servers, "checkpoints": str(pipelines.checkpoints)}
    order = {"order_id": 1, "country": "DE", "quantity": 1, "price": 2.5, "created_at": "2026-03-02T12:00:00Z"}
    mistyped = {**order, "quantity": "three", "created_at": "2036-03-02T12:00:00Z"}
    kafka.produce(topic, [json.dumps(order), json.dumps(mistyped)])
    pipelines.finish(config, **variables)
    kafka.produce(topic, [json.dumps({**order, "order_id": 2})])
    pipelines.finish(config, **variables)
    totals = balanced_totals(pipelines, "orders-per-5-minutes", stateful=True)
    assert (totals["late_rows"], totals["dead_lettered_rows"], totals["passed_rows"]) == (0, 1, 2)
    assert pipelines.one("SELECT count(*) FROM sales.orders_per_5_minutes") == 0


def _dead_letters_are_the_unreadable(pipelines: Pipelines, kafka: KafkaBroker, lines: set[bytes]) -> None:
    unreadable = {(r.partition, r.offset, r.value) for r in records_in(kafka, _TOPIC) if r.value in lines}
    letters = pipelines.rows(
        "SELECT (source->>'partition')::int, (source->>'offset')::int, raw_value, source->>'topic', stage "
        "FROM etl.dead_letter"
    )
    assert len(letters) == len(unreadable)
    assert {tuple(letter[:3]) for letter in letters} == unreadable
    assert {tuple(letter[3:]) for letter in letters} == {(_TOPIC, "parse")}
