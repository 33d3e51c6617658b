"""A sieve finds refused rows inside the server: the same rows land, and the same is said of the others."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as some
from psycopg import sql
from pyspark.sql.types import DecimalType, IntegerType, LongType, StringType, StructField, StructType

from spark_jobs.contracts.config import TableName
from spark_jobs.sinks.careful import CarefulCopy
from spark_jobs.sinks.copying import Session, transaction
from spark_jobs.sinks.cursor import Cursor, Error
from spark_jobs.sinks.refused import Limit, RefusedRows
from spark_jobs.sinks.sieve import Sieve, SieveText
from spark_jobs.sinks.sieve_text import sieve_text
from spark_jobs.sinks.sorting import LetterSpool
from spark_jobs.sinks.target import inspect

DDL = """
CREATE DOMAIN price AS numeric(4, 1) NOT NULL CHECK (VALUE <> 13);
CREATE TYPE color AS ENUM ('red', 'blue');
CREATE TABLE shop (id int PRIMARY KEY);
INSERT INTO shop SELECT generate_series(0, 6);
CREATE TABLE result (
    "line" int CHECK ("line" < 100), c bigint UNIQUE NOT NULL, name varchar(4), code character(3), price price,
    color color, shop int REFERENCES shop DEFERRABLE INITIALLY DEFERRED,
    twice bigint GENERATED ALWAYS AS (c * 2) STORED,
    number int GENERATED ALWAYS AS IDENTITY
) PARTITION BY RANGE (c);
CREATE TABLE result_low PARTITION OF result FOR VALUES FROM (0) TO (50);
CREATE TABLE result_high PARTITION OF result FOR VALUES FROM (50) TO (9223372036854775807);
"""
ARROW = {
    "line": pa.int32(), "c": pa.int64(), "name": pa.string(), "code": pa.string(), "price": pa.decimal128(12, 2),
    "color": pa.string(), "shop": pa.int32(),
}  # fmt: skip
# The table's columns may take these; what is sent is what they may not.
SPARK = {
    "id": LongType(), "line": IntegerType(), "c": LongType(), "name": StringType(), "code": StringType(),
    "price": DecimalType(3, 1), "color": StringType(), "shop": IntegerType(),
}  # fmt: skip
FUNCTIONS = "SELECT count(*)::text FROM pg_proc WHERE proname ~ '^etl_'"
TABLES = "SELECT count(*)::text FROM pg_class WHERE relname ~ '^_?etl_'"
CASTS = "%s::int, %s::bigint, %s::text, %s::bpchar, %s::numeric, %s::text::color, %s::int"

Row = tuple[Any, ...]
ROWS = some.tuples(
    some.integers(0, 110),
    some.integers(0, 60) | some.sampled_from([None, -1, 2**62]),
    some.sampled_from(["", "abc", "abcd", "abcd  ", "abcde", None]),
    some.sampled_from(["x", "xyz", "xyz ", "xyzw"]),
    some.sampled_from([Decimal("1.25"), Decimal("999.90"), Decimal("999.99"), Decimal("13.04"), None]),
    some.sampled_from(["red", "blue"]),
    some.integers(0, 7) | some.none(),
)
GOOD: Row = (1, 1, "a", "x", Decimal("1.20"), "red", 1)


@dataclass(frozen=True)
class Copied:
    """What a careful copy did."""

    landed: int
    letters: list[dict[str, Any]]


@pytest.fixture
def table(database: Any) -> Any:
    with closing(database.connect(autocommit=True)) as conn:
        conn.execute(DDL)
        conn.execute('CREATE SCHEMA "etl ledger"')
    return database


@pytest.fixture
def role(database: Any) -> Iterator[str]:
    """A role without any privilege of its own."""
    name = f"Writer {uuid.uuid4().hex[:8]}"
    with closing(database.connect(autocommit=True)) as conn:
        conn.execute(f'CREATE ROLE "{name}"')
        yield name
        conn.execute(f'DROP OWNED BY "{name}"')
        conn.execute(f'DROP ROLE "{name}"')


@contextmanager
def _writing(database: Any, role: str | None = None) -> Iterator[Cursor]:
    with transaction(Session(database.uri, "test", "30s", "30s", role)) as cursor:
        yield cursor
        cursor.run("COMMIT")


def _sieve(database: Any, cursor: Cursor, columns: Sequence[str], lasting: str | None = None) -> Sieve:
    return Sieve(cursor, _text(database, columns, lasting).of(0, 1))


def _text(database: Any, columns: Sequence[str], lasting: str | None) -> SieveText:
    schema = StructType([StructField(name, SPARK[name]) for name in columns])
    with closing(database.connect()) as conn:
        target = inspect(conn, TableName("public", "result"), schema, ())
        return sieve_text(conn, target.identifier(), target.columns, target.checks, (), target.demands, lasting)


def _copy(
    database: Any,
    columns: Mapping[str, pa.Array],
    *,
    sieve: bool = True,
    role: str | None = None,
    lasting: str | None = None,
) -> Copied:
    return _copy_batches(database, pa.table(dict(columns)).to_batches(), sieve=sieve, role=role, lasting=lasting)


def _copy_batches(
    database: Any,
    batches: Sequence[pa.RecordBatch],
    *,
    sieve: bool = True,
    role: str | None = None,
    lasting: str | None = None,
) -> Copied:
    letters = LetterSpool()
    with closing(letters), _writing(database, role) as cursor:
        names = batches[0].schema.names
        copy = CarefulCopy(cursor, "public", "result", dict.fromkeys(names, ""), RefusedRows(letters, Limit()))
        copy.sieve = _sieve(database, cursor, names, lasting) if sieve else None
        landed = copy.copy(batches)
        assert cursor.scalar(FUNCTIONS) == "0"
        # A temporary table goes with the transaction.
        assert not lasting or cursor.scalar(TABLES) == "0"
        return Copied(landed, [json.loads(text) for chunk in letters.batches() for text in chunk])


def _arrow(rows: Sequence[Row]) -> dict[str, pa.Array]:
    return {name: pa.array([row[i] for row in rows], kind) for i, (name, kind) in enumerate(ARROW.items())}


def _landed(database: Any) -> list[Row]:
    with closing(database.connect(autocommit=True)) as conn:
        rows = conn.execute("SELECT line, c, name, code, price, color, shop, twice FROM result ORDER BY c").fetchall()
        conn.execute("TRUNCATE result")
    return rows


def _said(letters: Sequence[dict[str, Any]], *more: str) -> list[tuple[Any, ...]]:
    names = ("sqlstate", "message", "constraint_name", "parsed_row", *more)
    return sorted((tuple(str(one[name]) for name in names) for one in letters), key=str)


def _one_by_one(database: Any, rows: Sequence[Row]) -> list[tuple[str, str | None]]:
    """Insert each row by itself; return SQLSTATE and constraint of those that are refused."""
    said = []
    with closing(database.connect()) as conn:
        conn.execute("SET CONSTRAINTS ALL IMMEDIATE")
        for row in rows:
            try:
                with conn.transaction():
                    conn.execute(
                        f"INSERT INTO result (line, c, name, code, price, color, shop) VALUES ({CASTS})".encode(), row
                    )
            except psycopg.Error as error:
                said.append((str(error.sqlstate), error.diag.constraint_name))
        conn.commit()
    return sorted(said, key=str)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some.lists(ROWS, min_size=8, max_size=80))
@example([(1, 5, *GOOD[2:6], 7), (1, 5, *GOOD[2:])])
@example([GOOD, *[(*GOOD[:6], 7)] * 5, (2, 2, *GOOD[2:])] * 3)
@example([(200, *GOOD[1:])] * 5 + [(n, n, *GOOD[2:6], 7 if n in (40, 79) else 1) for n in range(80)])
def test_a_sieve_says_what_one_insert_for_each_row_would_say(table: Any, rows: list[Row]) -> None:
    one_by_one = _one_by_one(table, rows)
    expected = _landed(table)
    copied = _copy(table, _arrow(rows), sieve=False)
    assert _landed(table) == expected
    sifted = _copy(table, _arrow(rows))
    assert _landed(table) == expected
    assert sifted.landed == len(expected)
    assert sorted([(one["sqlstate"], one["constraint_name"]) for one in sifted.letters], key=str) == one_by_one
    assert _said(sifted.letters, "column_name") == _said(copied.letters, "column_name")
    lasting = _copy(table, _arrow(rows), lasting="etl ledger")
    assert _landed(table) == expected
    assert (lasting.landed, _said(lasting.letters)) == (sifted.landed, _said(sifted.letters))


def test_parts_that_will_be_prepared_have_sieves_side_by_side(database: Any, calls: list[str]) -> None:
    _checked(database, 'CREATE SCHEMA "etl ledger"')
    text, parts = _text(database, ["id"], "etl ledger"), 3
    with ExitStack() as stack:
        for part in range(parts):
            letters = stack.enter_context(closing(LetterSpool()))
            # Each is left open: its names are taken until it ends.
            cursor = stack.enter_context(transaction(Session(database.uri, "test", "30s", "30s", None)))
            copy = CarefulCopy(cursor, "public", "result", {"id": ""}, RefusedRows(letters, Limit()))
            copy.sieve = Sieve(cursor, text.of(part, 2**31))
            before = len(calls)
            assert copy.copy(pa.table(_numbers(3000, 10)).to_batches()) == 2700
            assert letters.count == 300
            assert len(calls) - before < 60
            cursor.run(f"PREPARE TRANSACTION 'sieve {part}'")
    with closing(database.connect(autocommit=True)) as conn:
        for part in range(parts):
            conn.execute(f"COMMIT PREPARED 'sieve {part}'".encode())
        assert conn.execute("SELECT count(*), count(DISTINCT id) FROM result").fetchone() == (parts * 2700, 2700)
        assert [conn.execute(left).fetchone() for left in (FUNCTIONS, TABLES)] == [("0",)] * 2


def test_what_no_column_can_hold_and_what_a_check_refuses_meet_in_a_sieve(table: Any) -> None:
    rows = [(number, number, "a\0" if number % 5 == 3 else "a", *GOOD[3:]) for number in range(120)]
    copied = _copy(table, _arrow(rows))
    assert copied.landed == len([n for n in range(100) if n % 5 != 3]) == len(_landed(table))
    states = [one["sqlstate"] for one in copied.letters]
    assert (states.count("22021"), states.count("23514")) == (24, 16)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the calls to the server."""
    found: list[str] = []
    for name in ("run", "execute", "ingest"):
        real = getattr(Cursor, name)

        def counted(cursor: Cursor, *given: Any, real: Any = real, name: str = name) -> Any:
            found.append(name)
            return real(cursor, *given)

        monkeypatch.setattr(Cursor, name, counted)
    return found


