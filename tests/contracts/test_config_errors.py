"""Wrong input: all of it at once, each with path, found, expected and a hint; never a secret."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from config_documents import Document, files, parse, problem, problems, stateless, windowed

from spark_jobs.contracts.config import InvalidConfigError, PipelineConfig, load_pipeline
from spark_jobs.contracts.errors import ConfigError


def test_everything_that_is_wrong_in_one_error() -> None:
    document = windowed(
        pipelineId="orders / per hour",
        extract__sourcetype="kafka",
        extract__connectionParams={"kafka.bootstrap.server": "localhost:9092"},
        load__port=5432,
        load__writeMode="upsrt",
        streamingConfigJson__outputMode="apend",
        streamingConfigJson__watermark={"eventTimeColumn": "created_at", "delayThreshold": "10 minuets"},
        transforms__0__parameters__aggregations="orders:count,price:median",
    )
    with pytest.raises(InvalidConfigError) as caught:
        parse(document)
    assert str(caught.value) == "\n".join(
        [
            "The pipeline configuration has 8 problems:",
            "  extract.sourcetype",
            '    found:    the unknown key "sourcetype"',
            "    expected: sourceType, topic, path, schemaName, schema, connectionParams, credentialId or commitGroup",
            '    hint:     did you mean "sourceType"?',
            "  load.port",
            '    found:    the unknown key "port"',
            "    expected: sinkType, table, schemaName, writeMode, keys, orderColumn, updateColumns, onConflict, "
            "deleteMarker, batchColumn, autoCreateTable, connectionParams, credentialId, writeStrategy, "
            "writeParallelism, schemaEvolution, maxDeadLetterFraction, role or takeoverTimeout",
            "    hint:     options go into connectionParams",
            "  transforms[0].parameters.aggregations",
            '    found:    the function "median" in "price:median"',
            "    expected: sum, avg, count, min, max, first or last",
            "  load.writeMode",
            '    found:    "upsrt"',
            "    expected: append, overwrite or upsert",
            '    hint:     did you mean "upsert"?',
            "  streamingConfigJson.outputMode",
            '    found:    "apend"',
            "    expected: append, update or complete",
            '    hint:     did you mean "append"?',
            "  streamingConfigJson.watermark.delayThreshold",
            '    found:    "10 minuets"',
            '    expected: a duration such as "10 minutes"',
            '    hint:     did you mean "minutes"?',
            "  pipelineId",
            '    found:    "orders / per hour"',
            "    expected: a name of letters, digits, _ . and -, at most 200 of them",
            '  extract.connectionParams["kafka.bootstrap.servers"]',
            "    found:    nothing",
            "    expected: the brokers: host:port,host:port",
            '    hint:     "kafka.bootstrap.server" is spelled kafka.bootstrap.servers',
        ]
    )
    assert isinstance(caught.value, ConfigError)
    assert caught.value.exit_code == 2
    assert len(caught.value.to_json()["problems"]) == 8


def test_rules_still_judge_what_is_left_of_a_section() -> None:
    document = windowed(
        load__writeMode="overwrite",
        load__table="a.b.c",
        load__credentialId=...,
        streamingConfigJson__triggerMode="continuos",
        streamingConfigJson__queryName=...,
        streamingConfigJson__maxFilesPerTrigger=5,
        extract__schema=5,
        extract__topic=...,
        transforms__0__parameters__slideDuration="1 hour",
    )
    assert {item.path for item in problems(document)} == {
        "load.table",
        "load.credentialId",
        "load.writeMode",
        "streamingConfigJson.triggerMode",
        "streamingConfigJson.queryName",
        "streamingConfigJson.maxFilesPerTrigger",
        "extract.schema",
        "extract.topic",
        "transforms[0].parameters.slideDuration",
    }


def test_a_wrong_setting_brings_no_follow_up_problems() -> None:
    assert problem(windowed(streamingConfigJson__watermark=5)).path == "streamingConfigJson.watermark"
    wrong = windowed(
        transforms__0__parameters__windowColumn=..., streamingConfigJson__watermark={"delayThreshold": "1 day"}
    )
    assert problem(wrong).path == "streamingConfigJson.watermark.eventTimeColumn"
    assert problem(windowed(streamingConfigJson__outputMode="updaet", load__writeMode="upsert", load__keys="country"))
    assert problem(stateless(extract__sourceType=5)).path == "extract.sourceType"
    assert problem(stateless(load__writeMode=5, load__keys="id")).path == "load.writeMode"


SYNTAX = [
    ("", "an empty file", "etl-pipeline schema"),
    ("  \n", "an empty file", "etl-pipeline schema"),
    ('{"a": 1,}', "line 1, column 8: a comma before a closing bracket", "take the comma out"),
    ('{"a": [1,\n 2,\n]}', "line 2, column 3: a comma before a closing bracket", "take the comma out"),
    ('{"a": 1\n "b": 2}', "line 2, column 2", "a comma is missing before this place"),
    ("{'a': 1}", "line 1, column 2", 'JSON texts stand in double quotes (")'),
    ('{"a": True}', "line 1, column 7", "JSON spells these true, false and null"),
    ('{"a": 1 # why\n}', "line 1, column 9", "JSON has no comments; take it out"),
    ('{"a": {', "line 1, column 8", "the file ends too early; a closing bracket or quote is missing"),
    ("[" * 100_000, "brackets nested too deeply", ""),
    ("pipelines/orders.json", 'the text "pipelines/orders.json"', "to read a file, use load_pipeline(path)"),
]


@pytest.mark.parametrize(("text", "found", "hint"), SYNTAX)
def test_text_that_is_no_json(text: str, found: str, hint: str) -> None:
    wrong = problem(text)
    assert found in wrong.found
    assert hint in wrong.hint
    assert wrong.path == "$"


@pytest.mark.parametrize("value", ["[]", "null", '"text"', "1", "true", "1e999", "-0.0"])
def test_a_document_that_is_no_object(value: str) -> None:
    assert problem(value).expected == "a JSON object with the pipeline"


def test_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    text = json.dumps(stateless())
    assert parse("\ufeff" + text) == parse(text)
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert load_pipeline(tmp_path / "bom.json") == parse(text)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "utf16.json").write_text(json.dumps(stateless()), encoding="utf-16")
    for path, found in [
        (tmp_path / "missing.json", "No such file"),
        (tmp_path, "directory"),
        (tmp_path / "utf16.json", "byte 0 is not UTF-8"),
    ]:
        with pytest.raises(InvalidConfigError, match=found) as caught:
            load_pipeline(path)
        assert str(path) in str(caught.value)


def test_a_key_twice() -> None:
    text = json.dumps(stateless()).replace('"topic": "orders"', '"topic": "orders", "topic": "others"')
    wrong = problem(text)
    assert (wrong.path, wrong.found) == ("extract.topic", "this key twice in one object")


def test_a_key_in_both_spellings() -> None:
    wrong = problem(stateless(load__write_mode="append", load__writeMode="append"))
    assert wrong.found == 'both "write_mode" and "writeMode"'
    wrong = problem(stateless(errorHandling={}, errorHandlingConfig={}))
    assert wrong.path == "errorHandling"


def test_problems_are_told_in_the_files_own_spelling() -> None:
    document = stateless(streaming_config_json=stateless()["streamingConfigJson"] | {"max_files_per_trigger": "many"})
    del document["streamingConfigJson"]
    assert problem(document).path == "streaming_config_json.max_files_per_trigger"


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


VALUES = [
    ("name", "NaN", "nan (not a finite number)"),
    ("name", "Infinity", "inf (not a finite number)"),
    ("name", "1" * 5000, "inf (not a finite number)"),
    ("name", '"a\\u0000b"', "a text with a NUL character or half a surrogate pair"),
    ("name", '"\\ud800"', "a text with a NUL character or half a surrogate pair"),
    ("name", '"  "', 'an empty text "  "'),
    ("name", "[]", "a list of 0 items"),
]


@pytest.mark.parametrize(("key", "literal", "found"), VALUES)
def test_values_that_no_text_can_be(key: str, literal: str, found: str) -> None:
    wrong = problems(json.dumps(stateless(name="@")).replace('"@"', literal))[0]
    assert (wrong.path, wrong.found) == (key, found)


def test_objects_that_are_no_json() -> None:
    for value in (math.nan, {1, 2}, object(), b"bytes", _deep(100)):
        assert problems(stateless() | {"name": value})
    odd: Any = {**stateless(), 1: "one"}
    assert problems(odd)[0].found == "a key that is 1"


WRONG: list[tuple[Document, str, str, str]] = [
    (stateless(pipelineId=...), "pipelineId", "Identifies the pipeline", ""),
    (
        windowed(transforms__0__parameters={"groupBy": "a", "aggregations": "b:sum", "windowDuration": "1 day"}),
        "tr",
        "groupByColumns",
        '"groupByColumns"',
    ),
    (stateless(load=[]), "load", "an object", ""),
    (stateless(load=None), "load", "an object", ""),
    (stateless(transforms={}), "transforms", "a list of transforms", ""),
    (stateless(transforms=[None]), "transforms[0]", "an object with transformType", ""),
    (stateless(transforms=[1]), "transforms[0]", "an object with transformType", ""),
    (
        stateless(transforms=[{"type": "select"}]),
        "transforms[0].transformType",
        "select, filter",
        "spelled transformType",
    ),
    (stateless(transforms=[{"transformType": "agregation"}]), "transforms[0].transformType", "filter", '"aggregation"'),
    (stateless(transforms=[{"transformType": 5}]), "transforms[0].transformType", "select, filter or aggregation", ""),
    (stateless(transforms=[{"transformType": "filter"}]), "transforms[0].parameters", "It is required", ""),
    (
        stateless(transforms=[{"transformType": "filter", "condition": "a > 1", "parameters": {"condition": "a > 1"}}]),
        "transforms[0].condition",
        "transformType or parameters",
        "options go into parameters",
    ),
    (
        stateless(transforms=[{"transformType": "select", "parameters": {"columns": ["a"]}}]),
        "transforms[0].parameters.columns",
        "an object: column name → SQL expression",
        "names as keys",
    ),
    (
        stateless(transforms=[{"transformType": "select", "parameters": {"columns": {"a": "x", "A": "y"}}}]),
        "transforms[0].parameters.columns",
        "each column once",
        "",
    ),
    (stateless(streamingConfigJson=...), "streamingConfigJson", "checkpointLocation", ""),
    (
        stateless(streamingConfigJson__triggerMode="processingtime"),
        "streamingConfigJson.triggerMode",
        "<dura",
        "missing",
    ),
    (stateless(streamingConfigJson__triggerMode="once=5 seconds"), "streamingConfigJson.triggerMode", "once", "no dur"),
    (
        stateless(streamingConfigJson__triggerMode="avalablenow"),
        "streamingConfigJson.triggerMode",
        "once",
        "availablenow",
    ),
    (
        stateless(streamingConfigJson__triggerMode="processingtime=5s"),
        "streamingConfigJson.triggerMode",
        "processingtime=<duration>",
        'write "5 seconds"',
    ),
    (stateless(streamingConfigJson__maxRecordsPerTrigger=0), "streamingConfigJson.maxRecordsPerTrigger", "from 1", ""),
    (
        stateless(streamingConfigJson__maxRecordsPerTrigger=2**63),
        "streamingConfigJson.maxRecordsPerTrigger",
        "from 1",
        "",
    ),
    (
        stateless(streamingConfigJson__maxRecordsPerTrigger=True),
        "streamingConfigJson.maxRecordsPerTrigger",
        "whole",
        "",
    ),
    (
        stateless(streamingConfigJson__enableIdempotence="yes"),
        "streamingConfigJson.enableIdempotence",
        "true or false",
        "",
    ),
    (stateless(load__table="a.b.c"), "load.table", "schema.table", "the database is the connection's"),
    (stateless(load__table="a..c"), "load.table", "schema.table", "quoted as in SQL"),
    (stateless(load__table="t" * 64), "load.table", "schema.table", "at most 63 bytes"),
    (stateless(load__sinkType="postgresq"), "load.sinkType", "postgresql", '"postgresql"'),
    (stateless(load__credentialId=...), "load.credentialId", "the connection", '"credentialId": "warehouse"'),
    (stateless(load__connectionParams={"hots": "a"}), "load.connectionParams.hots", "host", '"host"'),
    (stateless(load__connectionParams={"port": "54x2"}), "load.connectionParams.port", "1 to 65535", ""),
    (
        stateless(load__connectionParams={"application_name": "x"}),
        "load.connectionParams.application_name",
        "h",
        "fence",
    ),
    (
        stateless(load__connectionParams={"host": {"a": 1}}),
        "load.connectionParams",
        "a text, number or boolean",
        "JSON",
    ),
    (stateless(extract__sourceType="kafak"), "extract.sourceType", "kafka, file or rate", '"kafka"'),
    (stateless(extract__schema="orders"), "extract.schema", "Spark DDL", "use schemaName"),
    (stateless(extract__schema={"type": "struct", "fields": []}), "extract.schema", "Spark DDL", "fields"),
    (stateless(extract__schema="{not json"), "extract.schema", "Spark DDL", "begins like JSON"),
    (stateless(schemas={"order": 5}), "schemas.order", "Spark DDL", ""),
    (stateless(extract__schema_name="ordr", extract__schema=..., schemas={"order": "a INT"}), "ex", "order", '"order"'),
    (stateless(extract__schema_name="../secret", extract__schema=...), "extract.schemaName", "there is none", ""),
    (files(extract__connectionParams__format="jsonl"), "extract.connectionParams.format", "json", '"json"'),
]


@pytest.mark.parametrize(("document", "path", "expected", "hint"), WRONG)
def test_one_thing_wrong(document: Document, path: str, expected: str, hint: str) -> None:
    wrong = problem(document)
    assert wrong.path.startswith(path)
    assert expected in wrong.expected
    assert hint in wrong.hint
    assert wrong.found


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("10", 'the unit is missing; write "10 seconds"'),
        ("10m", 'write "10 minutes"'),
        ("500ms", 'write "500 milliseconds"'),
        ("10 mintues", 'did you mean "minutes"?'),
        ("1 month", "months and years differ in length; write days"),
        ("ten minutes", 'write a number, a space and a unit, as in "10 minutes"'),
        ("-5 minutes", 'write a number, a space and a unit, as in "10 minutes"'),
        ("999999999999 weeks", "that is longer than 100 years"),
    ],
)
def test_durations_that_cannot_be_read(text: str, hint: str) -> None:
    wrong = problem(windowed(streamingConfigJson__watermark__delayThreshold=text))
    assert (wrong.path, wrong.hint) == ("streamingConfigJson.watermark.delayThreshold", hint)


def test_a_window_of_no_length() -> None:
    wrong = problem(windowed(transforms__0__parameters__windowDuration="0 seconds"))
    assert wrong.expected == "a duration longer than nothing"
    assert parse(windowed(streamingConfigJson__watermark__delayThreshold="0 seconds"))


SECRETS: list[tuple[Document, str]] = [
    (stateless(extract__connectionParams__kafka={}), ""),
    (stateless(load__connectionParams={"password": "hunter2"}), "load.connectionParams.password"),
    (stateless(load__connectionParams={"sslpassword": "hunter2"}), "load.connectionParams.sslpassword"),
    (stateless(load__password="hunter2"), "load.password"),
    (stateless(load__connectionParams={"host": "postgresql://etl:hunter2@db/x"}), "load.connectionParams.host"),
    (stateless(load__connectionParams={"host": "db password=hunter2"}), "load.connectionParams.host"),
    (stateless(streamingConfigJson__checkpointLocation="s3a://key:hunter2@bucket/x"), "streamingConfigJson.checkp"),
    (stateless(variables={"db_password": "hunter2"}), "variables.db_password"),
    (stateless(errorHandling={"deadLetterQueue": {"config": {"sasl.jaas.config": "hunter2"}}}), "errorHandling.dead"),
]
for _option in (
    *("kafka.sasl.jaas.config", "kafka.ssl.key.password", "kafka.ssl.keystore.password", "kafka.ssl.keystore.key"),
    *("kafka.ssl.truststore.password", "fs.s3a.secret.key", "fs.s3a.access.key", "api_key", "apiKey", "authToken"),
    *("KAFKA.SSL.KEY.PASSWORD", "client_secret", "sas-token", "account.key"),
):
    _params = {"kafka.bootstrap.servers": "localhost:9092", _option: "hunter2"}
    SECRETS.append((stateless(extract__connectionParams=_params), "extract.connectionParams"))


@pytest.mark.parametrize(("document", "path"), SECRETS[1:])
def test_a_secret_is_refused_and_never_shown(document: Document, path: str) -> None:
    with pytest.raises(InvalidConfigError) as caught:
        parse(document)
    assert any(item.path.startswith(path) for item in caught.value.problems)
    assert "credentialId" in str(caught.value)
    for text in (
        str(caught.value),
        repr(caught.value),
        json.dumps(caught.value.to_json()),
        repr(caught.value.problems),
    ):
        assert "hunter2" not in text


def test_names_that_only_speak_of_secrets_are_fine() -> None:
    options = {
        "kafka.ssl.truststore.location": "/etc/trust.jks",
        "kafka.ssl.truststore.type": "JKS",
        "kafka.sasl.oauthbearer.token.endpoint.url": "https://login.example/token",
        "kafka.sasl.login.callback.handler.class": "x.Y",
        "kafka.bootstrap.servers": "a:9092,b:9092",
    }
    assert parse(stateless(extract__connectionParams=options)).extract.options["kafka.ssl.truststore.type"] == "JKS"
    condition = "password = 'x' OR token = secret"
    assert parse(stateless(transforms=[{"transformType": "filter", "parameters": {"condition": condition}}]))


def test_a_wrong_value_that_may_be_a_secret_is_not_shown() -> None:
    with pytest.raises(InvalidConfigError) as caught:
        parse(stateless(load__connectionParams="postgresql://etl:hunter2@db/x"))
    assert "hunter2" not in str(caught.value)


VARIABLES: list[tuple[Document, dict[str, str], str, str, str]] = [
    (stateless(name="${nme}"), {}, "name", "unknown variable ${nme}", "--var nme=…"),
    (stateless(name="${nme}", variables={"name": "x"}), {}, "name", "unknown variable ${nme}", '"name"'),
    (stateless(name="a ${ b c } d"), {}, "name", "names no variable", 'write "$${"'),
    (stateless(name="${open"), {}, "name", "names no variable", 'write "$${"'),
    (stateless(load__keys=["a", "${x}"], load__writeMode="upsert"), {}, "load.keys[1]", "${x}", "--var x=…"),
    (stateless(name="${a}", variables={"a": "${b}"}), {}, "variables.a", "a reference to a variable", ""),
    (stateless(), {"brokres": "x"}, "variables", 'the variable "brokres"', ""),
    (stateless(variables={"brokers": "x"}), {"brokres": "x"}, "variables", '"brokres"', '"brokers"'),
    (stateless(variables={"a": []}), {}, "variables.a", "a list of 0 items", ""),
    (stateless(variables={"a b": "x"}), {}, 'variables["a b"]', "variable name", ""),
    (stateless(variables=[]), {}, "variables", "a list of 0 items", ""),
    (stateless(**{"${x}": "y"}), {}, '["${x}"]', 'the key "${x}"', "never in keys"),
]


@pytest.mark.parametrize(("document", "given", "path", "found", "hint"), VARIABLES)
def test_variables_that_go_wrong(document: Document, given: dict[str, str], path: str, found: str, hint: str) -> None:
    wrong = problems(document, **given)[0]
    assert wrong.path == path
    assert found in wrong.found
    assert hint in wrong.hint


def test_an_unknown_variable_is_told_once() -> None:
    assert len(problems(stateless(streamingConfigJson__outputMode="${mode}"))) == 1


def test_variables_are_replaced_once_and_escaped_ones_are_not() -> None:
    document = stateless(name="$${a} ${a} $$${a} $5 ${b}", variables={"a": 1, "b": "file"})
    config = parse(document, b="${a}")
    assert config.name == "${a} 1 $${a} $5 ${a}"
    assert config.variables == {"a": "1", "b": "${a}"}
    assert PipelineConfig.from_json(config.to_json()) == config


def test_an_error_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "orders.json").write_text(json.dumps(stateless(mode="steaming")))
    with pytest.raises(InvalidConfigError, match=r"orders\.json has 1 problem:") as caught:
        load_pipeline(tmp_path / "orders.json")
    assert caught.value.problems[0].hint == 'did you mean "streaming"?'
