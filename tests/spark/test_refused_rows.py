"""Rows that PostgreSQL refuses become dead letters with their reason; the others land, in the same transaction."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import Pipelines, file_pipeline, select, write_lines

from spark_jobs.contracts.errors import TooManyDeadLettersError

SCHEMA = "id BIGINT, amount INT, name STRING, shop INT"
STRATEGIES = ["single", "staged", "two_phase"]
ROWS = 200


def _table(pipelines: Pipelines, *more: str) -> None:
    with pipelines.database.connect(autocommit=True) as conn:
        conn.execute("CREATE TABLE shop (id int PRIMARY KEY)")
        conn.execute("INSERT INTO shop SELECT generate_series(0, 9)")
        conn.execute(
            "CREATE TABLE result (id bigint NOT NULL, amount int CHECK (amount < 1000), name varchar(20), shop int, "
            f"{', '.join(more)})"
        )


def _good(number: int) -> dict[str, Any]:
    return {"id": number, "amount": number % 100, "name": f"n{number}", "shop": number % 10}


def _pipeline(pipelines: Pipelines, inbox: Path, **load: Any) -> dict[str, Any]:
    return file_pipeline("rows", inbox, pipelines.checkpoints, schema=SCHEMA, load={"autoCreateTable": False, **load})


BAD: dict[str, tuple[dict[str, Any], str, str, str | None]] = {
    "check": ({"amount": 5000}, "23514", "CheckViolation", None),
    "not null": ({"id": None}, "23502", "NotNullViolation", "id"),
    "NUL in a text": ({"name": "a\0b"}, "22021", "CharacterNotInRepertoire", "name"),
    "too long": ({"name": "x" * 30}, "22001", "StringDataRightTruncation", "name"),
    "foreign key": ({"shop": 77}, "23503", "ForeignKeyViolation", None),
    "overflow": ({"id": 2**62}, "22003", "NumericValueOutOfRange", None),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("deferred", ["", " DEFERRABLE INITIALLY DEFERRED"])
def test_each_refused_row_is_a_dead_letter_with_its_reason(
    pipelines: Pipelines, inbox: Path, strategy: str, deferred: str
) -> None:
    overflowing = "four_times bigint GENERATED ALWAYS AS (id * 4) STORED"
    _table(pipelines, f"FOREIGN KEY (shop) REFERENCES shop{deferred}", overflowing)
    rows = [_good(number) for number in range(ROWS)]
    places = (0, 50, 51, 120, 121, ROWS - 1)
    for place, (change, *_) in zip(places, BAD.values(), strict=True):
        rows[place].update(change)
    write_lines(inbox / "0.json", *rows[: ROWS // 2])
    write_lines(inbox / "1.json", *rows[ROWS // 2 :])
    finished = pipelines.finish(_pipeline(pipelines, inbox, writeStrategy=strategy))
    assert finished.result.rows["write_dead_lettered"] == len(BAD)
    assert pipelines.rows("SELECT id FROM result ORDER BY id") == [(id,) for id in range(ROWS) if id not in places]
    letters = pipelines.rows(
        "SELECT error_class, sqlstate, column_name, stage, parsed_row, source, message FROM etl.dead_letter"
    )
    assert {(name, state, column) for name, state, column, *_ in letters} == {
        (name, state, column) for _, state, name, column in BAD.values()
    }
    for _, state, _, stage, row, source, message in letters:
        assert stage == "write"
        assert row.keys() == {"id", "amount", "name", "shop"}
        assert source["file"].endswith(".json"), source
        assert message, state
    by_state = {state: row for _, state, _, _, row, _, _ in letters}
    assert by_state["23503"]["shop"] == 77
    assert by_state["23514"]["amount"] == 5000
    assert by_state["22021"]["name"] == "a\ufffdb"
    assert b"a\\u0000b" in pipelines.one("SELECT raw_value FROM etl.dead_letter WHERE sqlstate = '22021'")
    books = "SELECT source_rows, sink_rows, written_rows, write_dead_lettered_rows, strategy FROM etl.batch_tracker"
    assert pipelines.rows(books) == [(ROWS, ROWS, ROWS - len(BAD), len(BAD), strategy)]
    assert pipelines.rows("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()") == []


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_many_refused_rows_leave_nothing_but_letters(pipelines: Pipelines, inbox: Path, strategy: str) -> None:
    _table(pipelines, "FOREIGN KEY (shop) REFERENCES shop")
    rows = [_good(number) for number in range(4000)]
    for row in rows[::20]:
        row["shop"] = 77
    for row in rows[5::20]:
        row["amount"] = 5000
    write_lines(inbox / "0.json", *rows[:2000])
    write_lines(inbox / "1.json", *rows[2000:])
    finished = pipelines.finish(_pipeline(pipelines, inbox, writeStrategy=strategy))
    assert finished.result.rows["write_dead_lettered"] == 400
    assert pipelines.rows("SELECT strategy, written_rows FROM etl.batch_tracker") == [(strategy, 3600)]
    assert pipelines.one("SELECT count(DISTINCT id) FROM result WHERE id % 20 NOT IN (0, 5)") == 3600
    found = "SELECT sqlstate, count(*), min((parsed_row->>'id')::int % 20) FROM etl.dead_letter GROUP BY 1 ORDER BY 1"
    assert pipelines.rows(found) == [("23503", 200, 0), ("23514", 200, 5)]
    assert pipelines.rows("SELECT relname FROM pg_class WHERE relname ~ '^etl_(sieve|place)'") == []
    assert pipelines.rows("SELECT proname FROM pg_proc WHERE proname ~ '^etl_sift'") == []


def test_duplicates_of_a_unique_key_are_dead_letters_of_an_append(pipelines: Pipelines, inbox: Path) -> None:
    _table(pipelines, "UNIQUE (id)")
    write_lines(inbox / "0.json", *[_good(number) for number in (1, 2, 3, 2, 4, 1)])
    pipelines.finish(_pipeline(pipelines, inbox))
    assert [row[0] for row in pipelines.rows("SELECT id FROM result ORDER BY id")] == [1, 2, 3, 4]
    assert pipelines.rows("SELECT parsed_row->>'id', sqlstate FROM etl.dead_letter ORDER BY 1") == [
        ("1", "23505"),
        ("2", "23505"),
    ]


@pytest.mark.parametrize("strategy", ["single", "staged"])
def test_an_upsert_leaves_the_key_of_a_refused_row_as_it_was(pipelines: Pipelines, inbox: Path, strategy: str) -> None:
    _table(pipelines, "UNIQUE NULLS NOT DISTINCT (id)", "FOREIGN KEY (shop) REFERENCES shop")
    config = _pipeline(pipelines, inbox, writeMode="upsert", keys="id", writeStrategy=strategy)
    write_lines(inbox / "0.json", *[_good(number) for number in range(20)])
    pipelines.finish(config)
    write_lines(
        inbox / "1.json",
        *[{**_good(number), "amount": 900} for number in range(10, 30)],
        {**_good(12), "shop": 99},
        {**_good(13), "amount": 2000},
    )
    pipelines.finish(config)
    assert pipelines.rows("SELECT id, amount FROM result WHERE id IN (11, 12, 13, 29) ORDER BY id") == [
        (11, 900),
        (12, 12),
        # A check is the staging table's as well: another row of the key wins. A foreign key is asked by the merge.
        (13, 900),
        (29, 900),
    ]
    letters = pipelines.rows("SELECT sqlstate, parsed_row->>'id' FROM etl.dead_letter ORDER BY 1")
    assert letters == [("23503", "12"), ("23514", "13")]
    assert pipelines.one("SELECT count(*) FROM result") == 30


REFUSED_BY = {
    "COPY": ([{"amount": 5000}], ["row_by_row"]),
    "merge": ([{"shop": 77}], ["merge_row_by_row"]),
    "both": ([{"amount": 5000}, {"shop": 77}], ["row_by_row", "merge_row_by_row"]),
}


@pytest.mark.parametrize("by", REFUSED_BY)
@pytest.mark.parametrize("strategy", ["single", "staged"])
def test_a_batch_is_done_again_as_closely_as_it_needs_and_the_next_one_begins_so(
    pipelines: Pipelines, inbox: Path, strategy: str, by: str, caplog: Any
) -> None:
    _table(pipelines, "UNIQUE (id)", "FOREIGN KEY (shop) REFERENCES shop")
    config = _pipeline(pipelines, inbox, writeMode="upsert", keys="id", writeStrategy=strategy)
    config["extract"]["connectionParams"]["maxFilesPerTrigger"] = "1"
    changes, going = REFUSED_BY[by]
    for file in (0, 1):
        bad = [{**_good(file * 10 + 5 + place), **change} for place, change in enumerate(changes)]
        write_lines(inbox / f"{file}.json", *[_good(file * 10 + number) for number in range(5)], *bad)
    pipelines.finish(config)
    assert re.findall(r"event=rows_refused batch=(\d+) going=(\w+)", caplog.text) == [("0", word) for word in going]
    # Wherever it was refused, a letter tells its file.
    letters = pipelines.rows("SELECT (parsed_row->>'id')::int, source->>'file' FROM etl.dead_letter ORDER BY 1")
    assert [(number, Path(file).name) for number, file in letters] == [
        (file * 10 + 5 + place, f"{file}.json") for file in (0, 1) for place in range(len(changes))
    ]
    assert pipelines.one("SELECT count(*) FROM etl.batch_tracker WHERE write_dead_lettered_rows > 0") == 2
    assert pipelines.one("SELECT count(*) FROM result") == 10


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_batch_that_is_bad_as_a_whole_stops_the_run(pipelines: Pipelines, inbox: Path, strategy: str) -> None:
    _table(pipelines, "CHECK (shop >= 0)")
    write_lines(inbox / "0.json", *[{**_good(number), "amount": 5000} for number in range(ROWS)])
    ended = pipelines.run(_pipeline(pipelines, inbox, writeStrategy=strategy))
    assert isinstance(ended.error, TooManyDeadLettersError), ended.error
    assert not ended.error.retryable
    assert "load.maxDeadLetterFraction" in str(ended.error)
    assert pipelines.rows("SELECT count(*) FROM result UNION ALL SELECT count(*) FROM etl.dead_letter") == [(0,), (0,)]
    config = _pipeline(pipelines, inbox, writeStrategy=strategy, maxDeadLetterFraction=1)
    pipelines.finish(config)
    assert pipelines.one("SELECT count(*) FROM etl.dead_letter WHERE sqlstate = '23514'") == ROWS
    assert pipelines.rows("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()") == []


def test_a_small_batch_of_bad_rows_does_not_block_the_pipeline(pipelines: Pipelines, inbox: Path) -> None:
    _table(pipelines, "CHECK (shop >= 0)")
    write_lines(inbox / "0.json", {**_good(1), "amount": 5000})
    pipelines.finish(_pipeline(pipelines, inbox))
    assert pipelines.one("SELECT count(*) FROM etl.dead_letter") == 1


@pytest.mark.parametrize("strategy", ["single", "staged"])
def test_json_that_only_python_reads_is_a_dead_letter(pipelines: Pipelines, inbox: Path, strategy: str) -> None:
    with pipelines.database.connect(autocommit=True) as conn:
        conn.execute("CREATE TABLE result (id int, doc jsonb)")
    odd = ['{"a": NaN}', "Infinity", '"\\ud83d"', "1e400000", '{"a": "\\ud83d", "a": 1}']
    write_lines(inbox / "0.json", *[{"id": i, "doc": text} for i, text in enumerate(['{"a": 1}', *odd])])
    config = file_pipeline(
        "odd", inbox, pipelines.checkpoints, schema="id INT, doc STRING",
        load={"autoCreateTable": False, "writeStrategy": strategy},
    )  # fmt: skip
    pipelines.finish(config)
    assert pipelines.rows("SELECT id, doc->>'a' FROM result") == [(0, "1")]
    assert pipelines.rows("SELECT (parsed_row->>'id')::int, parsed_row->>'doc' FROM etl.dead_letter ORDER BY 1") == [
        (number + 1, text) for number, text in enumerate(odd)
    ]
    raw = pipelines.rows("SELECT raw_value FROM etl.dead_letter ORDER BY (parsed_row->>'id')::int")
    # The record, of which the row was made.
    assert [json.loads(value) for (value,) in raw] == [{"id": i + 1, "doc": text} for i, text in enumerate(odd)]


@pytest.mark.parametrize("strategy", ["single", "staged"])
def test_a_row_whose_json_column_jsonb_would_refuse_is_kept(pipelines: Pipelines, inbox: Path, strategy: str) -> None:
    with pipelines.database.connect(autocommit=True) as conn:
        conn.execute("CREATE TABLE shop (id int PRIMARY KEY)")
        conn.execute("CREATE TABLE result (id int, doc json, shop int REFERENCES shop)")
    odd = ['"\\u0000"', '"\\ud83d"', "1e400000"]
    write_lines(
        inbox / "0.json", {"id": 0, "doc": "1"}, *[{"id": i + 1, "doc": d, "shop": 7} for i, d in enumerate(odd)]
    )
    config = file_pipeline(
        "odd",
        inbox,
        pipelines.checkpoints,
        schema="id INT, doc STRING, shop INT",
        load={"autoCreateTable": False, "writeStrategy": strategy},
    )
    pipelines.finish(config)
    assert pipelines.rows("SELECT id FROM result") == [(0,)]
    kept = "coalesce(convert_from(raw_value, 'UTF8'), parsed_row::text)"
    letters = [text for (text,) in pipelines.rows(f"SELECT {kept} FROM etl.dead_letter WHERE sqlstate = '23503'")]
    assert len(letters) == len(odd)
    assert all(any(word in text for text in letters) for word in ("u0000", "ud83d", "1e400000"))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_text_that_is_no_utf8_is_a_dead_letter_with_its_bytes(
    pipelines: Pipelines, inbox: Path, strategy: str
) -> None:
    with pipelines.database.connect(autocommit=True) as conn:
        conn.execute("CREATE TABLE result (id int, name text)")
    write_lines(inbox / "0.json", *[{"id": number} for number in range(4)])
    config = file_pipeline(
        "bytes", inbox, pipelines.checkpoints, schema="id INT",
        transforms=[select(id="id", name="IF(id = 2, CAST(X'61FF62' AS STRING), 'fine')")],
        load={"autoCreateTable": False, "writeStrategy": strategy},
    )  # fmt: skip
    pipelines.finish(config)
    assert pipelines.rows("SELECT id FROM result ORDER BY 1") == [(0,), (1,), (3,)]
    [(state, row, raw)] = pipelines.rows("SELECT sqlstate, parsed_row, raw_value FROM etl.dead_letter")
    assert (state, row) == ("22021", {"id": 2, "name": "a\ufffdb"})
    assert raw == b'{"id": 2}'


@pytest.mark.parametrize("strategy", ["single", "staged"])
def test_event_times_beyond_what_postgresql_or_python_hold_stop_nothing(
    pipelines: Pipelines, inbox: Path, strategy: str
) -> None:
    with pipelines.database.connect(autocommit=True) as conn:
        conn.execute("CREATE TABLE result (id int CHECK (id = 0), at timestamptz)")
    moments = ["2024-01-01T00:00:00Z", "+12000-01-01T00:00:00Z", "-0044-03-08T00:00:00Z", "-5000-01-01T00:00:00Z"]
    write_lines(inbox / "0.json", *[{"id": number, "at": text} for number, text in enumerate(moments)])
    config = file_pipeline(
        "moments", inbox, pipelines.checkpoints, schema="id INT, at TIMESTAMP",
        load={"autoCreateTable": False, "writeStrategy": strategy},
        streaming={"watermark": {"eventTimeColumn": "at", "delayThreshold": "1 minute"}},
    )  # fmt: skip
    pipelines.finish(config)
    assert pipelines.rows("SELECT id, at = '2024-01-01Z' FROM result") == [(0, True)]
    letters = "SELECT event_time::text, stage, parsed_row->>'at' FROM etl.dead_letter ORDER BY event_time"
    assert pipelines.rows(letters) == [
        ("0045-03-08 00:00:00+00 BC", "write", "0045-03-08 00:00:00.000000+00:00 BC"),
        ("12000-01-01 00:00:00+00", "write", "12000-01-01 00:00:00.000000+00:00"),
        (None, "write", "5001-01-01 00:00:00.000000+00:00 BC"),
    ]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_earliest_times_that_spark_knows_are_dead_letters(pipelines: Pipelines, inbox: Path, strategy: str) -> None:
    pipelines.execute("CREATE TABLE result (id int, day date, at timestamptz, local timestamp)")
    at = "timestamp_micros({})"
    days, instants = [-(2**31) + 10957, -(2**31) + 10956, -(2**31)], [-(2**63), -(2**63) + 946684800000000]
    changes = [
        *({"day": f"date_from_unix_date({day})"} for day in days),
        *({"at": at.format(f"{instant + 1} - 1L")} for instant in instants),
        *({"local": f"CAST({at.format(f'{instant + 1} - 1L')} AS TIMESTAMP_NTZ)"} for instant in instants),
    ]
    fine = {"day": "DATE'2026-01-01'", "at": at.format(1), "local": f"CAST({at.format(1)} AS TIMESTAMP_NTZ)"}
    columns = {
        name: " ".join(
            [
                "CASE",
                *(f"WHEN id = {id} THEN {change[name]}" for id, change in enumerate(changes) if name in change),
                f"WHEN id < 20 THEN {fine[name]} END",
            ]
        )
        for name in fine
    }
    write_lines(inbox / "0.json", *({"id": id} for id in range(25)))
    load = {"autoCreateTable": False, "writeStrategy": strategy}
    transforms = [select(id="id", **columns)]
    config = file_pipeline("times", inbox, pipelines.checkpoints, schema="id INT", transforms=transforms, load=load)
    pipelines.finish(config)
    assert pipelines.rows("SELECT id FROM result ORDER BY id") == [(id,) for id in range(len(changes), 25)]
    assert pipelines.one("SELECT count(*) FROM result WHERE day IS NULL AND at IS NULL AND local IS NULL") == 5
    letters = pipelines.rows("SELECT (parsed_row->>'id')::int, sqlstate FROM etl.dead_letter ORDER BY 1")
    assert letters == [(id, "22008") for id in range(len(changes))]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_statement_timeout_that_is_meant_for_others_does_not_cut_a_batch_short(
    pipelines: Pipelines, inbox: Path, strategy: str
) -> None:
    _table(pipelines, "CHECK (shop >= 0)")
    pipelines.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep(0.6); RETURN NULL; END $$",
        "CREATE TRIGGER slow AFTER INSERT ON result FOR EACH STATEMENT EXECUTE FUNCTION slow()",
        f'ALTER DATABASE "{pipelines.one("SELECT current_database()")}" SET statement_timeout = 500',
    )
    write_lines(inbox / "0.json", _good(1), {**_good(2), "amount": 5000})
    pipelines.finish(_pipeline(pipelines, inbox, writeStrategy=strategy))
    assert pipelines.rows("SELECT id FROM result") == [(1,)]
    assert pipelines.one("SELECT count(*) FROM etl.dead_letter") == 1
