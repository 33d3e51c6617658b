"""Merges go row by row through tables whose names are full of what statements are made of; letters keep the record."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import pyarrow as pa
import pytest
from psycopg import sql
from pyspark.sql.types import LongType, StringType, StructField, StructType

from spark_jobs.contracts.config import TableName, WriteMode
from spark_jobs.sinks.applying import Merger
from spark_jobs.sinks.copying import Session, copy_rows, transaction
from spark_jobs.sinks.cursor import Error
from spark_jobs.sinks.merge_sql import MergeRule
from spark_jobs.sinks.merging import early_look, merge
from spark_jobs.sinks.parts import MERGE, PartReport
from spark_jobs.sinks.refused import Limit, RefusedRows
from spark_jobs.sinks.sorting import LetterSpool
from spark_jobs.sinks.staging_table import create_staging
from spark_jobs.sinks.target import inspect

TABLE = 'Odd {ordinals} "t" $1'
ID, NOTE, SERIAL = "Id {0}", "n\"o'te\\ %s", "{first}"
SCHEMA = StructType([StructField(ID, LongType()), StructField(NOTE, StringType()), StructField(SERIAL, LongType())])
DDL = """
CREATE TABLE "kn{{o}}wn" ("i""d{{0}}" bigint PRIMARY KEY);
INSERT INTO "kn{{o}}wn" SELECT generate_series(0, 2000);
CREATE TABLE {table} ({id} bigint NOT NULL UNIQUE REFERENCES "kn{{o}}wn", {note} text, {serial} bigint UNIQUE)"""
ROWS = 1000
IDS = [-number if number % 100 == 7 else number for number in range(1, ROWS + 1)]
STAGED = '"etl_stage"'


def _staged() -> list[pa.RecordBatch]:
    """Ten rows refer to nothing, and two have one serial number."""
    columns = {
        ID: pa.array(IDS, pa.int64()),
        NOTE: pa.array([f"x{{{number}}}%s'" for number in IDS]),
        SERIAL: pa.array([500 if number == 900 else number for number in range(1, ROWS + 1)], pa.int64()),
        "_seq": pa.array(range(1, ROWS + 1), pa.int64()),
        "__source": pa.array([json.dumps({"row": number}) for number in IDS]),
        "__event_time": pa.array([1_700_000_000_000_000] * ROWS, pa.int64()),
        "__raw_value": pa.array([str(number).encode() for number in IDS]),
    }
    return pa.table(columns).to_batches()


@pytest.mark.parametrize("keys", [(), (ID,)])
@pytest.mark.parametrize("refuses", [False, True])
def test_names_are_only_names_and_letters_have_their_record(database: Any, keys: Sequence[str], refuses: bool) -> None:
    rule = MergeRule(WriteMode.UPSERT if keys else WriteMode.APPEND, tuple(keys))
    with closing(database.connect(autocommit=True)) as conn:
        names = {name: sql.Identifier(text) for name, text in {"table": TABLE, "id": ID, "note": NOTE}.items()}
        conn.execute(sql.SQL(DDL).format(serial=sql.Identifier(SERIAL), **names))
        target = inspect(conn, TableName("public", TABLE), SCHEMA, rule.keys)
        statements = merge(target, STAGED, rule, conn)
        look = early_look(target, STAGED, rule, conn)
        create = create_staging(sql.Identifier("etl_stage"), target, kind="TEMP", rule=rule).as_string(conn)
    assert statements.rows.sift is not None
    assert (look is None) == bool(keys)
    letters = LetterSpool()
    with closing(letters), transaction(Session(database.uri, "test", "30s", "30s")) as cursor:
        cursor.run(create)
        copy_rows(cursor, "pg_temp", "etl_stage", _staged())
        if look is not None:
            report = PartReport(0, 0)
            error = cursor.tried("looking", lambda: look(cursor, report))
            assert isinstance(error, Error)
            assert (error.sqlstate, report.doing) == ("23503", MERGE)
        written = Merger(cursor, statements, RefusedRows(letters, Limit()), refuses=refuses).apply()
        cursor.run("COMMIT")
        found = [json.loads(text) for chunk in letters.batches() for text in chunk]
    with closing(database.connect()) as conn:
        there = {row[0] for row in conn.execute(sql.SQL("SELECT {id} FROM {table}").format(**names))}
    refused = {_number(letter) for letter in found}
    assert (written, len(refused), there & refused, there | refused) == (ROWS - 11, 11, set(), set(IDS))
    # Of the two with one serial number either may be the one.
    assert refused & {500, 900}
    assert {number for number in IDS if number < 0} < refused


def _number(letter: dict[str, Any]) -> int:
    number = int(json.loads(letter["parsed_row"])[ID])
    assert base64.b64decode(letter["raw_value"]) == str(number).encode()
    assert json.loads(letter["source"]) == {"row": number}
    assert letter["event_time"].startswith("2023-11-14 22:13:20")
    return number
