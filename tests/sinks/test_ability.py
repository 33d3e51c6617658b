"""What real servers and tables allow, and how what stands in the way is told: chosen around, or refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest
from pyspark.sql.types import DataType, IntegerType, StringType, StructField, StructType, YearMonthIntervalType
from writing_means import MANY, means, refusal

from sandbox.postgres import PostgresServer
from spark_jobs.contracts.config import TableName, WriteStrategy
from spark_jobs.contracts.tracker.migrate import migrate
from spark_jobs.sinks.ability import TwoPhase, two_phase_ability
from spark_jobs.sinks.strategy import Choice, choose
from spark_jobs.sinks.target import inspect

COLUMNS = "id int, name text"
PLAIN = f"CREATE TABLE result ({COLUMNS})"
PARTITIONED = f"CREATE TABLE result ({COLUMNS}) PARTITION BY LIST (id)"
VIEW = "CREATE VIEW result AS SELECT 1 AS id, 'one' AS name"


def trigger(name: str, when: str, *, on: str = "result", each: str = "ROW") -> str:
    return f"; CREATE TRIGGER {name} {when} ON {on} FOR EACH {each} EXECUTE FUNCTION noted()"


OBSTACLES: list[tuple[str, str]] = [
    ("CREATE TABLE result (id int PRIMARY KEY, name text)", "the unique key result_pkey"),
    ("CREATE TABLE result (id int, name text UNIQUE)", "the unique key result_name_key"),
    (f"{PLAIN}; CREATE UNIQUE INDEX once ON result (lower(name)) WHERE id > 0", "the unique key once"),
    (f"CREATE TABLE result ({COLUMNS}, EXCLUDE USING btree (id WITH =))", "the unique key result_id_excl"),
    (f"{PARTITIONED}; CREATE TABLE one PARTITION OF result (UNIQUE (name)) FOR VALUES IN (1)", "key one_name_key"),
    (PLAIN + trigger("before_it", "BEFORE INSERT"), "the trigger before_it, which may change or suppress rows"),
    (PLAIN + trigger("of_both", "BEFORE INSERT OR UPDATE"), "the trigger of_both, which may change or suppress rows"),
    (
        f"{PARTITIONED}; CREATE TABLE one PARTITION OF result FOR VALUES IN (1)"
        + trigger("of_one", "BEFORE INSERT", on="one"),
        "the trigger of_one, which may change or suppress rows",
    ),
    (VIEW + trigger("instead", "INSTEAD OF INSERT"), "the trigger instead, which may change or suppress rows"),
    ("CREATE TABLE result (id int, name inet)", "the columns name are written through a staging table"),
]
DOUBTS: list[tuple[str, str]] = [
    (PLAIN + trigger("after_it", "AFTER INSERT"), "the trigger after_it, which might notify"),
    (PLAIN + trigger("of_all", "BEFORE INSERT", each="STATEMENT"), "the trigger of_all, which might notify"),
    (PLAIN + trigger("of_all", "AFTER INSERT", each="STATEMENT"), "the trigger of_all, which might notify"),
]
FITTING = [
    PLAIN,
    f"{PLAIN}; CREATE INDEX many ON result (id)",
    PLAIN + trigger("changed", "BEFORE UPDATE OR DELETE"),
    f"CREATE TABLE other (id int PRIMARY KEY); {PLAIN}; ALTER TABLE result ADD FOREIGN KEY (id) REFERENCES other",
    f"{PARTITIONED}; CREATE TABLE one PARTITION OF result FOR VALUES IN (1)",
]


@pytest.fixture
def conn(database: Any) -> Iterator[psycopg.Connection[Any]]:
    with closing(database.connect(autocommit=True)) as made:
        made.execute(
            "CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN coalesce(NEW, OLD); END $$"
        )
        yield made


def ability_of(
    conn: psycopg.Connection[Any], tables: str, *, schema: str = "public", name_is: DataType | None = None
) -> TwoPhase:
    """Make the tables, and ask what the server allows with ``result``."""
    if tables:
        conn.execute(tables)
    query = StructType([StructField("id", IntegerType()), StructField("name", name_is or StringType())])
    migrate(conn, "etl")
    return two_phase_ability(conn, inspect(conn, TableName(schema, "result"), query, ()), "etl")


@pytest.mark.parametrize(("tables", "words"), OBSTACLES)
def test_an_obstacle_of_the_table_is_named(conn: psycopg.Connection[Any], tables: str, words: str) -> None:
    named(ability_of(conn, tables), words)


def test_a_temporary_table_is_an_obstacle(conn: psycopg.Connection[Any]) -> None:
    named(ability_of(conn, f"CREATE TEMP TABLE result ({COLUMNS})", schema="pg_temp"), "the table is temporary")


def test_columns_that_are_staged_as_text_are_an_obstacle(conn: psycopg.Connection[Any]) -> None:
    able = ability_of(conn, "CREATE TABLE result (id int, name interval)", name_is=YearMonthIntervalType())
    named(able, "the columns name are written through a staging table")


def named(ability: TwoPhase, words: str) -> None:
    """An obstacle is in the reason of what is chosen instead, and in the error where nothing else may be chosen."""
    assert words in ability.obstacle
    choice = choose(WriteStrategy.AUTO, MANY, means(ability=ability))
    assert choice == Choice(
        WriteStrategy.STAGED, f"at most 200001 rows: several tasks write it; not two_phase: {ability.obstacle}"
    )
    assert refusal(means(ability=ability)).found == ability.obstacle


@pytest.mark.parametrize(("tables", "words"), DOUBTS)
def test_a_doubt_is_named_and_may_be_overruled(conn: psycopg.Connection[Any], tables: str, words: str) -> None:
    ability = ability_of(conn, tables)
    assert not ability.obstacle
    choice = choose(WriteStrategy.AUTO, MANY, means(ability=ability))
    assert choice.strategy is WriteStrategy.STAGED
    assert f"not two_phase: the table has {words}" in choice.reason
    assert choose(WriteStrategy.TWO_PHASE, MANY, means(ability=ability)).strategy is WriteStrategy.TWO_PHASE


@pytest.mark.parametrize("tables", FITTING)
def test_tables_that_take_parts(conn: psycopg.Connection[Any], tables: str) -> None:
    ability = ability_of(conn, tables)
    assert (ability.obstacle, ability.doubt) == ("", "")
    assert choose(WriteStrategy.AUTO, MANY, means(ability=ability)).strategy is WriteStrategy.TWO_PHASE


@contextmanager
def server_with(slots: int) -> Iterator[psycopg.Connection[Any]]:
    """A server of its own: what other tests have prepared does not count."""
    settings = {"max_prepared_transactions": str(slots)}
    with PostgresServer(settings=settings) as server, closing(server.connect(autocommit=True)) as conn:
        yield conn


def test_a_server_without_prepared_transactions() -> None:
    with server_with(0) as conn:
        named(ability_of(conn, PLAIN), "max_prepared_transactions is 0")
        conn.execute("CREATE UNIQUE INDEX ON result (id)")
        named(ability_of(conn, ""), "max_prepared_transactions is 0")


def test_a_server_whose_prepared_transactions_are_used_up_one_by_one() -> None:
    with server_with(3) as conn:
        ability = ability_of(conn, PLAIN)
        assert choose(WriteStrategy.AUTO, MANY, means(ability=ability)).parts == 3
        assert "max_prepared_transactions = 3, of which 3 are free" in refusal(means(ability=ability, asked=4)).found
        _prepare(conn, 2)
        ability = ability_of(conn, "")
        chosen = choose(WriteStrategy.AUTO, MANY, means(ability=ability))
        assert "not two_phase: room for 1 prepared transaction" in chosen.reason
        assert choose(WriteStrategy.TWO_PHASE, MANY, means(ability=ability)).parts == 1
        assert "of which 1 " in refusal(means(ability=ability, asked=2)).found
        _prepare(conn, 1)
        ability = ability_of(conn, "")
        chosen = choose(WriteStrategy.AUTO, MANY, means(ability=ability))
        assert chosen.strategy is WriteStrategy.STAGED
        assert "not two_phase: all 3 prepared transactions of the server are in use" in chosen.reason
        assert "of which 0 are free" in refusal(means(ability=ability)).found


def _prepare(conn: psycopg.Connection[Any], transactions: int) -> None:
    for number in range(transactions):
        conn.execute("BEGIN")
        conn.execute("INSERT INTO result VALUES (1, 'one')")
        conn.execute(f"PREPARE TRANSACTION 'of somebody else {transactions}.{number}'")
