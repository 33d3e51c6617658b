"""What the demo reads back from PostgreSQL: windows, the ledger's books, and whether they fit what was generated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql
from rich.table import Table

from sandbox.demo_pipelines import LINES, LINES_TABLE, WINDOWS, WINDOWS_TABLE
from sandbox.demo_screen import Screen, table
from sandbox.orders import Counts, OrderDay

Connection = psycopg.Connection[tuple[Any, ...]]
_BATCHES = """
    SELECT pipeline_id, batch_id, source_rows, passed_rows, dead_lettered_rows, late_rows, sink_rows, written_rows
    FROM etl.batch_tracker ORDER BY processed_at
"""


@dataclass
class Watch:
    """Tells of each committed micro-batch once, while the runs go on."""

    connection: Connection
    screen: Screen
    _seen: set[tuple[Any, ...]] = field(default_factory=set)

    def look(self) -> None:
        """Say what was committed since the last look."""
        for row in self.connection.execute(_BATCHES).fetchall():
            if row[:2] not in self._seen:
                self._seen.add(row[:2])
                pipeline, batch, source, _, dead, late, _, written = row
                self.screen.say(
                    f"  {pipeline} micro-batch {batch}: {source:,} rows in, {dead:,} dead letters, {late:,} late, "
                    f"{written:,} rows written"
                )


def show(connection: Connection, screen: Screen) -> None:
    """Print the windows and, beside them, the books."""
    columns = ["pipeline", "batch", "source", "= passed", "+ dead", "+ late", "sink", "= written"]
    books = table("etl.batch_tracker: the books", columns, connection.execute(_BATCHES).fetchall())
    screen.beside(_busiest(connection), books)
    screen.beside(_countries(connection), _letters(connection))


def _busiest(connection: Connection) -> Table:
    columns = "to_char(window_start, 'YYYY-MM-DD HH24:MI'), country, orders, quantity, round(average_price, 2)"
    query = f"SELECT {columns} FROM {{}} ORDER BY orders DESC, window_start, country LIMIT 12"
    rows = connection.execute(_on(WINDOWS_TABLE, query)).fetchall()
    return table(f"{WINDOWS_TABLE}: the busiest", ["window (UTC)", "country", "orders", "quantity", "avg price"], rows)


def _countries(connection: Connection) -> Table:
    query = "SELECT country, count(*), sum(orders)::bigint, sum(quantity)::bigint FROM {} GROUP BY 1 ORDER BY 3 DESC"
    rows = connection.execute(_on(WINDOWS_TABLE, query)).fetchall()
    return table(f"{WINDOWS_TABLE}: the day", ["country", "windows", "orders", "quantity"], rows)


def _letters(connection: Connection) -> Table:
    one = "(array_agg({} ORDER BY length(raw_value) DESC, raw_value))[1]"
    raw, why = one.format("left(convert_from(raw_value, 'UTF8'), 40)"), one.format("left(message, 60)")
    query = f"SELECT pipeline_id, count(*), {raw}, {why} FROM etl.dead_letter GROUP BY 1 ORDER BY 1"
    rows = connection.execute(query).fetchall()
    return table("etl.dead_letter", ["pipeline", "letters", "one of them", "its error"], rows)


def check(connection: Connection, screen: Screen, day: OrderDay) -> bool:
    """Compare the books and the tables with what was generated; say each comparison; tell whether all hold."""
    counts = day.counts
    late = _number(connection, f"SELECT sum(late_rows) FROM etl.batch_tracker WHERE pipeline_id = '{WINDOWS}'")
    outcomes = [*_source_side(connection, counts)]
    lines = connection.execute(_on(LINES_TABLE, "SELECT count(*) FROM {}")).fetchone()
    outcomes.append((f"rows in {LINES_TABLE}", lines[0] if lines else 0, "readable lines", counts.readable))
    orders = connection.execute(_on(WINDOWS_TABLE, "SELECT coalesce(sum(orders), 0)::bigint FROM {}")).fetchone()
    # The order from the future is in a window that no later event has closed.
    expected = counts.readable - late - counts.future
    outcomes.append(
        ("orders in all windows", orders[0] if orders else 0, f"readable − {late:,} late − 1 ahead", expected)
    )
    screen.say("")
    for what, found, of, wanted in outcomes:
        mark = "[green]✓[/]" if found == wanted else "[red]✗[/]"
        screen.say(f"{mark} {what}: {found:,}; generated: {of}, {wanted:,}")
    return all(found == wanted for _, found, _, wanted in outcomes)


def _source_side(connection: Connection, counts: Counts) -> list[tuple[str, int, str, int]]:
    outcomes = []
    for pipeline in (WINDOWS, LINES):
        of = f"WHERE pipeline_id = '{pipeline}'"
        source = _number(connection, f"SELECT sum(source_rows) FROM etl.batch_tracker {of}")
        letters = _number(connection, f"SELECT count(*) FROM etl.dead_letter {of}")
        outcomes.append((f"rows read by {pipeline}", source, "all lines", counts.total))
        outcomes.append((f"dead letters of {pipeline}", letters, "malformed and mistyped lines", counts.unreadable))
    return outcomes


def _number(connection: Connection, query: str) -> int:
    row = connection.execute(query).fetchone()
    return int(row[0] or 0) if row else 0


def _on(table: str, query: str) -> sql.Composed:
    return sql.SQL(query).format(sql.Identifier(*table.split(".")))
