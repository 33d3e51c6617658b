"""The settings of how rows are written: what each may be, how it is told when it is not, and what fits together."""

from __future__ import annotations

import json
from typing import Any

import pytest
from config_documents import Document, files, parse, problem, problems, stateless, totals, windowed
from hypothesis import given, settings
from hypothesis import strategies as some

from spark_jobs.contracts.config import (
    InvalidConfigError,
    OnConflict,
    PipelineConfig,
    SchemaEvolution,
    WriteStrategy,
    json_schema,
)
from spark_jobs.contracts.run_request import RunRequest


def upsert(**load: Any) -> Document:
    """A valid upsert by ``id`` of columns that nobody knows before Spark does; changes are settings of ``load``."""
    changed = {"writeMode": "upsert", "keys": "id"} | load
    return stateless(**{f"load__{name}": value for name, value in changed.items()})


def append(**load: Any) -> Document:
    """A valid append of the same columns."""
    return stateless(**{f"load__{name}": value for name, value in load.items()})


def raw(setting: str, value: Any) -> Document:
    """An upsert with a value that JSON's own writer would refuse or change."""
    document = upsert()
    document["load"][setting] = value
    return document


READ: list[tuple[str, str, Any, Any]] = [
    ("orderColumn", "order_column", "version", "version"),
    ("orderColumn", "order_column", " version ", "version"),
    ("orderColumn", "order_column", "odd, name", "odd, name"),
    ("orderColumn", "order_column", None, None),
    ("updateColumns", "update_columns", "a", ("a",)),
    ("updateColumns", "update_columns", " a , b ", ("a", "b")),
    ("updateColumns", "update_columns", ["a", "odd, name"], ("a", "odd, name")),
    ("onConflict", "on_conflict", "update", OnConflict.UPDATE),
    ("onConflict", "on_conflict", " NOTHING ", OnConflict.NOTHING),
    ("deleteMarker", "delete_marker", "gone", "gone"),
    ("deleteMarker", "delete_marker", None, None),
    ("batchColumn", "batch_column", None, None),
    ("schemaEvolution", "schema_evolution", "strict", SchemaEvolution.STRICT),
    *[("schemaEvolution", "schema_evolution", text, SchemaEvolution.ADD_COLUMNS)
      for text in ("add_columns", "addColumns", "ADD-COLUMNS", "add columns")],
    ("schemaEvolution", "schema_evolution", "Widen", SchemaEvolution.WIDEN),
    ("writeParallelism", "write_parallelism", 1, 1),
    ("writeParallelism", "write_parallelism", " 4 ", 4),
    ("writeParallelism", "write_parallelism", 4.0, 4),
    ("writeParallelism", "write_parallelism", 2**31 - 1, 2**31 - 1),
    ("writeParallelism", "write_parallelism", None, None),
    *[("maxDeadLetterFraction", "max_dead_letter_fraction", value, value) for value in (0, 0.25, 1e-9, 1, None)],
    ("maxDeadLetterFraction", "max_dead_letter_fraction", " 0.25 ", 0.25),
    ("role", "role", "etl_writer", "etl_writer"),
    ("role", "role", " Odd Role ", "Odd Role"),
    ("role", "role", None, None),
    ("takeoverTimeout", "takeover_timeout", "1 minute", "1 minute"),
    ("takeoverTimeout", "takeover_timeout", "INTERVAL 1  minute 30 Seconds", "1 minute 30 Seconds"),
    *[("writeStrategy", "write_strategy", member.value, member) for member in WriteStrategy],
    *[("writeStrategy", "write_strategy", text, WriteStrategy.TWO_PHASE)
      for text in ("two-phase", "twoPhase", " Two Phase ")],
]  # fmt: skip


@pytest.mark.parametrize(("setting", "attribute", "given", "read"), READ)
def test_a_setting_is_read_in_both_spellings_and_written_back(
    setting: str, attribute: str, given: Any, read: Any
) -> None:
    # Two phases are for appends; what belongs to upserts needs one.
    document = append if read is WriteStrategy.TWO_PHASE else upsert
    config = parse(document(**{setting: given}))
    assert getattr(config.load, attribute) == read
    assert getattr(parse(document(**{attribute: given})).load, attribute) == read
    assert parse(config.to_json()) == config
    assert setting in config.to_mapping()["load"]


