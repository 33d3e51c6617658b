"""Dead letters come home: once, with their row, by the pipeline's own way; or they stay, and say why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import Pipelines, file_pipeline, select, write_lines


def _letters(pipelines: Pipelines) -> list[tuple[Any, ...]]:
    return pipelines.rows(
        "SELECT status, stage, error_class, attempt, convert_from(raw_value, 'UTF8'), parsed_row "
        "FROM etl.dead_letter ORDER BY raw_value, parsed_row::text"
    )


def _tally(pipelines: Pipelines) -> dict[tuple[str, str, str], int]:
    rows = pipelines.rows(
        "SELECT status, stage, error_class, sum(letters)::int FROM etl.dead_letter_tally "
        "GROUP BY 1, 2, 3 HAVING sum(letters) <> 0"
    )
    return {(status, stage, kind): count for status, stage, kind, count in rows}


def test_a_patched_record_comes_home_and_the_others_stay(pipelines: Pipelines, inbox: Path) -> None:
    config = file_pipeline("orders", inbox, pipelines.checkpoints, schema="id BIGINT, quantity INT")
    write_lines(inbox / "1.json", {"id": 1, "quantity": 5}, '{"id": 2, "quantity": "n/a"}', "no json at all")
    pipelines.finish(config)
    assert _tally(pipelines) == {("pending", "parse", "MALFORMED_JSON"): 2}

    summary = pipelines.replayed("orders", patch={"_value": "replace(_value, '\"n/a\"', 'null')"})

    assert (summary.taken, summary.replayed, summary.failed, summary.parked) == (2, 1, 1, 0)
    assert pipelines.rows("SELECT id, quantity FROM result ORDER BY id") == [(1, 5), (2, None)]
    assert [row[:5] for row in _letters(pipelines)] == [
        ("pending", "parse", "MALFORMED_JSON", 2, "no json at all"),
        ("replayed", "parse", "MALFORMED_JSON", 1, '{"id": 2, "quantity": "n/a"}'),
    ]
    assert _tally(pipelines) == {
        ("pending", "parse", "MALFORMED_JSON"): 1,
        ("replayed", "parse", "MALFORMED_JSON"): 1,
    }
    (home,) = pipelines.rows(
        "SELECT b.source_rows, b.written_rows, b.dead_lettered_rows FROM etl.dead_letter d JOIN etl.batch_tracker b "
        "ON b.query_id = d.home_query_id AND b.batch_id = d.home_batch_id WHERE d.status = 'replayed'"
    )
    assert home == (2, 1, 1)
    again = pipelines.replayed("orders")
    assert (again.taken, again.replayed) == (1, 0)
    assert pipelines.one("SELECT count(*) FROM result") == 2


def test_what_is_drawn_anew_for_each_row_is_so_in_each_micro_batch(pipelines: Pipelines, inbox: Path) -> None:
    drawn = [select(id="id", token="uuid()")]
    config = file_pipeline("orders", inbox, pipelines.checkpoints, schema="id BIGINT", transforms=drawn)
    write_lines(inbox / "1.json", *(f'{{"id": "{n}x"}}' for n in range(6)), {"id": 6})
    pipelines.finish(config)
    patch = {"_value": "regexp_replace(_value, '\"([0-9]+)x\"', '$1')"}
    assert pipelines.replayed("orders", patch=patch, batch_size=2).replayed == 6
    assert pipelines.rows("SELECT count(*), count(DISTINCT token) FROM result") == [(7, 7)]


def test_a_letter_that_fails_again_takes_its_bundle_apart_and_no_other(pipelines: Pipelines, inbox: Path) -> None:
    config = file_pipeline(
        "orders", inbox, pipelines.checkpoints, schema="id BIGINT", load={"maxDeadLetterFraction": 1}
    )
    write_lines(inbox / "1.json", *(f'{{"id": "{n}x"}}' for n in range(2499)), '{"id": "none"}')
    pipelines.finish(config)
    bundles = "SELECT status, letters::int FROM etl.dead_letter_bundle ORDER BY letters DESC, status"
    assert pipelines.rows(bundles) == [("pending", 1000), ("pending", 1000), ("pending", 500)]

    patch = {"_value": "regexp_replace(_value, '\"([0-9]+)x\"', '$1')"}
    dry = pipelines.replayed("orders", patch=patch, dry_run=True)
    assert (dry.taken, dry.replayed, dry.failed) == (2500, 2499, 1)
    assert pipelines.rows(bundles) == [("pending", 1000), ("pending", 1000), ("pending", 500)]

    summary = pipelines.replayed("orders", patch=patch, batch_size=1200)
    assert (summary.taken, summary.replayed, summary.failed) == (2500, 2499, 1)
    assert (
        pipelines.one("SELECT count(*) FROM result") == pipelines.one("SELECT count(DISTINCT id) FROM result") == 2499
    )
    whole = pipelines.rows(bundles)
    assert {status for status, _ in whole} == {"replayed"}
    singles = dict(pipelines.rows("SELECT status, count(*)::int FROM etl.dead_letter_single GROUP BY 1"))
    assert singles["pending"] == 1
    assert singles["replayed"] + sum(size for _, size in whole) == 2499
    assert len(whole) == 2
    assert _tally(pipelines) == {
        ("pending", "parse", "MALFORMED_JSON"): 1,
        ("replayed", "parse", "MALFORMED_JSON"): 2499,
    }
    again = pipelines.replayed("orders", patch={"_value": "'{\"id\": 9999}'"})
    assert (again.taken, again.replayed) == (1, 1)
    # All of the first three micro-batches' books, and the homes of all letters, say the same.
    assert pipelines.one("SELECT count(*) FROM etl.dead_letter WHERE home_query_id IS NULL") == 0


@pytest.mark.parametrize(
    "columns",
    [
        {"id": "id", "place": "concat(_file, ':', _block_start)"},
        {"id": "id", "place": "get_json_object(to_json(struct(*)), '$._file')"},
        {"id": "id", "place": "concat(_FILE, '')"},
        {"id": "id", "place": "CAST(id IS NULL AS STRING)"},
    ],
)
def test_what_the_source_adds_to_a_row_comes_home_with_it(
    pipelines: Pipelines, inbox: Path, columns: dict[str, str]
) -> None:
    config = file_pipeline("orders", inbox, pipelines.checkpoints, schema="id BIGINT", transforms=[select(**columns)])
    write_lines(inbox / "1.json", {"id": 1}, '{"id": "1x"}')
    pipelines.finish(config)
    assert pipelines.replayed("orders", patch={"_value": "replace(_value, '\"1x\"', '1')"}).replayed == 1
    assert pipelines.one("SELECT count(*) FROM result") == 2
    # As if it had been good from the beginning.
    assert len(pipelines.rows("SELECT DISTINCT id, place FROM result WHERE place IS NOT NULL")) == 1


def test_a_refused_row_comes_home_once_the_target_takes_it(pipelines: Pipelines, inbox: Path) -> None:
    pipelines.execute("CREATE TABLE result (id bigint, amount numeric(12,2) CHECK (amount < 100), at timestamptz)")
    config = file_pipeline(
        "amounts", inbox, pipelines.checkpoints, schema="id BIGINT, amount DECIMAL(12,2), at TIMESTAMP"
    )
    write_lines(inbox / "1.json", *({"id": n, "amount": n * 40, "at": "2026-01-01T00:00:00.123456Z"} for n in range(5)))
    pipelines.finish(config)
    assert _tally(pipelines) == {("pending", "write", "CheckViolation"): 2}

    summary = pipelines.replayed("amounts")
    assert (summary.taken, summary.replayed, summary.failed) == (2, 0, 2)
    (first, *_) = summary.samples
    assert (first.new_stage, first.new_error_class) == ("write", "CheckViolation")

    pipelines.execute("ALTER TABLE result DROP CONSTRAINT result_amount_check")
    summary = pipelines.replayed("amounts")
    assert (summary.taken, summary.replayed) == (2, 2)
    assert pipelines.rows("SELECT id, amount::int, at::text FROM result ORDER BY id") == [
        (n, n * 40, "2026-01-01 00:00:00.123456+00") for n in range(5)
    ]
    assert pipelines.replayed("amounts").taken == 0


def test_a_row_without_a_raw_record_is_written_as_it_was_to_be(pipelines: Pipelines, inbox: Path) -> None:
    assert pipelines.spark is not None
    rows = "SELECT id, cast(id AS STRING) AS name, unhex('00ff') AS bytes, array(1, id) AS items FROM range(4)"
    pipelines.spark.sql(rows).write.parquet(str(inbox / "p"))
    pipelines.execute("CREATE TABLE result (twice bigint CHECK (twice < 4), label text, bytes bytea, items jsonb)")
    select = {"twice": "id * 2", "label": "concat(name, '!')", "bytes": "bytes", "items": "items"}
    config = file_pipeline(
        "rows",
        inbox / "p",
        pipelines.checkpoints,
        schema="id BIGINT, name STRING, bytes BINARY, items ARRAY<BIGINT>",
        format="parquet",
        transforms=[{"transformType": "select", "parameters": {"columns": select}}],
    )
    pipelines.finish(config)
    assert _tally(pipelines) == {("pending", "write", "CheckViolation"): 2}
    summary = pipelines.replayed("rows", patch={"twice": "CASE WHEN twice = 6 THEN 3 ELSE twice END"})
    assert (summary.replayed, summary.failed) == (1, 1)
    assert pipelines.rows("SELECT * FROM result WHERE twice = 3") == [(3, "3!", b"\x00\xff", [1, 3])]


def test_a_repair_that_fails_changes_nothing_of_a_row_without_a_raw_record(pipelines: Pipelines, inbox: Path) -> None:
    assert pipelines.spark is not None
    pipelines.spark.range(3).selectExpr("id", "CAST(id - 1 AS INT) AS amount").write.parquet(str(inbox / "p"))
    pipelines.execute("CREATE TABLE result (id bigint, share bigint CHECK (share BETWEEN 1 AND 100))")
    columns = {"id": "id", "share": "100 div amount"}
    config = file_pipeline(
        "shares",
        inbox / "p",
        pipelines.checkpoints,
        schema="id BIGINT, amount INT",
        format="parquet",
        load={"maxDeadLetterFraction": 1},
        transforms=[{"transformType": "select", "parameters": {"columns": columns}}],
    )
    pipelines.finish(config)
    held = "SELECT stage, parsed_row, status FROM etl.dead_letter ORDER BY stage"
    before = [
        ("transform", {"id": 1, "amount": 0}, "pending"),
        ("write", {"id": 0, "share": -100}, "pending"),
    ]
    assert pipelines.rows(held) == before
    # Repaired wrongly: what fails in the transforms gets through them, and both are refused by the table.
    for patch in ({"amount": "-7"}, {"share": "0"}):
        (stage, key) = ("transform", "amount") if "amount" in patch else ("write", "share")
        assert pipelines.replayed("shares", patch=patch, letters={"stages": (stage,)}).failed == 1, key
    assert pipelines.rows(held) == before
    assert pipelines.rows("SELECT error_class, attempt FROM etl.dead_letter") == [("CheckViolation", 2)] * 2
    assert pipelines.replayed("shares", patch={"amount": "4"}, letters={"stages": ("transform",)}).replayed == 1
    assert pipelines.replayed("shares", patch={"share": "abs(share)"}, letters={"stages": ("write",)}).replayed == 1
    assert pipelines.rows("SELECT * FROM result ORDER BY id") == [(0, 100), (1, 25), (2, 100)]


def test_a_line_of_csv_comes_home_through_the_transforms(pipelines: Pipelines, inbox: Path) -> None:
    config = file_pipeline(
        "csv",
        inbox,
        pipelines.checkpoints,
        schema="id BIGINT, name STRING",
        format="csv",
        options={"header": "true", "sep": ";"},
        transforms=[{"transformType": "select", "parameters": {"columns": {"id": "id", "loud": "upper(name)"}}}],
    )
    (inbox / "1.csv").write_text('id;name\n1;one\nII;two\n3;"th;ree"\n')
    pipelines.finish(config)
    assert _tally(pipelines) == {("pending", "parse", "MALFORMED_CSV"): 1}
    assert pipelines.replayed("csv", patch={"_value": "replace(_value, 'II', '2')"}).replayed == 1
    assert pipelines.rows("SELECT id, loud FROM result ORDER BY id") == [(1, "ONE"), (2, "TWO"), (3, "TH;REE")]


def test_a_dry_run_says_what_would_happen_and_changes_nothing(pipelines: Pipelines, inbox: Path) -> None:
    config = file_pipeline("orders", inbox, pipelines.checkpoints, schema="id BIGINT")
    write_lines(inbox / "1.json", {"id": 1}, '{"id": "2"}', '{"id": "x"}')
    pipelines.finish(config)
    letters, batches = _letters(pipelines), pipelines.one("SELECT count(*) FROM etl.batch_tracker")
    summary = pipelines.replayed("orders", patch={"_value": "replace(_value, '\"2\"', '2')"}, dry_run=True)
    assert (summary.taken, summary.replayed, summary.failed) == (2, 1, 1)
    assert [one.new_error_class for one in summary.samples] == ["MALFORMED_JSON"]
    assert _letters(pipelines) == letters
    assert pipelines.rows("SELECT id FROM result") == [(1,)]
    assert pipelines.one("SELECT count(*) FROM etl.batch_tracker") == batches


def test_what_failed_too_often_is_parked_and_can_be_asked_for(pipelines: Pipelines, inbox: Path) -> None:
    config = file_pipeline("orders", inbox, pipelines.checkpoints, schema="id BIGINT")
    write_lines(inbox / "1.json", '{"id": "x"}')
    pipelines.finish(config)
    assert pipelines.replayed("orders", max_attempts=3).failed == 1
    assert pipelines.replayed("orders", max_attempts=3).parked == 1
    assert _tally(pipelines) == {("parked", "parse", "MALFORMED_JSON"): 1}
    # One that has come to the number meanwhile, as a record does that is sent again, is parked when it is met.
    pipelines.execute("UPDATE etl.dead_letter_single SET status = 'pending'")
    for dry_run in (True, False):
        told = pipelines.replayed("orders", max_attempts=3, dry_run=dry_run)
        assert (told.taken, told.replayed, told.failed, told.parked) == (0, 0, 0, 1)
        assert [(one.error_class, one.parked) for one in told.classes] == [("MALFORMED_JSON", 1)]
    assert _tally(pipelines) == {("parked", "parse", "MALFORMED_JSON"): 1}
    assert pipelines.replayed("orders").taken == 0
    patch = {"_value": "replace(_value, '\"x\"', '7')"}
    both = {"statuses": ("pending", "parked")}
    assert pipelines.replayed("orders", patch=patch, letters=both, max_attempts=9).replayed == 1
    assert pipelines.rows("SELECT id FROM result") == [(7,)]


def test_letters_are_chosen_by_stage_class_time_and_id(pipelines: Pipelines, inbox: Path) -> None:
    pipelines.execute("CREATE TABLE result (id bigint CHECK (id < 10))")
    config = file_pipeline("orders", inbox, pipelines.checkpoints, schema="id BIGINT")
    write_lines(inbox / "1.json", '{"id": "x"}', {"id": 50}, {"id": 60}, "{}}")
    pipelines.finish(config)
    ids = [row[0] for row in pipelines.rows("SELECT dead_letter_id FROM etl.dead_letter ORDER BY parsed_row->>'id'")]
    moment = pipelines.one("SELECT max(first_failed_at) + interval '1 s' FROM etl.dead_letter")

    def taken(**letters: Any) -> int:
        return pipelines.replayed("orders", letters=letters, dry_run=True).taken

    assert taken(stages=("write",)) == 2
    assert taken(error_classes=("TRAILING_CONTENT",)) == 1
    assert taken(ids=(ids[0],)) == 1
    assert taken(since=moment) == 0
    assert taken(until=moment, stages=("parse", "write")) == 4
    assert pipelines.replayed("orders", limit=3, dry_run=True).taken == 3


def test_a_rate_makes_small_batches(pipelines: Pipelines, inbox: Path) -> None:
    config = file_pipeline("orders", inbox, pipelines.checkpoints, schema="id BIGINT")
    write_lines(inbox / "1.json", *(f'{{"id": "{n}"}}' for n in range(4)))
    pipelines.finish(config)
    summary = pipelines.replayed("orders", rate=2.0, patch={"_value": "replace(_value, '\"', '')"})
    assert (summary.replayed, summary.failed) == (0, 4)
    sizes = "SELECT source_rows FROM etl.batch_tracker WHERE pipeline_id LIKE 'orders/replay/%%' ORDER BY batch_id"
    assert pipelines.rows(sizes) == [(2,), (2,)]
