"""The merge statements on a real PostgreSQL, without Spark: against plain Python, at once in two sessions, by plan."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from psycopg import sql
from pyspark.sql.types import IntegerType, StringType, StructField, StructType

from spark_jobs.contracts.config import OnConflict, TableName, WriteMode
from spark_jobs.sinks.applying import MergeText
from spark_jobs.sinks.merge_sql import MergeRule
from spark_jobs.sinks.merging import empty, merge, of_attempts
from spark_jobs.sinks.origins import ORIGIN_TYPES
from spark_jobs.sinks.staging_table import create_staging
from spark_jobs.sinks.target import Target, inspect

SCHEMA = StructType(
    [
        *(StructField(name, IntegerType()) for name in ("id", "part", "version")),
        *(StructField(name, StringType()) for name in ("name", "note")),
    ]
)
TABLE = "id int, part int, version int, name text, note text, UNIQUE NULLS NOT DISTINCT (id, part)"
KEYS = ("id", "part")
SMALL = some.integers(0, 2)
ROWS = some.lists(
    some.tuples(
        some.none() | SMALL, some.none() | SMALL, some.none() | some.integers(0, 4), some.text("ab", max_size=1),
        some.text("cd", max_size=1), some.none() | some.booleans(),
    ),
    max_size=12,
)  # fmt: skip


def rule(**changes: Any) -> MergeRule:
    return MergeRule(WriteMode.UPSERT, KEYS, **changes)


def made(conn: psycopg.Connection[Any], rule: MergeRule) -> tuple[Target, MergeText]:
    target = inspect(conn, TableName("public", "result"), SCHEMA, rule.keys)
    return target, merge(target, "staged", rule, conn)


def stage(conn: psycopg.Connection[Any], target: Target, rule: MergeRule, rows: list[tuple[Any, ...]]) -> None:
    """Stage rows (id, part, version, name, note, gone); the last one counts as the batch's last."""
    conn.execute(create_staging(sql.Identifier("staged"), target, kind="TEMP", rule=rule))
    width = 6 if rule.delete_marker else 5
    marks = [(sequence, *[None] * len(ORIGIN_TYPES)) for sequence in range(1, len(rows) + 1)]
    with conn.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO staged VALUES ({', '.join(['%s'] * (width + 1 + len(ORIGIN_TYPES)))})",
            [(*row[:width], *mark) for row, mark in zip(rows, marks, strict=True)],
        )


def count(conn: psycopg.Connection[Any], merge: MergeText, statement: str) -> int:
    cursor = conn.execute(statement)
    if not merge.answers:
        return cursor.rowcount
    row = cursor.fetchone()
    assert row is not None
    return int(row[0])


def reference(
    table: dict[Any, tuple[Any, ...]], rows: list[tuple[Any, ...]], rule: MergeRule, *, suppressing: bool = False
) -> tuple[int, int]:
    """Apply a batch to ``table`` (key to version, name, note) in plain Python; return the rows written and suppressed.

    :param suppressing: whether SUPPRESSING is there.
    """

    def rank(value: int | None) -> int:
        return -1 if value is None else value

    latest: dict[Any, tuple[Any, ...]] = {}
    for row in rows:
        now = latest.get(row[:2])
        if now is None or not rule.order_column or rank(row[2]) >= rank(now[2]):
            latest[row[:2]] = row
    written = suppressed = 0
    for key, row in latest.items():
        there = table.get(key)
        stale = there is not None and bool(rule.order_column) and rank(row[2]) < rank(there[0])
        refused = suppressing and row[3] == "a"
        if rule.delete_marker and row[5]:
            kept = suppressing and there is not None and there[1] == "b"
            written += not stale and not kept
            suppressed += not stale and kept
            if not stale and not kept:
                table.pop(key, None)
        elif there is None:
            suppressed += refused
            if not refused:
                table[key] = row[2:5]
                written += 1
        elif rule.on_conflict is OnConflict.UPDATE and not stale:
            updated = rule.update_columns or ("version", "name", "note")
            changed = {*updated, *([rule.order_column] if rule.order_column else [])}
            new = tuple(
                row[2 + at] if name in changed else there[at] for at, name in enumerate(("version", "name", "note"))
            )
            suppressed += refused and new != there
            if not refused:
                table[key] = new
                written += 1
    return written, suppressed