def test_what_the_settings_are_unless_they_are_given() -> None:
    load = parse(stateless()).load
    assert (load.order_column, load.update_columns, load.delete_marker, load.role) == (None, (), None, None)
    assert (load.on_conflict, load.schema_evolution) == (OnConflict.UPDATE, SchemaEvolution.STRICT)
    assert (load.write_strategy, load.write_parallelism) == (WriteStrategy.AUTO, None)
    assert (load.max_dead_letter_fraction, load.takeover_timeout) == (None, "5 seconds")
    assert not {"orderColumn", "takeoverTimeout", "role"} & parse(stateless()).to_mapping()["load"].keys()


@pytest.mark.parametrize("mode", ["upsert", "overwrite"])
def test_two_phase_is_for_appends(mode: str) -> None:
    document = upsert(writeStrategy="two_phase") if mode == "upsert" else totals(load__writeStrategy="two_phase")
    [found] = problems(document)
    assert (found.path, found.expected) == ("load.writeStrategy", "writeMode append")


@pytest.mark.parametrize("text", ["1 day 1 second", "25 days"])
def test_nobody_waits_longer_than_a_day_for_a_frozen_driver(text: str) -> None:
    [found] = problems(upsert(takeoverTimeout=text))
    assert (found.path, found.expected) == ("load.takeoverTimeout", "at most 1 day")


WHOLE = "a whole number from 1 to 2147483647"
NAMES = "column names: one text with commas between them, or a list of texts"
A_DURATION = 'a duration such as "10 minutes"'
REFUSED: list[tuple[str, Any, str, str]] = [
    *[(setting, value, "a text", hint)
      for setting in ("orderColumn", "deleteMarker", "batchColumn", "role")
      for value, hint in (("", ""), ("  ", ""), (True, ""), (["a"], ""), ({}, ""), (7, "in double quotes"))],
    *[("updateColumns", value, NAMES, "") for value in (None, 7, {"a": 1}, ["a", 7])],
    *[("updateColumns", value, NAMES, "a comma too many") for value in ("", "a,", ",", ["a", " "])],
    ("updateColumns", "a,b,a", "each column once", ""),
    *[("onConflict", value, "update or nothing", "") for value in ("replace", "", None, True, ["nothing"])],
    ("onConflict", "noting", "update or nothing", 'did you mean "nothing"?'),
    *[("schemaEvolution", value, "strict, add_columns or widen", "") for value in ("", None, True, "evolve")],
    ("schemaEvolution", "add_column", "strict, add_columns or widen", 'did you mean "add_columns"?'),
    *[("writeParallelism", value, WHOLE, "") for value in (0, -1, 1.5, 2**31, "four", "1e3", "", True, [], 10**30)],
    *[("writeStrategy", value, "auto, single, staged or two_phase", "") for value in ("jdbc", "", None, 2, ["auto"])],
    ("writeStrategy", "stagd", "auto, single, staged or two_phase", 'did you mean "staged"?'),
    *[("maxDeadLetterFraction", value, "a share from 0 to 1, for example 0.1", "") for value in (1.5, 2, 100, "1.01")],
    *[("maxDeadLetterFraction", value, "a number, 0 or more", "")
      for value in (-1, -0.001, "-0.5", "much", "10%", "NaN", "Infinity", "", True, [], {}, 10**400)],
    *[("takeoverTimeout", value, "a duration longer than nothing", "") for value in ("0 seconds", "0 days 0 hours")],
    ("takeoverTimeout", "5", A_DURATION, 'the unit is missing; write "5 seconds"'),
    ("takeoverTimeout", 5, A_DURATION, "write number and unit as one text"),
    ("takeoverTimeout", "5s", A_DURATION, 'write "5 seconds"'),
    ("takeoverTimeout", "5 secnds", A_DURATION, 'did you mean "seconds"?'),
    ("takeoverTimeout", "1 month", A_DURATION, "months and years differ in length; write days"),
    *[("takeoverTimeout", value, A_DURATION, 'as in "10 minutes"') for value in ("", "soon", "-1 second", "1.5 hours")],
    *[("takeoverTimeout", value, A_DURATION, "longer than 100 years")
      for value in ("36526 days", "999999999999 weeks", "5218 weeks 1 microsecond")],
    *[("takeoverTimeout", value, A_DURATION, "") for value in (None, [], {})],
]  # fmt: skip


@pytest.mark.parametrize(("setting", "given", "expected", "hint"), REFUSED)
def test_a_setting_that_cannot_be_is_refused_with_its_place(setting: str, given: Any, expected: str, hint: str) -> None:
    wrong = problem(raw(setting, given))
    assert (wrong.path, wrong.expected) == (f"load.{setting}", expected)
    assert hint in wrong.hint
    assert wrong.found


