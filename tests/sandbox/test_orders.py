"""The web shop's day: the same for the same seed, with every kind of trouble in it."""

from __future__ import annotations

import json

from sandbox.orders import Kind, order_day


def test_the_same_seed_gives_the_same_day():
    assert order_day(seed=3, orders=500) == order_day(seed=3, orders=500)
    assert order_day(seed=3, orders=500) != order_day(seed=4, orders=500)


def test_every_kind_is_there_and_the_counts_are_those_of_the_lines(tmp_path):
    day = order_day()
    lines = [line for file in day.write_files(tmp_path) for line in file.read_text().splitlines()]
    assert len(lines) == day.counts.total == len(day.events)
    assert all(
        count > 0 for count in (day.counts.valid, day.counts.duplicates, day.counts.stragglers, day.counts.malformed)
    )
    assert day.counts.future == 1
    assert lines == [record.value for record in day.records()]
    assert sum(day.windows().values()) == day.counts.readable


def test_events_are_out_of_order_and_unreadable_ones_do_not_parse():
    day = order_day(orders=5_000)
    stamps = [event.created_at for event in day.events]
    assert stamps != sorted(stamps)
    for event in day.events:
        if event.kind is Kind.MALFORMED:
            try:
                parsed = json.loads(event.line)
            except ValueError:
                continue
            assert not isinstance(parsed, dict)


def test_files_are_younger_one_after_the_other(tmp_path):
    times = [file.stat().st_mtime for file in order_day(orders=100).write_files(tmp_path, files=5)]
    assert times == sorted(times)
    assert len(set(times)) == 5
