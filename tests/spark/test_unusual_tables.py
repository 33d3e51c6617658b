"""Tables that do not do what they are told: the run says so, and nothing is doubled, kept back or changed unseen."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pipeline_runs import Pipelines, aggregation, file_pipeline, write_lines

from spark_jobs.contracts.errors import RowsSuppressedError, TargetMismatchError

KEEP = (
    "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;"
    "CREATE TRIGGER keep BEFORE DELETE ON result FOR EACH ROW EXECUTE FUNCTION keep()"
)


def _replacing(pipelines: Pipelines, inbox: Path, strategy: str) -> dict[str, Any]:
    return file_pipeline(
        "replace",
        inbox,
        pipelines.checkpoints,
        schema="id INT, name STRING",
        load={"writeMode": "overwrite", "writeStrategy": strategy},
        transforms=[aggregation(groupByColumns="id", aggregations="name:count")],
        streaming={"outputMode": "complete"},
    )


@pytest.mark.parametrize("strategy", ["single", "staged"])
def test_rows_that_stay_when_all_are_replaced_end_the_run(pipelines: Pipelines, inbox: Path, strategy: str) -> None:
    pipelines.execute("CREATE TABLE result (id int, name bigint)", "INSERT INTO result VALUES (7)", KEEP)
    write_lines(inbox / "0.json", {"id": 1, "name": "x"})
    ended = pipelines.run(_replacing(pipelines, inbox, strategy))
    assert isinstance(ended.error, RowsSuppressedError), str(ended.error)
    assert pipelines.rows("SELECT id FROM result") == [(7,)]


@pytest.mark.parametrize("strategy", ["single", "staged"])
def test_rows_that_others_refer_to_are_not_taken_for_refused_rows_of_the_batch(
    pipelines: Pipelines, inbox: Path, strategy: str, caplog: pytest.LogCaptureFixture
) -> None:
    pipelines.execute(
        "CREATE TABLE result (id int PRIMARY KEY, name bigint)",
        "CREATE TABLE child (parent int REFERENCES result)",
        "INSERT INTO result VALUES (7)",
        "INSERT INTO child VALUES (7)",
    )
    write_lines(inbox / "0.json", {"id": 1, "name": "x"})
    ended = pipelines.run(_replacing(pipelines, inbox, strategy))
    assert ended.error is not None
    assert 'violates foreign key constraint "child_parent_fkey"' in str(ended.error)
    assert "refused a row" not in str(ended.error)
    assert "event=rows_refused" not in caplog.text
    assert pipelines.rows("SELECT id FROM result") == [(7,)]
    assert pipelines.one("SELECT count(*) FROM etl.dead_letter") == 0


def _trigger(name: str, events: str, body: str) -> str:
    return (
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN NEW; END $$;"
        f"CREATE TRIGGER {name} BEFORE {events} ON result FOR EACH ROW EXECUTE FUNCTION {name}()"
    )


def _upsert(pipelines: Pipelines, inbox: Path, strategy: str, **load: Any) -> dict[str, Any]:
    settings = {"writeMode": "upsert", "keys": "id", "writeStrategy": strategy, **load}
    return file_pipeline("upserts", inbox, pipelines.checkpoints, schema="id INT, name STRING", load=settings)


@pytest.mark.parametrize("strategy", ["single", "staged"])
@pytest.mark.parametrize(("events", "load"), [("INSERT", {}), ("UPDATE", {}), ("INSERT", {"onConflict": "nothing"})])
def test_a_row_that_a_trigger_keeps_out_of_an_upsert_ends_the_run(
    pipelines: Pipelines, inbox: Path, strategy: str, events: str, load: dict[str, Any]
) -> None:
    keep_out = _trigger("keep_out", events, "IF NEW.id = 2 THEN RETURN NULL; END IF;")
    there = [(3, "old")] if load else [(1, "old"), (2, "old")]
    values = ", ".join(f"({number}, '{name}')" for number, name in there)
    pipelines.execute("CREATE TABLE result (id int PRIMARY KEY, name text)", f"INSERT INTO result VALUES {values}")
    if events == "INSERT" and not load:
        pipelines.execute("DELETE FROM result WHERE id = 2")
        there = there[:1]
    pipelines.execute(keep_out)
    # The first key comes twice: one of its rows may be left out, which is not the one that must not.
    write_lines(inbox / "0.json", *({"id": number, "name": "new"} for number in (1, 1, 2, 3)))
    ended = pipelines.run(_upsert(pipelines, inbox, strategy, **load))
    assert isinstance(ended.error, RowsSuppressedError), str(ended.error)
    assert "1 of 4 rows were not written" in str(ended.error)
    assert pipelines.rows("SELECT id, name FROM result ORDER BY id") == there


@pytest.mark.parametrize("strategy", ["single", "staged"])
def test_triggers_that_change_rows_or_spare_equal_ones_are_no_reason_to_end_an_upsert(
    pipelines: Pipelines, inbox: Path, strategy: str
) -> None:
    pipelines.execute(
        "CREATE TABLE result (id int PRIMARY KEY, name text, changed int DEFAULT 0)",
        "CREATE TRIGGER a_spare BEFORE UPDATE ON result "
        "FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        _trigger("b_count", "UPDATE", "NEW.changed := OLD.changed + 1;"),
    )
    for number, name in enumerate(["x", "x", "y"]):
        write_lines(inbox / f"{number}.json", *({"id": key, "name": name if key else "same"} for key in (0, 1, 1)))
        pipelines.finish(_upsert(pipelines, inbox, strategy))
    assert pipelines.rows("SELECT * FROM result ORDER BY id") == [(0, "same", 0), (1, "y", 1)]
    assert pipelines.rows(
        "SELECT written_rows, write_deduplicated_rows FROM etl.batch_tracker ORDER BY processed_at"
    ) == [
        (2, 1),
        (0, 3),
        (1, 2),
    ]


@pytest.mark.parametrize("strategy", ["single", "staged"])
def test_triggers_that_make_keys_or_values_alike_are_no_reason_either(
    pipelines: Pipelines, inbox: Path, strategy: str
) -> None:
    pipelines.execute(
        "CREATE TABLE result (name text PRIMARY KEY, note text)",
        _trigger("a_lower", "INSERT", "NEW.name := lower(NEW.name); NEW.note := btrim(NEW.note);"),
        _trigger("b_trim", "UPDATE", "NEW.note := btrim(NEW.note);"),
        "CREATE TRIGGER c_spare BEFORE UPDATE ON result "
        "FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "INSERT INTO result VALUES ('b', 'x')",
    )
    write_lines(inbox / "0.json", *({"name": name, "note": "new"} for name in ("A", "b", "C", "C")))
    load = {"writeMode": "upsert", "keys": "name", "onConflict": "nothing", "writeStrategy": strategy}
    schema = "name STRING, note STRING"
    pipelines.finish(file_pipeline("nothing", inbox, pipelines.checkpoints, schema=schema, load=load))
    (inbox / "0.json").unlink()
    for number in range(2):
        write_lines(inbox / f"{number}.json", {"name": "b", "note": "same "})
        load = {"writeMode": "upsert", "keys": "name", "writeStrategy": strategy}
        pipelines.finish(file_pipeline("updates", inbox, pipelines.checkpoints, schema=schema, load=load))
    assert pipelines.rows("SELECT * FROM result ORDER BY 1") == [("a", "new"), ("b", "same"), ("c", "new")]


def test_rows_that_the_role_cannot_see_are_not_upserted(pipelines: Pipelines, inbox: Path, role: str) -> None:
    pipelines.execute(
        "CREATE TABLE result (id int PRIMARY KEY)",
        "ALTER TABLE result ENABLE ROW LEVEL SECURITY",
        f'GRANT ALL ON result TO "{role}"',
    )
    write_lines(inbox / "0.json", {"id": 1})
    load = {"writeMode": "upsert", "keys": "id", "role": role}
    ended = pipelines.run(file_pipeline("hidden", inbox, pipelines.checkpoints, schema="id INT", load=load))
    assert isinstance(ended.error, TargetMismatchError)
    assert "row-level security may hide rows" in str(ended.error)


def test_a_number_that_the_server_gives_cannot_be_written(pipelines: Pipelines, inbox: Path) -> None:
    pipelines.execute("CREATE TABLE result (id int GENERATED ALWAYS AS IDENTITY)")
    write_lines(inbox / "0.json", {"id": 1})
    ended = pipelines.run(file_pipeline("identity", inbox, pipelines.checkpoints, schema="id INT"))
    assert isinstance(ended.error, TargetMismatchError)
    assert "column id is generated by the server" in str(ended.error)


def test_a_domain_is_not_widened_away(pipelines: Pipelines, inbox: Path) -> None:
    pipelines.execute("CREATE DOMAIN positive AS int CHECK (VALUE > 0)", "CREATE TABLE result (id positive)")
    write_lines(inbox / "0.json", {"id": 1})
    config = file_pipeline(
        "domain", inbox, pipelines.checkpoints, schema="id BIGINT", load={"schemaEvolution": "widen"}
    )
    assert isinstance(pipelines.run(config).error, TargetMismatchError)
    assert pipelines.one("SELECT format_type(atttypid, -1) FROM pg_attribute WHERE attname = 'id' AND "
                         "attrelid = 'result'::regclass") == "positive"  # fmt: skip


@pytest.mark.parametrize("strategy", ["single", "staged"])
def test_the_later_row_is_the_one_that_the_tables_collation_says(
    pipelines: Pipelines, inbox: Path, strategy: str
) -> None:
    # In "C", "B" is before "a"; in a language it is behind, where the server was built to know languages.
    later = {"C": "a"}
    with suppress(psycopg.errors.FeatureNotSupported):
        pipelines.execute("CREATE COLLATION english (provider = icu, locale = 'en')")
        later["english"] = "B"
    for collation in later:
        pipelines.execute(f'CREATE TABLE by_{collation} (id int PRIMARY KEY, version text COLLATE "{collation}")')
    write_lines(inbox / "0.json", {"id": 1, "version": "a"}, {"id": 1, "version": "B"})
    for collation, version in later.items():
        table = f"by_{collation}".lower()
        load = {"writeMode": "upsert", "keys": "id", "orderColumn": "version", "writeStrategy": strategy}
        schema = "id INT, version STRING"
        config = file_pipeline(table, inbox, pipelines.checkpoints, schema=schema, load={**load, "table": table})
        pipelines.finish(config)
        assert pipelines.rows(f"SELECT version FROM {table}") == [(version,)]


def test_nothing_of_a_document_is_left_out(pipelines: Pipelines, inbox: Path) -> None:
    document: dict[str, Any] = {
        "none": None,
        "at": "2026-01-02T03:04:05.123456Z",
        "local": "2026-01-02T03:04:05.000001",
    }
    times = [{"at": "1999-12-31T23:59:59.999999Z"}]
    line = {"document": document, "times": times, "names": {"a": None, "b": "x"}}
    schema = (
        "document STRUCT<none: INT, at: TIMESTAMP, local: TIMESTAMP_NTZ>, times ARRAY<STRUCT<at: TIMESTAMP>>, "
        "names MAP<STRING, STRING>"
    )
    (inbox / "0.json").write_text(json.dumps(line) + "\n")
    pipelines.finish(file_pipeline("documents", inbox, pipelines.checkpoints, schema=schema))
    assert pipelines.rows("SELECT document, times, names FROM result") == [(document, times, line["names"])]
