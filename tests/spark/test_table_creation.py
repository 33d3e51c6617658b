"""Tables that a pipeline makes for itself, also when several start at once."""

from __future__ import annotations

import threading
import time
from typing import Any

from pyspark.sql.types import LongType, StructField, StructType

from spark_jobs.contracts.config import TableName
from spark_jobs.sinks.target import create_if_missing

SCHEMA = StructType([StructField("id", LongType())])
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"


def _together(database: Any, first: TableName, second: TableName) -> bool:
    """Create the second table while the first one's transaction is open; return whether it was missing."""
    made: list[bool] = []

    def start() -> None:
        with database.connect(autocommit=True) as other:
            made.append(create_if_missing(other, second, SCHEMA, []))

    with database.connect(autocommit=True) as watcher, database.connect(autocommit=True) as conn:
        thread = threading.Thread(target=start)
        with conn.transaction():
            assert create_if_missing(conn, first, SCHEMA, [])
            thread.start()
            until = time.monotonic() + 30
            while watcher.execute(WAITING).fetchone() == (0,):
                assert thread.is_alive(), made
                assert time.monotonic() < until
        thread.join(30)
    return made[0]


def test_two_pipelines_that_start_at_once_make_their_schema_once(database: Any) -> None:
    assert _together(database, TableName("fresh", "one"), TableName("fresh", "two"))
    with database.connect(autocommit=True) as conn:
        assert conn.execute("SELECT count(*) FROM fresh.one, fresh.two").fetchone() == (0,)


def test_two_pipelines_that_start_at_once_make_their_table_once(database: Any) -> None:
    assert not _together(database, TableName("fresh", "one"), TableName("fresh", "one"))


def test_a_table_in_a_schema_that_exists_needs_no_privilege_on_the_database(database: Any) -> None:
    with database.connect(autocommit=True) as conn:
        conn.execute("CREATE ROLE making_guest")
        try:
            conn.execute("CREATE SCHEMA lent")
            conn.execute("GRANT USAGE, CREATE ON SCHEMA lent TO making_guest")
            conn.execute("SET ROLE making_guest")
            assert create_if_missing(conn, TableName("lent", "one"), SCHEMA, [])
        finally:
            conn.execute("RESET ROLE")
            conn.execute("DROP OWNED BY making_guest")
            conn.execute("DROP ROLE making_guest")