def _checked(database: Any, *more: str) -> None:
    with closing(database.connect(autocommit=True)) as conn:
        conn.execute("CREATE TABLE result (id bigint CHECK (id >= 0))")
        for statement in more:
            conn.execute(statement.encode())


def _numbers(count: int, every: int) -> dict[str, pa.Array]:
    return {"id": pa.array([-n if n % every == 0 else n for n in range(1, count + 1)], pa.int64())}


@pytest.mark.parametrize(
    ("odd", "refused"),
    [
        ("CHECK (result IS NOT NULL)", set()),
        ("CHECK (1000 / (id - 7) < 1000)", {7, 8}),
        ("CHECK (id = 8 OR strict(id))", {7}),
        ("CHECK (id <> 8) NOT VALID", {8}),
        ("CHECK (id <> 8) NO INHERIT", {8}),
    ],
)
def test_checks_that_cannot_be_asked_beforehand(database: Any, odd: str, refused: set[int]) -> None:
    strict = "CREATE FUNCTION strict(id bigint) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN {} END $$"
    with closing(database.connect(autocommit=True)) as conn:
        conn.execute(strict.format("IF id = 7 THEN RAISE EXCEPTION 'seven'; END IF; RETURN true;").encode())
    _checked(database, f"ALTER TABLE result ADD {odd}")
    copied = _copy(database, _numbers(500, 10))
    with closing(database.connect()) as conn:
        landed = {number for (number,) in conn.execute("SELECT id FROM result")}
    assert landed == {number for number in range(1, 501) if number % 10} - refused
    assert {abs(json.loads(one["parsed_row"])["id"]) for one in copied.letters} == set(range(1, 501)) - landed
    assert (copied.landed, len(copied.letters)) == (len(landed), 500 - len(landed))


