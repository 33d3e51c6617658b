"""A failing SQL expression is a dead letter of its row, and the others land; also before an aggregation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from pipeline_runs import Pipelines, aggregation, file_pipeline, filter_by, select, write_lines
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

LETTERS = (
    "SELECT stage, error_class, message, parsed_row, raw_value, source->>'file', source->>'block_start' "
    "FROM etl.dead_letter ORDER BY parsed_row->>'id'"
)
STRATEGIES = ["single", "staged", "two_phase"]


def _pipeline(
    pipelines: Pipelines, inbox: Path, schema: str, *transforms: dict[str, Any], strategy: str = "auto", **more: Any
) -> dict[str, Any]:
    load = {"writeStrategy": strategy, **more.pop("load", {})}
    return file_pipeline(
        "failing", inbox, pipelines.checkpoints, schema=schema, transforms=list(transforms), load=load, **more
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("transform", "path", "condition"),
    [
        (select(id="id", number="CAST(text AS INT)"), "transforms[0].parameters.columns.number", "CAST_INVALID_INPUT"),
        (filter_by("100 / (id - 3) > 0 OR id < 9"), "transforms[0].parameters.condition", "DIVIDE_BY_ZERO"),
    ],
)
def test_the_row_is_a_dead_letter_and_the_others_land(
    pipelines: Pipelines, inbox: Path, strategy: str, transform: dict[str, Any], path: str, condition: str
) -> None:
    write_lines(inbox / "0.json", {"id": 1, "text": "1"}, {"id": 3, "text": "three"}, {"id": 4, "text": "4"}, "broken")
    config = _pipeline(pipelines, inbox, "id INT, text STRING", transform, strategy=strategy)
    rows = pipelines.finish(config).result.rows
    assert pipelines.rows("SELECT id FROM result ORDER BY 1") == [(1,), (4,)]
    assert [rows[name] for name in ("source", "passed", "dead_lettered", "written")] == [4, 2, 2, 2]
    [failed, broken] = pipelines.rows(LETTERS)
    stage, error_class, message, row, raw, file, block = failed
    expected = ("transform", condition, {"id": 3, "text": "three"}, b'{"id": 3, "text": "three"}', "0")
    assert (stage, error_class, row, raw, block) == expected
    assert message.startswith(f"{path}: ")
    assert file.endswith("0.json")
    assert (broken[0], broken[5], broken[6]) == ("parse", file, "0")
    assert pipelines.rows("SELECT relname FROM pg_class WHERE relname LIKE 'stage\\_%'") == []


EXPRESSIONS: dict[str, dict[str, Any]] = {
    "CAST(s AS INT)": {"s": "three"},
    "CAST(s AS TIMESTAMP)": {"s": "yesterday or so"},
    "CAST(s AS BOOLEAN)": {"s": "perhaps"},
    "CAST(s AS DECIMAL(4,2))": {"s": "123.4"},
    "CAST(upper(s) AS DECIMAL(4,2))": {"s": "many"},
    "s + 1": {"s": "one"},
    "CAST(n AS TINYINT)": {"n": 300},
    "CAST(d AS DECIMAL(3,1))": {"d": 1234.5},
    "CAST(d AS INT)": {"d": 12345678901.5},
    "n / (n - 3)": {"n": 3},
    "n div (n - 3)": {"n": 3},
    "n % (n - 3)": {"n": 3},
    "n * 9223372036854775807": {"n": 3},
    "n + 9223372036854775807": {"n": 3},
    "-(n)": {"n": -(2**63)},
    "a[5]": {"a": [1]},
    "element_at(a, 5)": {"a": [1]},
    "element_at(a, CAST(n AS INT))": {"a": [1], "n": 0},
    "IF(n = 3, raise_error('three is bad'), s)": {"n": 3},
    "to_timestamp(s, 'yyyy-MM-dd')": {"s": "1.2.2026"},
    "CASE WHEN n = 0 THEN 1 / n WHEN CAST(s AS INT) > 0 THEN 2 ELSE 3 END": {"n": 1, "s": "x"},
    "CASE WHEN n <> 0 THEN 1 / (n - 3) ELSE CAST(s AS INT) END": {"n": 3, "s": "x"},
    "coalesce(CAST(s AS INT), 1 / n)": {"n": 0},
    "n > 0 AND CAST(s AS INT) > 0": {"n": 1, "s": "x"},
    "size(transform(a, x -> 1 / x)) + CAST(s AS INT)": {"a": [1], "s": "x"},
}
# Of what Spark does inside of a lambda, or of a function of its own, only that it fails.
OTHERS = {"size(transform(a, x -> 1 / x))": {"a": [0]}, "make_date(n, 13, 1)": {"n": 1}}
SCHEMA = "k INT, s STRING, n BIGINT, d DOUBLE, a ARRAY<INT>"


def test_a_letter_tells_what_spark_would_have_said(pipelines: Pipelines, inbox: Path, spark: SparkSession) -> None:
    cases = [*EXPRESSIONS.items(), *OTHERS.items()]
    rows = [{"k": number, **row} for number, (_, row) in enumerate(cases)]
    write_lines(inbox / "0.json", *rows, *({"k": -1} for _ in range(len(rows) + 1)))
    columns = {f"c{k}": f"IF(k = {k}, CAST({text} AS STRING), NULL)" for k, (text, _) in enumerate(cases)}
    pipelines.finish(_pipeline(pipelines, inbox, SCHEMA, select(k="k", **columns)))
    assert pipelines.one("SELECT count(*) FROM result") == len(rows) + 1
    found = pipelines.rows(
        "SELECT error_class, message, parsed_row FROM etl.dead_letter ORDER BY (parsed_row->>'k')::int"
    )
    for (condition, message, row), k, (text, given) in zip(found, range(len(cases)), cases, strict=True):
        assert message.startswith(f"transforms[0].parameters.columns.c{k}: {columns[f'c{k}']} fails in "), text
        assert row == {"s": None, "n": None, "d": None, "a": None, "k": k, **given}
        with pytest.raises(PySparkException) as failed:
            spark.createDataFrame([{"k": k, **given}], SCHEMA).select(F.expr(text)).collect()
        said = str(failed.value.getCondition()).split(".")[0]
        assert condition == ("EXPRESSION_FAILED" if text in OTHERS else said), text
    assert found[0][1].endswith("fails in CAST(s AS INT) of three")


@pytest.fixture(params=["generated", "interpreted"])
def code(request: pytest.FixtureRequest, spark: SparkSession) -> Iterator[None]:
    """Spark with and without generated code."""
    settings = {"spark.sql.codegen.wholeStage": "true", "spark.sql.codegen.factoryMode": "CODEGEN_ONLY"}
    if request.param == "interpreted":
        settings = {"spark.sql.codegen.wholeStage": "false", "spark.sql.codegen.factoryMode": "NO_CODEGEN"}
    before = {name: spark.conf.get(name, None) for name in settings}
    for name, value in settings.items():
        spark.conf.set(name, value)
    yield
    for name, old in before.items():
        spark.conf.unset(name) if old is None else spark.conf.set(name, old)


@pytest.mark.usefixtures("code")
def test_a_part_that_several_expressions_share_is_not_evaluated_out_of_reach(
    pipelines: Pipelines, inbox: Path, spark: SparkSession
) -> None:
    # Of Parquet all rows have passed, as Spark knows beforehand.
    texts = ["1", "x", "3", None, "5", "6"]
    rows = [(number, text) for number, text in enumerate(texts)]
    spark.createDataFrame(rows, "id INT, text STRING").coalesce(1).write.mode("append").parquet(str(inbox))
    number = "CAST(text AS INT)"
    config = _pipeline(
        pipelines, inbox, "id INT, text STRING",
        filter_by(f"{number} > 0 OR text IS NULL"),
        select(id="id", text="text", number=number, next=f"{number} + 1"),
        filter_by(f"{number} + next <> 0 OR next IS NULL"),
        select(id="id", both=f"{number} + number + next", share="60 / (number - 3)", again="60 / (number - 3) + next"),
        filter_by("share + again < 1000 OR share IS NULL"),
        format="parquet",
    )  # fmt: skip
    pipelines.finish(config)
    assert pipelines.rows("SELECT * FROM result ORDER BY id") == [
        (0, 4, -30, -28), (3, None, None, None), (4, 16, 30, 36), (5, 19, 20, 27),
    ]  # fmt: skip
    letters = pipelines.rows(
        "SELECT error_class, split_part(message, ': ', 1), parsed_row, raw_value, source->'row' FROM etl.dead_letter "
        "ORDER BY 5"
    )
    assert letters == [
        ("CAST_INVALID_INPUT", "transforms[0].parameters.condition", {"id": 1, "text": "x"}, None, 1),
        ("DIVIDE_BY_ZERO", "transforms[3].parameters.columns.share", {"id": 2, "text": "3"}, None, 2),
    ]


@pytest.mark.parametrize("strategy", ["auto", "staged"])
def test_before_an_aggregation(pipelines: Pipelines, inbox: Path, strategy: str, caplog: Any) -> None:
    config = _pipeline(
        pipelines, inbox, "id INT, shop STRING, amount STRING, at TIMESTAMP",
        filter_by("CAST(substr(shop, 2) AS INT) < 9"),
        select(shop="upper(shop)", amount="CAST(amount AS DECIMAL(10,2))", at="at"),
        aggregation(groupByColumns="shop", windowDuration="10 minutes", aggregations="amount:sum,n:count"),
        strategy=strategy, load={"writeMode": "upsert", "keys": "window_start,shop"},
        streaming={
            "outputMode": "update", "watermark": {"eventTimeColumn": "at", "delayThreshold": "10 minutes"},
        },
    )  # fmt: skip
    at = "2026-01-01T00:01:00Z"
    write_lines(inbox / "0.json", *({"id": i, "shop": "s1", "amount": "1.5", "at": at} for i in range(4)))
    pipelines.finish(config)
    assert "query_restarted" not in caplog.text
    bad = [
        {"id": 10, "shop": "shop", "amount": "1", "at": at},
        {"id": 11, "shop": "s1", "amount": "much", "at": at},
        {"id": 12, "shop": "s1", "amount": "much", "at": None},
    ]
    good = [{"id": 20, "shop": "s2", "amount": "2", "at": at}, {"id": 21, "shop": "s1", "amount": "2", "at": at}]
    write_lines(inbox / "1.json", *bad, *good, {"id": 22, "shop": "s9", "amount": "2", "at": at}, "broken")
    pipelines.finish(config)
    assert caplog.text.count("event=query_restarted reason=expression_failed") == 1
    write_lines(inbox / "2.json", {"id": 30, "shop": "s1", "amount": "3", "at": at})
    pipelines.finish(config)
    assert [(shop, float(sum_), n) for shop, sum_, n in pipelines.rows(
        "SELECT shop, amount, n FROM result ORDER BY shop")] == [("S1", 11.0, 6), ("S2", 2.0, 1)]  # fmt: skip
    books = (
        "SELECT source_rows, passed_rows, dead_lettered_rows, filtered_rows FROM etl.batch_tracker ORDER BY batch_id"
    )
    assert (7, 2, 4, 1) in pipelines.rows(books)
    letters = pipelines.rows(
        "SELECT error_class, parsed_row->>'id', convert_from(raw_value, 'UTF8'), event_time IS NOT NULL "
        "FROM etl.dead_letter WHERE stage = 'transform' ORDER BY 2"
    )
    assert [(name, int(key), json.loads(raw), timed) for name, key, raw, timed in letters] == [
        ("CAST_INVALID_INPUT", row["id"], row, row["at"] is not None) for row in bad
    ]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_row_in_a_hundred(pipelines: Pipelines, inbox: Path, strategy: str) -> None:
    count = 100_000
    lines = [{"id": i, "text": "odd" if i % 100 == 7 else str(i % 1000), "n": i % 50_000} for i in range(count)]
    for part in range(4):
        write_lines(inbox / f"{part}.json", *lines[part::4])
    transforms = [select(id="id", share="CAST(text AS INT) / n"), filter_by("share IS NULL OR share < 1000")]
    config = _pipeline(
        pipelines, inbox, "id INT, text STRING, n INT", *transforms, strategy=strategy,
        load={"maxDeadLetterFraction": 0.02},
    )  # fmt: skip
    rows = pipelines.finish(config).result.rows
    source = duckdb.sql(
        f"SELECT id, text, n, try_cast(text AS INT) IS NULL AS odd, n = 0 AS zero FROM read_json('{inbox}/*.json')"
    )
    expected = source.filter("NOT odd AND NOT zero").order("id").project("id, try_cast(text AS INT) / n").fetchall()
    assert pipelines.rows("SELECT id, share FROM result ORDER BY id") == expected
    bad = source.filter("odd OR zero").order("id").project("id, odd").fetchall()
    letters = pipelines.rows("SELECT (parsed_row->>'id')::int, error_class FROM etl.dead_letter ORDER BY 1")
    assert letters == [(i, "CAST_INVALID_INPUT" if odd else "DIVIDE_BY_ZERO") for i, odd in bad]
    assert [rows[name] for name in ("source", "passed", "dead_lettered", "written")] == [
        count, len(expected), len(bad), len(expected),
    ]  # fmt: skip


def test_the_watermark_follows_batches_that_are_read_again(pipelines: Pipelines, inbox: Path) -> None:
    config = _pipeline(
        pipelines, inbox, "text STRING, at TIMESTAMP", select(number="CAST(text AS INT)", at="at"),
        streaming={"watermark": {"eventTimeColumn": "at", "delayThreshold": "1 minute"}},
    )  # fmt: skip
    for minute, text in ((5, "x"), (9, "1")):
        at = f"2026-01-01T00:{minute:02d}:00Z"
        write_lines(inbox / f"{minute}.json", {"text": "1", "at": at}, {"text": text, "at": "2026-01-01T00:00:00Z"})
        pipelines.finish(config)
    marks = pipelines.rows("SELECT watermark, event_time_max FROM etl.batch_tracker ORDER BY batch_id")
    assert [(mark and mark.minute, latest.minute) for mark, latest in marks] == [(None, 5), (4, 9)]
    [at] = pipelines.rows("SELECT event_time FROM etl.dead_letter")
    assert at[0].minute == 0
