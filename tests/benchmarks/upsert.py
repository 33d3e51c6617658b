r"""Upsert, half of the keys new, beside what one would write by hand: ``\copy`` into a temporary table and a merge."""

from __future__ import annotations

from collections.abc import Iterator

from peers import Bench, rounds
from report import Figure
from rows import SCHEMA, TABLE, csv_files, parquet


def figures(bench: Bench, number: int) -> Iterator[Figure]:
    """Measure, and yield what the goal asks for. The batch has ``rows / 2`` rows, the table as many before."""
    size = bench.rows // 2
    data = parquet(bench.spark, bench.folder, size)
    bench.sql("DROP TABLE IF EXISTS peer", f"CREATE TABLE peer ({TABLE})")
    extract = {"sourceType": "file", "connectionParams": {"path": str(data), "format": "parquet"}}
    bench.run(bench.pipeline(extract=extract, schema=SCHEMA, load={}))
    [csv] = csv_files(bench.uri, bench.folder, 1, name="upsert")
    # Half of the batch's keys are there already, and as many others that it does not touch.
    bench.sql(
        "DROP TABLE IF EXISTS before",
        f"CREATE TABLE before AS SELECT * FROM peer WHERE id < {size // 2} UNION ALL "
        f"SELECT id + {size}, customer, sku, note, price, at FROM peer WHERE id < {size // 2}",
    )

    def fresh() -> None:
        bench.sql(
            "DROP TABLE IF EXISTS peer",
            f"CREATE TABLE peer ({TABLE}, PRIMARY KEY (id))",
            "INSERT INTO peer SELECT * FROM before ORDER BY id",
            "VACUUM ANALYZE peer",
            "CHECKPOINT",
        )

    def check(_: str) -> None:
        found = bench.sql("SELECT count(*) FROM peer")
        assert found == (size + size // 2,), found

    def ours(strategy: str) -> None:
        load = {"writeMode": "upsert", "keys": "id", "writeStrategy": strategy}
        bench.run(bench.pipeline(extract=extract, schema=SCHEMA, load=load))

    columns = ("customer", "sku", "note", "price", "at")
    by_hand = (
        "BEGIN;\nCREATE TEMP TABLE batch (LIKE peer) ON COMMIT DROP;\n"
        f"\\copy batch FROM '{csv}' (FORMAT csv)\n"
        "INSERT INTO peer SELECT * FROM batch ON CONFLICT (id) DO UPDATE SET "
        f"{', '.join(f'{name} = excluded.{name}' for name in columns)};\nCOMMIT;\n"
    )
    peers = {
        "exactly once, auto": lambda: ours("auto"),
        "exactly once, staged": lambda: ours("staged"),
        "psql by hand": lambda: bench.psql(by_hand),
    }
    rates = {name: size / seconds / 1000 for name, seconds in rounds(number, peers, fresh, check).items()}
    for name, goal in (("exactly once, auto", 0.8), ("exactly once, staged", None), ("psql by hand", None)):
        ratio = rates[name] / rates["psql by hand"]
        other = "psql: \\copy into a temporary table, INSERT … ON CONFLICT"
        yield Figure(f"upsert, half of the keys new: {name}", rates[name], "krows/s", other, ratio, goal)