def test_a_row_that_was_set_aside_in_vain_lands(database: Any) -> None:
    # What is asked says one thing, and what the server does another: its word counts.
    with closing(database.connect(autocommit=True)) as conn:
        conn.execute("CREATE FUNCTION fits(id bigint) RETURNS boolean LANGUAGE sql VOLATILE AS 'SELECT id >= 0'")
        conn.execute("CREATE TABLE result (id bigint CHECK (fits(id)))")
    letters = LetterSpool()
    with closing(letters), _writing(database) as cursor:
        copy = CarefulCopy(cursor, "public", "result", {"id": ""}, RefusedRows(letters, Limit()))
        copy.sieve = _sieve(database, cursor, ["id"])
        probe = copy.sieve.text.probe
        assert probe is not None
        [asked] = probe.doubts
        doubt = asked.replace("WHERE", "WHERE c.id % 3 = 0 AND c.id > 0 OR")
        assert doubt != asked
        copy.sieve.text = replace(copy.sieve.text, probe=replace(probe, doubts=(doubt,)))
        assert copy.copy(pa.table(_numbers(6000, 5)).to_batches()) == 4800
        assert letters.count == 1200
    with closing(database.connect()) as conn:
        assert conn.execute("SELECT count(*), count(DISTINCT id), min(id) FROM result").fetchone() == (4800, 4800, 1)


