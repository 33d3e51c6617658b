"""What care for errors costs: switched on in a healthy run, and one row in a hundred that is bad."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from peers import Bench, rounds
from report import Figure
from rows import COLUMNS, SCHEMA, TABLE, parquet

_EVERY = 100
# The whole of reference/002, the letters at home in PostgreSQL.
_CARE = {
    "retryConfig": {"strategy": "exponential", "maxAttempts": 5, "initialDelaySeconds": 10, "maxDelaySeconds": 300},
    "circuitBreakerConfig": {"enabled": True, "failureThreshold": 10, "resetTimeoutSeconds": 120},
    "dlqConfig": {"dlqType": "postgresql"},
    "failFast": False,
}
# What becomes of a bad line: text that ends within it, or a price that the table's check refuses.
_LINES = {"clean": "value", "unreadable": "left(value, 40)", "refused": "replace(value, '\"price\":', '\"price\":-')"}
# A customer whom the table does not know to which the target refers.
_ORPHANED = {"clean": "value", "orphaned": "replace(value, '\"customer\":', '\"customer\":-1')"}
# A price for which a transform divides by zero.
_FAILING = {"clean": "value", "failing": "regexp_replace(value, '\"price\":[0-9.]+', '\"price\":-1')"}
_DIVIDING = {
    "transformType": "select",
    "parameters": {
        "columns": {**{name: name for name in COLUMNS}, "price": "CAST(price + 0 div (price + 1) AS DECIMAL(12,2))"}
    },
}
# A first look that is enough, or a second one: the batch is rolled back and written again row by row.
_GOALS = {"unreadable": 0.7, "refused": 0.5}
_STRATEGIES = ("single", "staged", "two_phase")


def healthy(bench: Bench, number: int) -> Iterator[Figure]:
    """Measure appends with retry, breaker and dead-letter queue beside the same without."""
    data = parquet(bench.spark, bench.folder, bench.rows)
    extract = {"sourceType": "file", "connectionParams": {"path": str(data), "format": "parquet"}}
    peers: dict[str, Callable[[], Any]] = {
        f"{strategy}, {'on' if care else 'off'}": partial(_run, bench, extract, strategy, care)
        for strategy in _STRATEGIES
        for care in (None, _CARE)
    }
    seconds = rounds(number, peers, lambda: _fresh(bench), lambda _: _check(bench, 0))
    rates = {name: bench.rows / took / 1000 for name, took in seconds.items()}
    for strategy in _STRATEGIES:
        on, off = f"{strategy}, on", f"{strategy}, off"
        name = f"healthy append, {strategy}: retry, breaker and dead-letter queue on"
        yield Figure(name, rates[on], "krows/s", "all of them off", rates[on] / rates[off], 0.95)


def bad_rows(bench: Bench, number: int) -> Iterator[Figure]:
    """Measure lines of which one in a hundred is bad beside clean ones."""
    yield from _bad(bench, number, _LINES, _GOALS, "CHECK (price >= 0)")


def orphaned_rows(bench: Bench, number: int) -> Iterator[Figure]:
    """Measure lines of which one in a hundred refers to nothing, beside clean ones, both with the foreign key."""
    bench.sql(
        "DROP TABLE IF EXISTS peer, peer_customer",
        "CREATE TABLE peer_customer (customer integer PRIMARY KEY)",
        "INSERT INTO peer_customer SELECT generate_series(0, 99999)",
        "ANALYZE peer_customer",
    )
    yield from _bad(bench, number, _ORPHANED, {"orphaned": 0.5}, "FOREIGN KEY (customer) REFERENCES peer_customer")


def failing_rows(bench: Bench, number: int) -> Iterator[Figure]:
    """Measure lines of which one in a hundred makes a transform fail, beside clean ones, both with the transform."""
    yield from _bad(bench, number, _FAILING, {"failing": 0.5}, "CHECK (price >= 0)", [_DIVIDING])


def _bad(
    bench: Bench,
    number: int,
    spoiling: Mapping[str, str],
    goals: Mapping[str, float],
    demand: str,
    transforms: Sequence[Mapping[str, Any]] = (),
) -> Iterator[Figure]:
    lines = {kind: _lines(bench, kind, how) for kind, how in spoiling.items()}
    peers: dict[str, Callable[[], Any]] = {
        f"{kind}, {strategy}": partial(_run, bench, _json(path), strategy, None, transforms)
        for kind, path in lines.items()
        for strategy in _STRATEGIES
    }
    bad = len(range(0, bench.rows, _EVERY))
    seconds = rounds(
        number,
        peers,
        lambda: _fresh(bench, demand),
        lambda name: _check(bench, 0 if name.startswith("clean") else bad),
    )
    rates = {name: bench.rows / took / 1000 for name, took in seconds.items()}
    for kind, goal in goals.items():
        for strategy in _STRATEGIES:
            mine, clean = rates[f"{kind}, {strategy}"], rates[f"clean, {strategy}"]
            yield Figure(f"JSON lines, 1 % {kind}: {strategy}", mine, "krows/s", "clean lines", mine / clean, goal)


def _run(
    bench: Bench,
    extract: Mapping[str, Any],
    strategy: str,
    care: Mapping[str, Any] | None,
    transforms: Sequence[Mapping[str, Any]] = (),
) -> None:
    load = {"writeStrategy": strategy}
    bench.run(
        bench.pipeline(extract=extract, schema=SCHEMA, load=load, error_handling=care, transforms=list(transforms))
    )


def _json(path: Path) -> dict[str, Any]:
    return {"sourceType": "file", "connectionParams": {"path": str(path), "format": "json"}}


def _lines(bench: Bench, kind: str, how: str) -> Path:
    """Write the rows as JSON lines, every hundredth spoilt in the way of ``kind``, in a file for each core."""
    path = bench.folder / f"lines-{kind}"
    rows = bench.spark.read.schema(SCHEMA).parquet(str(parquet(bench.spark, bench.folder, bench.rows)))
    # A price of at least a cent: -0 would pass the check.
    texts = rows.selectExpr("id", "to_json(struct(id, customer, sku, note, price + 0.01 AS price, at)) AS value")
    spoilt = texts.selectExpr(f"CASE WHEN id % {_EVERY} = 0 THEN {how} ELSE value END")
    spoilt.coalesce(2).write.mode("overwrite").text(str(path))
    return path


def _fresh(bench: Bench, demand: str = "CHECK (price >= 0)") -> None:
    bench.sql("DROP TABLE IF EXISTS peer", f"CREATE TABLE peer ({TABLE}, {demand})")
    if bench.sql("SELECT to_regclass('etl.dead_letter') IS NOT NULL") == (True,):
        bench.sql("TRUNCATE etl.dead_letter_bundle, etl.dead_letter_bundled")
    bench.sql("CHECKPOINT")


def _check(bench: Bench, bad: int) -> None:
    found = bench.sql("SELECT (SELECT count(*) FROM peer), (SELECT count(*) FROM etl.dead_letter)")
    assert found == (bench.rows - bad, bad), found