SUPPRESSING = """
CREATE FUNCTION keep_out() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF TG_OP = 'DELETE' THEN
        IF OLD.name = 'b' THEN RETURN NULL; END IF;
        RETURN OLD;
    END IF;
    IF NEW.name = 'a' THEN RETURN NULL; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER keep_out BEFORE INSERT OR DELETE ON result FOR EACH ROW EXECUTE FUNCTION keep_out()
"""
"""A name "a" does not come in, a name "b" does not go."""
RULES = some.builds(
    rule,
    order_column=some.sampled_from([None, "version"]),
    update_columns=some.sampled_from([(), ("name",)]),
    delete_marker=some.sampled_from([None, "gone"]),
) | some.builds(
    rule,
    order_column=some.sampled_from([None, "version"]),
    on_conflict=some.just(OnConflict.NOTHING),
    delete_marker=some.sampled_from([None, "gone"]),
)


@pytest.mark.parametrize("suppressing", [False, True])
def test_batches_end_as_in_plain_python_whole_and_row_by_row(database: Any, suppressing: bool) -> None:
    with closing(database.connect(autocommit=True)) as conn:
        conn.execute(f"CREATE TABLE result ({TABLE})")
        if suppressing:
            conn.execute(SUPPRESSING)

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(rule=RULES, batches=some.lists(ROWS, min_size=1, max_size=3), whole=some.booleans())
        def run(rule: MergeRule, batches: list[list[tuple[Any, ...]]], whole: bool) -> None:
            conn.execute("TRUNCATE result")
            target, statements = made(conn, rule)
            table: dict[Any, tuple[Any, ...]] = {}
            for rows in batches:
                with conn.transaction():
                    stage(conn, target, rule, rows)
                    expected = reference(table, rows, rule, suppressing=suppressing)
                    present = _answer(conn, statements.present)
                    written = count(conn, statements, statements.whole) if whole else _spans(conn, statements)
                    asked = (statements.audit or "").format(written=written, present=present)
                    assert (written, _answer(conn, asked)) == expected
                there = conn.execute("SELECT * FROM result").fetchall()
                assert {row[:2]: row[2:] for row in there} == table
                assert len(there) == len(table)

        run()


def _answer(conn: psycopg.Connection[Any], question: str) -> int:
    if not question:
        return 0
    row = conn.execute(question.encode()).fetchone()
    assert row is not None
    return int(row[0])


def _spans(conn: psycopg.Connection[Any], statements: MergeText) -> int:
    """Merge as after a refused row: every row by itself."""
    text = statements.rows
    for statement in text.order:
        conn.execute(statement)
    rows = conn.execute(text.count).fetchone()
    assert rows is not None
    written = 0
    for ordinal in range(1, rows[0] + 1):
        row = conn.execute(text.row.format(ordinals=ordinal)).fetchone()
        assert row is not None
        assert {"id", "part"} <= json.loads(row[1]).keys()
        written += count(conn, statements, text.part.format(first=ordinal, last=ordinal))
    return written