def test_refused_rows_cost_no_calls_of_their_own(database: Any, calls: list[str]) -> None:
    _checked(database)
    copied = _copy(database, _numbers(20_000, 10))
    assert (copied.landed, len(copied.letters)) == (18_000, 2000)
    assert len(calls) < 60


@pytest.mark.parametrize("sieve", [True, False])
@pytest.mark.parametrize("bad", [{350_000}, {350_000, 350_001, 399_000, 410_000, 500_000, 500_002, 799_999}])
def test_the_line_is_right_however_many_batches_there_are(database: Any, bad: set[int], sieve: bool) -> None:
    _checked(database)
    numbers = [-n if n in bad else n for n in range(800_000)]
    batches = [
        pa.record_batch({"id": pa.array(numbers[at : at + 20_000], pa.int64())}) for at in range(0, 800_000, 20_000)
    ]
    copied = _copy_batches(database, batches, sieve=sieve)
    assert {-json.loads(one["parsed_row"])["id"] for one in copied.letters} == bad
    assert (copied.landed, len(copied.letters)) == (800_000 - len(bad), len(bad))


def test_what_a_sieves_own_copy_refuses_has_one_letter(database: Any) -> None:
    body = "IF NOT EXISTS (SELECT FROM come) THEN RAISE EXCEPTION 'nothing'; END IF; RETURN NULL;"
    _checked(
        database,
        "ALTER TABLE result ADD COLUMN name text",
        f"CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$",
        "CREATE TRIGGER nothing AFTER INSERT ON result REFERENCING NEW TABLE AS come "
        "FOR EACH STATEMENT EXECUTE FUNCTION nothing()",
    )
    numbers = [-n if n in (3, 5, 7, 9, 11, 99, 103) else n for n in range(300)]
    names = ["a\0" if n in (100, 101, 102) else "a" for n in range(300)]
    copied = _copy(database, {"id": pa.array(numbers, pa.int64()), "name": pa.array(names)})
    assert (copied.landed, len(copied.letters)) == (290, 10)
    assert {one["sqlstate"] for one in copied.letters} == {"23514", "22021"}


