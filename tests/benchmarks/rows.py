"""The rows that every peer writes: six columns, about 119 bytes a row as CSV, made once and read by all."""

from __future__ import annotations

from pathlib import Path

import psycopg
from pyspark.sql import SparkSession

SCHEMA = "id BIGINT, customer INT, sku STRING, note STRING, price DECIMAL(12,2), at TIMESTAMP"
COLUMNS = tuple(column.split()[0] for column in SCHEMA.replace("(12,2)", "").split(", "))
TABLE = "id bigint, customer integer, sku text, note text, price numeric(12,2), at timestamp with time zone"
_COLUMNS = (
    "id",
    "CAST(id % 100000 AS INT) AS customer",
    "concat('sku-', lpad(CAST(id % 5000 AS STRING), 8, '0')) AS sku",
    "concat('a note of some length about order number ', CAST(id AS STRING)) AS note",
    "CAST((id % 100000) / 100 AS DECIMAL(12,2)) AS price",
    "timestamp_micros(1700000000000000 + id * 1000) AS at",
)


def parquet(spark: SparkSession, folder: Path, rows: int, files: int = 2) -> Path:
    """Write the rows as Parquet, in as many files as there are cores."""
    path = folder / f"rows-{rows}"
    if not (path / "_SUCCESS").exists():
        spark.range(0, rows, 1, files).selectExpr(*_COLUMNS).write.mode("overwrite").parquet(str(path))
    return path


def csv_files(uri: str, folder: Path, parts: int, name: str = "rows") -> list[Path]:
    """Export the table ``peer`` as CSV, in ``parts`` files of the same size."""
    paths = []
    with psycopg.connect(uri) as conn:
        for part in range(parts):
            path = folder / f"{name}-{part + 1}-of-{parts}.csv"
            paths.append(path)
            query = f"COPY (SELECT * FROM peer WHERE id % {parts} = {part}) TO STDOUT (FORMAT csv)"
            with path.open("wb") as file, conn.cursor().copy(query) as copy:
                for block in copy:
                    file.write(block)
    return paths
