"""The shop's files as DuckDB reads them, without Spark: what the targets must hold, row for row."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adbc_driver_postgresql.dbapi as adbc
import duckdb
import pyarrow as pa

_TYPES = {
    "InvoiceNo": "VARCHAR",
    "StockCode": "VARCHAR",
    "Description": "VARCHAR",
    "Quantity": "INTEGER",
    "InvoiceDate": "TIMESTAMP",
    "UnitPrice": "DECIMAL(12,4)",
    "CustomerID": "DOUBLE",
    "Country": "VARCHAR",
}
_LINE = (
    "InvoiceNo, StockCode, Description, Quantity, InvoiceDate, UnitPrice, CustomerID::BIGINT AS customer_id, Country"
)
_LINE_IN_POSTGRES = "invoice_no, stock_code, description, quantity, invoiced_at, unit_price::text, customer_id, country"


@dataclass(frozen=True)
class Shop:
    """Some of the shop's files."""

    files: tuple[Path, ...]

    def part(self, start: int, stop: int) -> Shop:
        return Shop(self.files[start:stop])

    def arrive(self, inbox: Path) -> None:
        """Copy the files into a folder, each at once."""
        for file in self.files:
            hidden = inbox / f".{file.name}"
            shutil.copyfile(file, hidden)
            hidden.rename(inbox / file.name)

    def count(self) -> int:
        return int(self._ask("SELECT count(*) FROM lines")[0][0])

    def json_lines(self) -> Iterator[str]:
        """Each line as JSON, every value of the type that the schema says."""
        with self.open() as db:
            # An empty field is no field: the schema's NULL.
            found = db.execute("SELECT to_json(line)::VARCHAR FROM (SELECT * EXCLUDE filename FROM lines) line")
            while chunk := found.fetchmany(10_000):
                yield from (row[0] for row in chunk)

    def line_differences(self, database: Any, *, with_file: bool) -> list[tuple[Any, ...]]:
        """Compare ``retail.invoice_lines`` with the files as multisets; return rows that are missing or too many."""
        wanted, found = _LINE, _LINE_IN_POSTGRES
        if with_file:
            wanted += ", parse_filename(filename) AS file"
            found += ", regexp_replace(source_file, '.*/', '')"
        return self._differences(database, f"SELECT {wanted} FROM lines", f"SELECT {found} FROM retail.invoice_lines")

    def revenue_differences(self, database: Any) -> list[tuple[Any, ...]]:
        """Compare ``retail.revenue_by_country_day`` with the files, cent for cent."""
        wanted = (
            "SELECT Country, InvoiceDate::DATE AS day, sum(Quantity * UnitPrice)::DECIMAL(33,4) AS revenue, "
            "count(*) AS lines FROM lines WHERE Quantity > 0 AND UnitPrice > 0 GROUP BY ALL"
        )
        found = "SELECT country, day, revenue::text, lines FROM retail.revenue_by_country_day"
        return self._differences(database, wanted, found)

    def sold_lines(self) -> int:
        return int(self._ask("SELECT count(*) FROM lines WHERE Quantity > 0 AND UnitPrice > 0")[0][0])

    def _differences(self, database: Any, wanted: str, found: str) -> list[tuple[Any, ...]]:
        table = fetch(database.uri, found)
        with self.open() as db:
            db.register("fetched", table)
            db.execute(f"CREATE TEMP TABLE wanted AS {wanted}")
            db.execute("CREATE TEMP TABLE found AS SELECT * FROM wanted LIMIT 0")
            db.execute("INSERT INTO found SELECT * FROM fetched")
            query = "SELECT '{}' AS what, * FROM (FROM {} EXCEPT ALL FROM {}) LIMIT 5"
            return [
                row
                for what, one, other in (("missing", "wanted", "found"), ("surplus", "found", "wanted"))
                for row in db.execute(query.format(what, one, other)).fetchall()
            ]

    def _ask(self, query: str) -> list[tuple[Any, ...]]:
        with self.open() as db:
            return db.execute(query).fetchall()

    def open(self) -> duckdb.DuckDBPyConnection:
        db = duckdb.connect()
        db.execute("SET TimeZone = 'UTC'")
        columns = ", ".join(f"'{name}': '{kind}'" for name, kind in _TYPES.items())
        files = ", ".join("'" + str(file).replace("'", "''") + "'" for file in self.files)
        db.execute(
            f"CREATE VIEW lines AS FROM read_csv([{files}], header = true, delim = ',', quote = '\"', escape = '\"', "
            f"columns = {{{columns}}}, filename = true, auto_detect = false)"
        )
        return db


def fetch(uri: str, query: str) -> pa.Table:
    with adbc.connect(uri) as conn, conn.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetch_arrow_table()