@pytest.mark.parametrize(
    "forbids",
    [
        [
            "CREATE FUNCTION nobody() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$",
            "CREATE EVENT TRIGGER nobody ON ddl_command_start WHEN TAG IN ('CREATE FUNCTION') "
            "EXECUTE FUNCTION nobody()",
        ],
        [f"ALTER TABLE result ADD COLUMN c{n} int DEFAULT 1" for n in range(1599)],
    ],
)
def test_where_no_sieve_can_be_made_refused_rows_are_found_by_copy(database: Any, forbids: list[str]) -> None:
    _checked(database, *forbids)
    copied = _copy(database, _numbers(300, 10))
    assert (copied.landed, len(copied.letters)) == (270, 30)


@pytest.mark.parametrize("lasting", [None, "etl ledger"])
def test_a_role_that_may_make_no_tables_finds_them_by_copy(database: Any, role: str, lasting: str | None) -> None:
    with closing(database.connect(autocommit=True)) as conn:
        conn.execute('CREATE SCHEMA "etl ledger"')
        conn.execute(sql.SQL("REVOKE TEMP ON DATABASE {} FROM PUBLIC").format(sql.Identifier(conn.info.dbname)))
    _checked(database, f'GRANT INSERT ON result TO "{role}"')
    copied = _copy(database, _numbers(300, 10), role=role, lasting=lasting)
    assert (copied.landed, len(copied.letters)) == (270, 30)


def test_a_role_that_may_only_insert_has_a_sieve(database: Any, role: str, calls: list[str]) -> None:
    _checked(database, f'GRANT INSERT ON result TO "{role}"')
    copied = _copy(database, _numbers(3000, 10), role=role)
    assert (copied.landed, len(copied.letters)) == (2700, 300)
    assert len(calls) < 60


@pytest.mark.parametrize("state", ["40001", "40P01", "53100", "57014", "55P03", "42501"])
def test_a_fault_of_the_server_within_a_sieve_is_no_rows_fault(database: Any, state: str) -> None:
    body = f"IF NEW.id = 555 THEN RAISE EXCEPTION 'a fault' USING ERRCODE = '{state}'; END IF; RETURN NULL;"
    _checked(
        database,
        f"CREATE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$",
        "CREATE TRIGGER fault AFTER INSERT ON result FOR EACH ROW EXECUTE FUNCTION fault()",
    )
    with pytest.raises(Error) as caught:
        _copy(database, _numbers(1000, 10))
    assert caught.value.sqlstate == state
    with closing(database.connect()) as conn:
        assert conn.execute("SELECT count(*) FROM result").fetchone() == (0,)


def test_rows_that_a_trigger_refuses_after_they_were_written(database: Any) -> None:
    body = "IF NEW.id % 7 = 0 THEN RAISE EXCEPTION 'seven'; END IF; RETURN NULL;"
    _checked(
        database,
        f"CREATE FUNCTION seven() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$",
        "CREATE TRIGGER seven AFTER INSERT ON result FOR EACH ROW EXECUTE FUNCTION seven()",
    )
    copied = _copy(database, _numbers(2000, 10))
    bad = [number for number in range(1, 2001) if number % 10 == 0 or number % 7 == 0]
    assert (copied.landed, len(copied.letters)) == (2000 - len(bad), len(bad))
    assert {(one["sqlstate"], one["message"]) for one in copied.letters if one["sqlstate"] != "23514"} == {
        ("P0001", "seven")
    }