@pytest.mark.parametrize("setting", ["maxDeadLetterFraction", "writeParallelism"])
@pytest.mark.parametrize(
    ("literal", "found"),
    [("NaN", "nan (not a finite number)"), ("Infinity", "inf (not a finite number)"), ("-1e999", "-inf (not a finite")],
)
def test_numbers_that_are_none(setting: str, literal: str, found: str) -> None:
    text = json.dumps(upsert(**{setting: "@"})).replace('"@"', literal)
    wrong = problem(text)
    assert wrong.path == f"load.{setting}"
    assert wrong.found.startswith(found)


TIMEOUTS = [
    ("500 microseconds", 1),
    ("1 microsecond", 1),
    ("20 milliseconds", 20),
    ("1 second", 1000),
    ("2 SECONDS", 2000),
    ("1 minute 30 seconds", 90_000),
    ("interval 1 hour", 3_600_000),
    ("1 day", 86_400_000),
    ("1 day", 86_400_000),
]


@pytest.mark.parametrize(("text", "milliseconds"), TIMEOUTS)
@pytest.mark.parametrize("spelling", ["takeoverTimeout", "takeover_timeout"])
def test_the_takeover_waits_for_what_the_file_says(spelling: str, text: str, milliseconds: int) -> None:
    assert requested(stateless(**{f"load__{spelling}": text})).takeover_ms == milliseconds
    variable = stateless(**{f"load__{spelling}": "${wait}", "variables": {"wait": text}})
    assert requested(variable).takeover_ms == milliseconds


def test_the_takeover_waits_five_seconds_unless_told_otherwise() -> None:
    assert requested(stateless()).takeover_ms == 5000


def requested(document: Document) -> RunRequest:
    config = parse(document)
    return RunRequest(run_id="r", pipeline_id=config.pipeline_id, config=config.to_mapping(), started_by="me")


GROUPS: list[tuple[Document, str, str]] = [
    (stateless(extract__commitGroup="  "), "a text", ""),
    (stateless(extract__commitGroup=7), "a text", "in double quotes"),
    (stateless(extract__commitGroup=True), "a text", ""),
    (files(extract__commitGroup="lag"), 'no consumer group: it belongs to sourceType "kafka"', ""),
    (stateless(extract={"sourceType": "rate", "commitGroup": "lag"}), "no consumer group", ""),
    (stateless(extract__commitGroup="lag", extract__connectionParams={
        "kafka.bootstrap.servers": "localhost:9092", "kafka.group.id": "lag"}), "a group that nobody reads with", ""),
]  # fmt: skip


@pytest.mark.parametrize(("document", "expected", "hint"), GROUPS)
def test_commit_groups_that_cannot_be(document: Document, expected: str, hint: str) -> None:
    wrong = problem(document)
    assert wrong.path == "extract.commitGroup"
    assert wrong.expected.startswith(expected)
    assert hint in wrong.hint


@pytest.mark.parametrize(
    ("given", "read"), [("lag", "lag"), (" lag ", "lag"), ("${group}", "orders-lag"), (None, None)]
)
def test_commit_groups_as_they_are_read(given: str | None, read: str | None) -> None:
    config = parse(stateless(extract__commitGroup=given, variables={"group": "orders-lag"}))
    assert config.extract.commit_group == read
    assert "commitGroup" not in config.reader_options
    assert parse(config.to_json()) == config


ONLY_UPSERT = [
    ("orderColumn", "version"),
    ("updateColumns", "a,b"),
    ("onConflict", "nothing"),
    ("deleteMarker", "gone"),
]
OTHERS = [stateless(), windowed(), windowed(streamingConfigJson__outputMode="complete", load__writeMode="overwrite")]


@pytest.mark.parametrize("document", OTHERS, ids=["append", "append of windows", "overwrite"])
@pytest.mark.parametrize(("setting", "value"), ONLY_UPSERT)
def test_what_only_an_upsert_has(setting: str, value: str, document: Document) -> None:
    mode = document["load"].get("writeMode", "append")
    wrong = problem(document | {"load": document["load"] | {setting: value}})
    assert (wrong.path, wrong.found) == (f"load.{setting}", f"{setting} with writeMode {mode}")
    assert wrong.expected == f"no {setting}: only upsert uses it"
    assert wrong.hint == 'did you mean "writeMode": "upsert"?'
    assert parse(upsert(**{setting: value}))


def test_only_an_append_names_batches() -> None:
    assert parse(stateless(load__batchColumn="etl_batch")).load.batch_column == "etl_batch"
    for document in (upsert(batchColumn="b"), OTHERS[-1] | {"load": OTHERS[-1]["load"] | {"batchColumn": "b"}}):
        [wrong] = problems(document)
        assert wrong.path == "load.batchColumn"
        assert wrong.found.startswith("batchColumn with writeMode")


