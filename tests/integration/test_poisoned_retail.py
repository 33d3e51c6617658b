"""The shop's lines with one in a hundred poisoned: DuckDB finds each in exactly one place, before and after replay."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import duckdb
import pytest
from ledger_books import balanced_totals
from pipeline_runs import Pipelines, file_pipeline
from retail import Shop, fetch

_SCHEMA = (
    "line BIGINT, invoice_no STRING, stock_code STRING, description STRING, quantity INT, invoiced_at TIMESTAMP, "
    "unit_price DECIMAL(12,4), customer_id BIGINT, country STRING"
)
_TABLE = (
    "line bigint NOT NULL, invoice_no text, stock_code text NOT NULL, description text, "
    "quantity integer CHECK (quantity BETWEEN -100000 AND 100000), invoiced_at timestamptz, "
    "unit_price numeric(12,4), customer_id bigint, country text REFERENCES country"
)
# What is done to a line, and where it must be found: stage and SQLSTATE of its dead letter.
_POISONS = {
    "malformed": ("left(text, length(text) // 2)", "parse", None),
    "mistyped": ('replace(text, \'"quantity":\', \'"quantity":"many","_":\')', "parse", None),
    "check": ('replace(text, \'"quantity":\', \'"quantity":200000000,"_":\')', "write", "23514"),
    "not null": ("replace(text, '\"stock_code\":', '\"_\":')", "write", "23502"),
    "foreign key": ('replace(text, \'"country":\', \'"country":"Atlantis","_":\')', "write", "23503"),
    "NUL": ('replace(text, \'"invoice_no":"\', \'"invoice_no":"\\u0000\')', "write", "22021"),
}
# What brings all of them home but those that were cut in half.
_REPAIR = {
    '"quantity":"many","_":': '"quantity":',
    '"quantity":200000000,"_":': '"quantity":',
    '"country":"Atlantis","_":': '"country":',
    '"_":': '"stock_code":',
    '"invoice_no":"\\\\u0000': '"invoice_no":"',
}
_LINES_A_FILE = 10_000
_TARGET = (
    "SELECT line, invoice_no, stock_code, description, quantity, invoiced_at, unit_price::text, customer_id, country "
    "FROM result"
)
_LANDED = (
    "SELECT line, invoice_no, stock_code, description, quantity, invoiced_at::TIMESTAMP, unit_price::DECIMAL(12,4), "
    "customer_id, country FROM target"
)
_LETTERS = (
    "SELECT stage, sqlstate, convert_from(raw_value, 'UTF8') AS raw_value, (parsed_row->>'line')::bigint AS line "
    "FROM etl.dead_letter"
)


@pytest.fixture
def poisoned(shop: Shop) -> Any:
    """A DuckDB with a table ``sent``: number, kind and text of every line, and its columns."""
    with shop.open() as db:
        db.execute(
            "CREATE TABLE line AS SELECT row_number() OVER () - 1 AS line, InvoiceNo AS invoice_no, StockCode AS "
            "stock_code, Description AS description, Quantity AS quantity, InvoiceDate AS invoiced_at, UnitPrice AS "
            "unit_price, CustomerID::BIGINT AS customer_id, Country AS country FROM lines"
        )
        kinds = ", ".join(f"'{kind}'" for kind in _POISONS)
        texts = " ".join(f"WHEN '{kind}' THEN {text}" for kind, (text, *_) in _POISONS.items())
        kind = f"[{kinds}][(1 + hash(number) // 100 % {len(_POISONS)})::BIGINT]"
        db.execute(
            f"CREATE TABLE sent AS SELECT *, CASE kind {texts} ELSE text END AS sent FROM ("
            f"SELECT *, CASE WHEN hash(number) % 100 = 0 THEN {kind} ELSE 'good' END AS kind FROM ("
            "SELECT line AS number, to_json(t)::VARCHAR AS text FROM line AS t))"
        )
        yield db


def _send(db: duckdb.DuckDBPyConnection, folder: Path, first: int, last: int) -> None:
    for number in range(first, last):
        query = "SELECT sent FROM sent WHERE number // ? = ? ORDER BY number"
        lines = [text for (text,) in db.execute(query, [_LINES_A_FILE, number]).fetchall()]
        (folder / f"{number:03}.json").write_text("\n".join(lines) + "\n")


def test_every_line_is_in_exactly_one_place(
    pipelines: Pipelines, poisoned: duckdb.DuckDBPyConnection, inbox: Path
) -> None:
    with pipelines.database.connect(autocommit=True) as conn:
        conn.execute("CREATE TABLE country (name text PRIMARY KEY)")
        countries = poisoned.execute("SELECT DISTINCT country FROM line").fetchall()
        conn.cursor().executemany("INSERT INTO country VALUES (%s)", countries)
        conn.execute(f"CREATE TABLE result ({_TABLE})")
    files = poisoned.execute(f"SELECT max(number) // {_LINES_A_FILE} + 1 FROM sent").fetchall()[0][0]
    strategies = ("auto", "staged", "two_phase", "single")
    for number, strategy in enumerate(strategies):
        _send(poisoned, inbox, files * number // len(strategies), files * (number + 1) // len(strategies))
        config = file_pipeline(
            "poisoned",
            inbox,
            pipelines.checkpoints,
            schema=_SCHEMA,
            load={"autoCreateTable": False, "writeStrategy": strategy},
            options={"maxFilesPerTrigger": "5"},
        )
        pipelines.finish(config)
    assert _differences(poisoned, pipelines.database.uri) == []
    totals = balanced_totals(pipelines, "poisoned")
    good, bad = poisoned.execute(
        "SELECT count(*) FILTER (kind = 'good'), count(*) FILTER (kind <> 'good') FROM sent"
    ).fetchall()[0]
    assert bad > 5_000
    assert (totals["source_rows"], totals["written_rows"]) == (good + bad, good)
    assert totals["dead_lettered_rows"] + totals["write_dead_lettered_rows"] == bad

    patch = reduce(lambda text, broken: f"replace({text}, '{broken[0]}', '{broken[1]}')", _REPAIR.items(), "_value")
    summary = pipelines.replayed("poisoned", patch={"_value": patch}, batch_size=2_000)
    halves = poisoned.execute("SELECT count(*) FROM sent WHERE kind = 'malformed'").fetchall()[0][0]
    assert (summary.taken, summary.replayed, summary.failed) == (bad, bad - halves, halves)
    assert _differences_after_replay(poisoned, pipelines.database.uri) == []
    home = balanced_totals(pipelines, f"poisoned/replay/{summary.replay_id}")
    assert (home["source_rows"], home["written_rows"], home["dead_lettered_rows"]) == (bad, bad - halves, halves)


def _differences_after_replay(db: duckdb.DuckDBPyConnection, uri: str) -> list[tuple[Any, ...]]:
    """Compare the target with all lines but the halves, and the letters that still wait with those."""
    db.register("target", fetch(uri, _TARGET))
    db.register("waiting", fetch(uri, f"{_LETTERS} WHERE status <> 'replayed'"))
    return _compared(
        db,
        {
            "the target": ("SELECT line.* FROM line JOIN sent ON number = line.line AND kind <> 'malformed'", _LANDED),
            "lines that wait": ("SELECT sent FROM sent WHERE kind = 'malformed'", "SELECT raw_value FROM waiting"),
        },
    )


def _differences(db: duckdb.DuckDBPyConnection, uri: str) -> list[tuple[Any, ...]]:
    """Compare target and dead letters, as multisets, with what was sent."""
    db.register("target", fetch(uri, _TARGET))
    db.register("letter", fetch(uri, _LETTERS))
    refused = "WHERE place.stage = 'write'"
    places = " UNION ALL ".join(
        f"SELECT '{kind}' AS kind, '{stage}' AS stage, {'NULL' if state is None else repr(state)} AS sqlstate"
        for kind, (_, stage, state) in _POISONS.items()
    )
    compared = {
        "the target": (
            "SELECT line.* FROM line JOIN sent ON number = line.line AND kind = 'good'",
            _LANDED,
        ),
        "lines that could not be read": (
            f"SELECT sent FROM sent JOIN ({places}) AS place USING (kind) WHERE place.stage = 'parse'",
            "SELECT raw_value FROM letter WHERE stage = 'parse'",
        ),
        "rows that PostgreSQL refused": (
            f"SELECT number, place.sqlstate, sent FROM sent JOIN ({places}) AS place USING (kind) {refused}",
            "SELECT line, sqlstate, raw_value FROM letter WHERE stage = 'write'",
        ),
    }
    return _compared(db, compared)


def _compared(db: duckdb.DuckDBPyConnection, compared: dict[str, tuple[str, str]]) -> list[tuple[Any, ...]]:
    return [
        (where, what, *row)
        for where, (wanted, found) in compared.items()
        for what, one, other in (("missing", wanted, found), ("surplus", found, wanted))
        for row in db.execute(f"({one}) EXCEPT ALL ({other}) LIMIT 5").fetchall()
    ]