@pytest.mark.parametrize("markers", [(None, None), ("gone", "gone"), (None, "gone")])
def test_sessions_with_the_same_keys_in_opposite_orders_do_not_deadlock(
    database: Any, markers: tuple[str | None, str | None]
) -> None:
    with closing(database.connect(autocommit=True)) as conn:
        conn.execute(f"CREATE TABLE result ({TABLE})")
        # Slow enough for the two to meet in the middle.
        conn.execute(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "PERFORM pg_sleep(0.0002); RETURN NEW; END $$;"
            "CREATE TRIGGER slow BEFORE INSERT ON result FOR EACH ROW EXECUTE FUNCTION slow()"
        )
    start, failed = threading.Barrier(2), []

    def session(backwards: bool) -> None:
        keys = KEYS[::-1] if backwards else KEYS
        chosen = MergeRule(WriteMode.UPSERT, keys, delete_marker=markers[backwards])
        with closing(database.connect(autocommit=True)) as conn:
            conn.execute("SET deadlock_timeout = '20ms'")
            target, statements = made(conn, chosen)
            for turn in range(15):
                # Half of them are there, the other half comes new before them.
                numbers = range(-200 * turn, 400 - 200 * turn)[:: -1 if backwards else 1]
                rows = [(number, number % 7, 1, "", "", (number + turn + backwards) % 3 == 0) for number in numbers]
                start.wait(timeout=60)
                try:
                    with conn.transaction():
                        stage(conn, target, chosen, rows)
                        conn.execute(statements.lock.encode())
                        count(conn, statements, statements.whole)
                except psycopg.Error as error:
                    failed.append(error)

    threads = [threading.Thread(target=session, args=[backwards]) for backwards in (False, True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads)
    assert failed == []


def test_keys_that_may_be_null_are_not_compared_row_by_row(database: Any) -> None:
    chosen = rule(delete_marker="gone")
    with closing(database.connect()) as conn:
        conn.execute(f"CREATE TABLE result ({TABLE})")
        conn.execute("INSERT INTO result SELECT n, n, 1, '', '' FROM generate_series(1, 20000) n")
        target, statements = made(conn, chosen)
        stage(conn, target, chosen, [])
        conn.execute("INSERT INTO staged SELECT n, n, 2, '', '', true, n FROM generate_series(1, 20000) n")
        conn.execute("ANALYZE result")
        conn.execute("ANALYZE staged")
        # Row by row these would be 400 million comparisons, or minutes.
        conn.execute("SET statement_timeout = '10s'")
        assert count(conn, statements, statements.whole) == 20000
        assert conn.execute("SELECT count(*) FROM result").fetchone() == (0,)


def test_readers_see_a_table_with_rows_while_it_is_overwritten(database: Any) -> None:
    with closing(database.connect(autocommit=True)) as conn, closing(database.connect(autocommit=True)) as reader:
        conn.execute(f"CREATE TABLE result ({TABLE})")
        conn.execute("INSERT INTO result VALUES (1, 1, 0, 'old', '')")
        chosen = MergeRule(WriteMode.OVERWRITE)
        target = inspect(conn, TableName("public", "result"), SCHEMA, (), deletes=True)
        reader.execute("SET lock_timeout = '1s'")
        with conn.transaction():
            stage(conn, target, chosen, [(2, 2, 0, "new", "")])
            for step in (*empty(target, conn), merge(target, "staged", chosen, conn).whole):
                conn.execute(step)
                assert reader.execute("SELECT name FROM result").fetchall() == [("old",)]
        assert reader.execute("SELECT name FROM result").fetchall() == [("new",)]


def test_staged_values_compare_as_those_of_the_target_do(database: Any) -> None:
    with closing(database.connect(autocommit=True)) as conn:
        conn.execute('CREATE TABLE result (id int, part int, version int, name text COLLATE "POSIX", note text)')
        target = inspect(conn, TableName("public", "result"), SCHEMA, ())
        with conn.transaction():
            stage(conn, target, rule(), [])
            found = conn.execute(
                "SELECT attname, attcollation::regcollation::text FROM pg_attribute "
                "WHERE attrelid = 'staged'::regclass AND attname IN ('name', 'note') ORDER BY attname"
            ).fetchall()
        assert found == [("name", '"POSIX"'), ("note", '"default"')]


def test_only_the_winning_attempts_rows_are_taken(database: Any) -> None:
    with closing(database.connect()) as conn:
        conn.execute("CREATE TABLE staged AS SELECT id, id / 2 AS _attempt FROM generate_series(0, 9) id")
        rows = conn.execute(f"SELECT id FROM staged WHERE {of_attempts([1, 4])} ORDER BY 1")
        assert rows.fetchall() == [(2,), (3,), (8,), (9,)]


@pytest.mark.parametrize("marker", [None, "gone"])
def test_partitions_identity_generated_columns_triggers_and_foreign_keys_are_respected(
    database: Any, marker: str | None
) -> None:
    chosen = rule(delete_marker=marker)
    with closing(database.connect(autocommit=True)) as conn:
        conn.execute("CREATE TABLE known (name text PRIMARY KEY)")
        conn.execute("INSERT INTO known VALUES ('a'), ('b')")
        conn.execute(
            "CREATE TABLE result (id int, part int, version int, name text REFERENCES known, note text, "
            "serial bigint GENERATED ALWAYS AS IDENTITY, twice int GENERATED ALWAYS AS (version * 2) STORED, "
            "PRIMARY KEY (part, id)) PARTITION BY LIST (part)"
        )
        conn.execute("CREATE TABLE result_1 PARTITION OF result FOR VALUES IN (1)")
        conn.execute("CREATE TABLE result_2 PARTITION OF result FOR VALUES IN (2)")
        conn.execute(
            "CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN NEW.note := TG_OP || ' ' || coalesce(NEW.note, ''); RETURN NEW; END $$"
        )
        conn.execute("CREATE TRIGGER noted BEFORE UPDATE ON result FOR EACH ROW EXECUTE FUNCTION noted()")
        target, statements = made(conn, chosen)

        def apply(*rows: tuple[Any, ...]) -> int:
            with conn.transaction():
                stage(conn, target, chosen, list(rows))
                return count(conn, statements, statements.whole)

        assert apply((1, 1, 5, "a", "x", False), (1, 2, 6, "b", "y", False)) == 2
        assert apply((1, 1, 7, "b", "z", False)) == 1
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            apply((1, 1, 9, "unknown", "z", False))
        found = conn.execute("SELECT id, part, version, name, note, twice FROM result ORDER BY part").fetchall()
        assert found == [(1, 1, 7, "b", "UPDATE z", 14), (1, 2, 6, "b", "y", 12)]
        if marker:
            assert apply((1, 1, 9, "b", "z", True)) == 1
            assert conn.execute("SELECT part FROM result").fetchall() == [(2,)]