@pytest.mark.parametrize("name", ["_batch", "__outcome", "b" * 64])
def test_names_that_the_pipeline_or_postgresql_does_not_allow(name: str) -> None:
    wrong = problem(stateless(load__batchColumn=name))
    assert (wrong.path, wrong.found) == ("load.batchColumn", f'"{name}"')


def test_everything_that_only_an_upsert_has_is_told_at_once() -> None:
    wrong = problems(stateless(**{f"load__{setting}": value for setting, value in ONLY_UPSERT}))
    assert [item.path for item in wrong] == [f"load.{setting}" for setting, _ in ONLY_UPSERT]
    assert parse(stateless(load__onConflict="update"))


BROKEN: list[tuple[dict[str, Any], str, str, str]] = [
    ({"updateColumns": "name,id"}, "updateColumns", 'the key "id"', "a row is found by them, so they stay"),
    ({"keys": "id,part", "updateColumns": "part"}, "updateColumns", 'the key "part"', 'beside the keys "id", "part"'),
    ({"updateColumns": "name", "onConflict": "nothing"}, "updateColumns", "with onConflict nothing", "one of the two"),
    ({"orderColumn": "id"}, "orderColumn", 'the key "id"', "rows of one key do not differ in it"),
    ({"keys": "id,part", "orderColumn": "part"}, "orderColumn", 'the key "part"', 'the keys "id", "part"'),
    ({"deleteMarker": "id"}, "deleteMarker", '"id", which is used otherwise', "a column of its own"),
    ({"deleteMarker": "v", "orderColumn": "v"}, "deleteMarker", '"v", which is used otherwise', "is not written"),
    ({"deleteMarker": "b", "updateColumns": "a,b"}, "deleteMarker", '"b", which is used otherwise', "is not written"),
]


@pytest.mark.parametrize(("load", "setting", "found", "expected"), BROKEN)
def test_settings_of_an_upsert_that_do_not_fit_together(
    load: dict[str, Any], setting: str, found: str, expected: str
) -> None:
    wrong = problem(upsert(**load))
    assert wrong.path == f"load.{setting}"
    assert found in wrong.found
    assert expected in wrong.expected


KEPT: list[dict[str, Any]] = [
    {"updateColumns": "name"},
    {"updateColumns": "name,version", "orderColumn": "version"},
    {"updateColumns": "name", "orderColumn": "version"},
    {"onConflict": "nothing"},
    {"onConflict": "update", "updateColumns": "name"},
    {"onConflict": "nothing", "orderColumn": "version", "deleteMarker": "gone"},
    {"deleteMarker": "gone", "orderColumn": "version", "updateColumns": "name"},
    {"deleteMarker": "gone", "keys": "id,part"},
]


@pytest.mark.parametrize("load", KEPT)
def test_settings_of_an_upsert_that_fit_together(load: dict[str, Any]) -> None:
    assert parse(upsert(**load))


def test_everything_that_does_not_fit_together_is_told_at_once() -> None:
    document = upsert(
        keys="a,b", orderColumn="a", updateColumns="a,b,c", deleteMarker="b", onConflict="nothing", writeParallelism=0
    )
    assert sorted(item.path for item in problems(document)) == [
        "load.deleteMarker",
        "load.orderColumn",
        *["load.updateColumns"] * 3,
        "load.writeParallelism",
    ]


RESULTS: list[tuple[str, str, str]] = [
    ("orderColumn", "pric", 'did you mean "price"?'),
    ("updateColumns", "total", ""),
    ("deleteMarker", "Price", 'did you mean "price"?'),
]


@pytest.mark.parametrize(("setting", "column", "hint"), RESULTS)
def test_a_column_that_the_result_does_not_have(setting: str, column: str, hint: str) -> None:
    wrong = problem(totals(**{f"load__{setting}": column}))
    assert wrong.path == f"load.{setting}"
    assert wrong.found == f'"{column}", which is no column of the result'
    assert wrong.expected == "one of country, price"
    assert wrong.hint == hint
    assert parse(totals(**{f"load__{setting}": "price"}))


def test_columns_that_a_select_gives() -> None:
    select = {"transformType": "select", "parameters": {"columns": {"id": "id", "v": "version", "gone": "op = 'D'"}}}
    document = upsert(orderColumn="v", updateColumns="v", deleteMarker="gone") | {"transforms": [select]}
    assert parse(document)
    document["load"]["orderColumn"] = "version"
    assert problem(document).expected == "one of id, v, gone"


