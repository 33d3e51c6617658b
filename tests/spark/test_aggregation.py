"""Aggregations: functions, windows, modes, late rows, and books that balance."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import Pipelines, aggregation, file_pipeline, filter_by, select, write_lines

from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.tracker.queries import pipeline_status

SCHEMA = "shop STRING, kind STRING, amount DECIMAL(10,2), at TIMESTAMP"
WATERMARK = {"eventTimeColumn": "at", "delayThreshold": "10 minutes"}


def _at(minute: int) -> str:
    return f"2026-01-01T{minute // 60:02d}:{minute % 60:02d}:00Z"


def _instant(minute: int) -> datetime:
    return datetime(2026, 1, 1, minute // 60, minute % 60, tzinfo=UTC)


def _row(minute: int | None, shop: str = "a", amount: float = 1.0, kind: str = "k") -> dict[str, Any]:
    return {"shop": shop, "kind": kind, "amount": amount, "at": None if minute is None else _at(minute)}


def _pipeline(
    pipelines: Pipelines,
    inbox: Path,
    mode: str,
    write: str,
    *before: dict[str, Any],
    keys: str = "",
    watermark: bool = True,
    strategy: str = "auto",
    late: str = "",
    **parameters: str,
) -> dict[str, Any]:
    load = {"writeMode": write, "writeStrategy": strategy, **({"keys": keys} if keys else {})}
    streaming: dict[str, Any] = {"outputMode": mode, **({"watermark": WATERMARK} if watermark else {})}
    if late:
        streaming["lateDataConfig"] = {"strategy": late}
    return file_pipeline(
        "agg",
        inbox,
        pipelines.checkpoints,
        schema=SCHEMA,
        transforms=[*before, aggregation(**parameters)],
        load=load,
        streaming=streaming,
    )


def _books(pipelines: Pipelines) -> list[tuple[Any, ...]]:
    return pipelines.rows(
        "SELECT sum(source_rows), sum(passed_rows), sum(dead_lettered_rows), sum(late_rows), sum(filtered_rows) "
        "FROM etl.batch_tracker"
    )


def test_all_seven_functions(pipelines: Pipelines, inbox: Path) -> None:
    write_lines(
        inbox / "0.json", _row(0, amount=1), _row(1, amount=2), _row(2, amount=4.5), _row(3, shop="b", amount=7)
    )
    config = _pipeline(
        pipelines,
        inbox,
        "update",
        "upsert",
        keys="shop",
        watermark=False,
        groupByColumns="shop",
        aggregations="amount:sum:total,amount:avg:mean,n:count,amount:min:low,amount:max:high,kind:first:f,kind:last:l",
    )
    pipelines.finish(config)
    assert pipelines.rows("SELECT * FROM result ORDER BY shop") == [
        ("a", Decimal("7.50"), Decimal("2.500000"), 3, Decimal("1.00"), Decimal("4.50"), "k", "k"),
        ("b", Decimal("7.00"), Decimal("7.000000"), 1, Decimal("7.00"), Decimal("7.00"), "k", "k"),
    ]


@pytest.mark.parametrize("strategy", ["single", "staged"])
@pytest.mark.parametrize(
    ("mode", "write", "keys"),
    [
        ("append", "append", ""),
        ("append", "upsert", "w"),
        ("update", "upsert", "w"),
        ("complete", "overwrite", ""),
        ("complete", "upsert", "w"),
    ],
)
@pytest.mark.parametrize("slide", ["", "5 minutes"])
def test_windows_in_every_mode(
    pipelines: Pipelines, inbox: Path, mode: str, write: str, keys: str, slide: str, strategy: str
) -> None:
    # `single` is for results of known size: only with update mode, or from the first batch on, is it known here.
    config = _pipeline(
        pipelines,
        inbox,
        mode,
        write,
        keys="window_start,window_end,shop" if keys else "",
        strategy="auto" if strategy == "single" else strategy,
        groupByColumns="shop",
        windowColumn="at",
        windowDuration="10 minutes",
        aggregations="n:count",
        **({"slideDuration": slide} if slide else {}),
    )
    write_lines(inbox / "0.json", *(_row(minute) for minute in range(30)))
    pipelines.finish(config)
    write_lines(inbox / "1.json", _row(25), _row(100))
    pipelines.finish(config)
    rows = pipelines.rows("SELECT window_start, window_end, n FROM result ORDER BY 1")
    counts = {start: n for start, _, n in rows}
    assert all((end - start).seconds == 600 for start, end, _ in rows)
    assert len(counts) == len(rows)
    assert counts[_instant(0)] == 10
    assert counts[_instant(20)] == 11
    assert (_instant(100) in counts) == (mode != "append")
    if slide:
        assert counts[_instant(5)] == 10
    assert _books(pipelines) == [(32, 32, 0, 0, 0)]


@pytest.mark.parametrize("late", ["", "drop", "logAndDrop"])
def test_late_rows_are_counted_exactly(pipelines: Pipelines, inbox: Path, late: str, caplog: Any) -> None:
    config = _pipeline(
        pipelines,
        inbox,
        "append",
        "append",
        late=late,
        groupByColumns="shop",
        windowColumn="at",
        windowDuration="10 minutes",
        aggregations="n:count,amount:sum",
    )
    write_lines(inbox / "0.json", _row(5), _row(60))
    pipelines.finish(config)
    # The watermark is 00:50: windows until then are closed. Spark counts these five once, after partial aggregation.
    write_lines(inbox / "1.json", *[_row(7)] * 5, _row(49), _row(50), _row(61), _row(None), "broken")
    pipelines.finish(config)
    write_lines(inbox / "2.json", _row(200))
    pipelines.finish(config)
    assert _books(pipelines) == [(13, 5, 2, 6, 0)]
    assert pipelines.rows("SELECT window_start, n FROM result ORDER BY 1") == [
        (_instant(0), 1),
        (_instant(50), 1),
        (_instant(60), 2),
    ]
    letters = pipelines.rows("SELECT stage, error_class, source->>'file' FROM etl.dead_letter ORDER BY stage")
    assert [letter[:2] for letter in letters] == [("parse", "MALFORMED_JSON"), ("transform", "NULL_EVENT_TIME")]
    assert all(str(letter[2]).endswith("1.json") for letter in letters)
    assert ("late_rows_dropped" in caplog.text) == (late == "logAndDrop")


@pytest.mark.parametrize("strategy", ["auto", "staged"])
def test_dead_letters_of_an_aggregating_pipeline_are_kept_by_the_second_look(
    pipelines: Pipelines, inbox: Path, strategy: str
) -> None:
    config = _pipeline(
        pipelines,
        inbox,
        "update",
        "upsert",
        filter_by("amount > 0"),
        select(shop="upper(shop)", amount="amount"),
        keys="shop",
        watermark=False,
        strategy=strategy,
        groupByColumns="shop",
        aggregations="amount:sum",
    )
    write_lines(inbox / "0.json", _row(0), _row(1, amount=-1), "broken", '{"amount": "x"}', _row(2, amount=2))
    pipelines.finish(config)
    assert pipelines.rows("SELECT * FROM result") == [("A", Decimal("3.00"))]
    assert _books(pipelines) == [(5, 2, 2, 0, 1)]
    assert pipelines.rows("SELECT convert_from(raw_value, 'UTF8') FROM etl.dead_letter ORDER BY 1") == [
        ("broken",),
        ('{"amount": "x"}',),
    ]


def test_a_replayed_batch_of_totals_keeps_its_state(pipelines: Pipelines, inbox: Path) -> None:
    config = _pipeline(
        pipelines,
        inbox,
        "update",
        "upsert",
        keys="shop",
        watermark=False,
        groupByColumns="shop",
        aggregations="n:count",
    )
    write_lines(inbox / "0.json", _row(0), _row(1))
    pipelines.finish(config)
    commit = pipelines.checkpoints / "agg" / "commits" / "0"
    commit.unlink()
    commit.with_name(".0.crc").unlink()
    write_lines(inbox / "1.json", _row(2))
    ended = pipelines.finish(config)
    assert ended.result.duplicates == 1
    assert pipelines.rows("SELECT n FROM result") == [(3,)]


@pytest.mark.parametrize("strategy", ["single", "staged"])
def test_whoever_reads_while_rows_are_replaced_never_sees_an_empty_table(
    pipelines: Pipelines, inbox: Path, strategy: str
) -> None:
    config = _pipeline(
        pipelines,
        inbox,
        "complete",
        "overwrite",
        watermark=False,
        strategy=strategy,
        groupByColumns="shop",
        aggregations="n:count",
    )
    config["extract"]["connectionParams"]["maxFilesPerTrigger"] = "1"
    write_lines(inbox / "0.json", _row(0), _row(1, shop="b"))
    pipelines.finish({**config, "load": {**config["load"], "writeStrategy": "auto"}})
    for number in range(1, 6):
        write_lines(inbox / f"{number}.json", _row(number))
    seen: list[tuple[Any, Any]] = []
    done = threading.Event()

    def read() -> None:
        with pipelines.database.connect(autocommit=True) as reader:
            while not done.is_set():
                seen.extend(reader.execute("SELECT count(*), sum(n) FROM result").fetchall())

    reading = threading.Thread(target=read)
    reading.start()
    try:
        pipelines.finish(config)
    finally:
        done.set()
        reading.join()
    # Each of the batches adds one row of the shop "a": whole results only, and all of them in their order.
    assert {count for count, _ in seen} == {2}
    sums = [int(total) for _, total in seen]
    assert sums == sorted(sums)
    assert len(set(sums)) > 3


def test_overwrite_shows_readers_the_old_rows_until_the_commit(pipelines: Pipelines, inbox: Path) -> None:
    config = _pipeline(
        pipelines, inbox, "complete", "overwrite", watermark=False, groupByColumns="shop", aggregations="n:count"
    )
    write_lines(inbox / "0.json", _row(0), _row(1, shop="b"))
    pipelines.finish(config)
    with pipelines.database.connect() as reader:
        reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        assert reader.execute("SELECT count(*) FROM result").fetchone() == (2,)
        write_lines(inbox / "1.json", _row(2))
        pipelines.finish(config)
        assert reader.execute("SELECT sum(n) FROM result").fetchone() == (2,)
        reader.rollback()
    assert pipelines.rows("SELECT shop, n FROM result ORDER BY 1") == [("a", 2), ("b", 1)]


@pytest.mark.parametrize(
    ("schema", "column", "words"),
    [
        (
            SCHEMA.replace("at TIMESTAMP", "at TIMESTAMP_NTZ"),
            "at",
            ["TIMESTAMP_NTZ", "Declare the column as TIMESTAMP"],
        ),
        (SCHEMA, "when", ["when", "no such column"]),
        (SCHEMA, "shop", ["shop", "string"]),
    ],
)
def test_a_watermark_needs_a_timestamp_column(
    pipelines: Pipelines, inbox: Path, schema: str, column: str, words: list[str]
) -> None:
    write_lines(inbox / "0.json", _row(0))
    config = file_pipeline(
        "agg",
        inbox,
        pipelines.checkpoints,
        schema=schema,
        streaming={"watermark": {"eventTimeColumn": column, "delayThreshold": "1 minute"}},
    )
    ended = pipelines.run(config)
    assert isinstance(ended.error, ConfigError)
    assert all(word in str(ended.error) for word in words), str(ended.error)


def test_an_event_time_beyond_year_9999_does_not_stop_the_run(pipelines: Pipelines, inbox: Path) -> None:
    config = _pipeline(
        pipelines,
        inbox,
        "append",
        "append",
        groupByColumns="shop",
        windowColumn="at",
        windowDuration="10 minutes",
        aggregations="n:count",
    )
    write_lines(inbox / "0.json", _row(0), {**_row(0), "at": 316_516_204_800})
    pipelines.finish(config)
    write_lines(inbox / "1.json", _row(1))
    pipelines.finish(config)
    assert _books(pipelines) == [(3, 2, 0, 1, 0)]
    with pipelines.database.connect() as conn:
        # Where the day begins fourteen hours earlier, it is a year that Python has as well.
        conn.execute("SET TimeZone = 'Pacific/Kiritimati'")
        (status,) = pipeline_status(conn, "etl", "agg")
        progress = conn.execute("SELECT max(watermark) FROM etl.query_progress").fetchone()
    assert status.watermark is not None
    assert status.watermark.year == 9999
    assert progress is not None
    assert progress[0] == status.watermark