# Each with what a file may have there, and with what nobody may.
SETTINGS: dict[str, tuple[list[Any], list[Any]]] = {
    "orderColumn": (["v", "w"], ["", 7, []]),
    "updateColumns": (["x", "x,v", ["x", "y"]], ["x,,y", [], 7, None]),
    "onConflict": (["update", "NOTHING"], ["replace", None, {}]),
    "deleteMarker": (["gone"], [" ", False, {}]),
    "schemaEvolution": (["strict", "addColumns", "widen"], ["wide open", 1]),
    "writeParallelism": ([1, "8", None], [0, -3, "many", 2**31]),
    "maxDeadLetterFraction": ([0, "0.5", 1, None], [1.5, -1, "much", float("nan")]),
    "role": (["writer", None], ["", 1, []]),
    "takeoverTimeout": (["1 second", "2 hours"], ["0 seconds", "5s", 5, "99999999 weeks"]),
    "writeStrategy": (["auto", "single", "staged", "two-phase"], ["jdbc", None]),
}
ANYTHING = some.one_of(
    *[some.sampled_from([*good, *bad]) for good, bad in SETTINGS.values()],
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=8),
    some.lists(some.text("idvx, ", max_size=4), max_size=3),
    some.sampled_from(["id", "v", "x", "country", "price", "window_start", "${a}", "upsert", "append"]),
)
CHANGES = some.dictionaries(some.sampled_from([*SETTINGS, "keys", "writeMode"]), ANYTHING, max_size=6)
DOCUMENTS = [stateless(), upsert(), windowed(), totals(), files()]
quick = settings(max_examples=200, deadline=None)


@quick
@given(some.sampled_from(DOCUMENTS), CHANGES, some.none() | ANYTHING)
def test_any_settings_are_a_pipeline_or_an_error_that_names_their_places(
    document: Document, load: dict[str, Any], group: Any
) -> None:
    extract = document["extract"] | ({} if group is None else {"commitGroup": group})
    changed = document | {"extract": extract, "load": document["load"] | load}
    try:
        config = PipelineConfig.from_json(changed)
    except InvalidConfigError as error:
        refused = error
    else:
        assert parse(config.to_json()) == config
        assert requested(changed).takeover_ms >= 1
        return
    # An item of a list has a place of its own.
    places = {item.path.partition("[")[0] for item in refused.problems}
    assert places
    assert places <= {"extract.commitGroup", *(f"load.{name}" for name in (*SETTINGS, "keys", "writeMode"))}
    assert all(item.found and item.expected for item in refused.problems)
    str(refused).encode()


@quick
@given(some.data())
def test_each_wrong_setting_is_told_at_once_and_no_right_one(data: some.DataObject) -> None:
    wrong = data.draw(some.sets(some.sampled_from(sorted(SETTINGS)), min_size=1))
    chosen = {name: data.draw(some.sampled_from(SETTINGS[name][name in wrong])) for name in SETTINGS}
    if "onConflict" not in wrong:
        # It does not go with updateColumns.
        chosen["onConflict"] = "update"
    if "writeStrategy" not in wrong and chosen["writeStrategy"] not in ("auto", "single", "staged"):
        # Two phases are for appends.
        chosen["writeStrategy"] = "staged"
    document = upsert()
    document["load"] |= chosen
    assert {item.path for item in problems(document)} == {f"load.{name}" for name in wrong}


@quick
@given(some.permutations("abcdefg"), some.integers(1, 3), some.integers(0, 2), some.booleans(), some.booleans())
def test_an_upsert_whose_columns_have_one_role_each_is_right_and_valid_by_the_schema(
    columns: list[str], keys: int, updates: int, order: bool, marker: bool
) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    *rest, last, other = columns
    load: dict[str, Any] = {"keys": rest[:keys]}
    load |= {"updateColumns": rest[keys : keys + updates]} if updates else {"onConflict": "nothing"}
    load |= ({"orderColumn": last} if order else {}) | ({"deleteMarker": other} if marker else {})
    document = upsert(**load)
    config = parse(document)
    assert config.load.keys == tuple(rest[:keys])
    assert [error.message for error in jsonschema.Draft202012Validator(json_schema()).iter_errors(document)] == []


@quick
@given(some.sampled_from(["orderColumn", "updateColumns", "deleteMarker"]), some.integers(0, 2))
def test_a_key_has_no_other_role(setting: str, which: int) -> None:
    key = "abc"[which]
    wrong = problem(upsert(**{"keys": "a,b,c", setting: key}))
    assert wrong.path == f"load.{setting}"
    assert f'"{key}"' in wrong.found
