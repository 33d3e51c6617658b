"""Settings that must fit together."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from config_documents import Document, files, parse, problem, problems, stateless, totals, windowed

from spark_jobs.contracts.config import (
    LateDataStrategy,
    OutputMode,
    TableName,
    TriggerKind,
    WriteMode,
    WriteStrategy,
)
from spark_jobs.contracts.config.load import CONNECTION_PARAMS
from spark_jobs.contracts.credentials import DatabaseConnection

ALLOWED = {
    ("append", "append"),
    ("append", "upsert"),
    ("update", "upsert"),
    ("complete", "overwrite"),
    ("complete", "upsert"),
}
MODES = list(itertools.product(("append", "update", "complete"), ("append", "overwrite", "upsert")))


@pytest.mark.parametrize(("output", "write"), MODES)
def test_output_mode_and_write_mode_fit_by_the_table(output: str, write: str) -> None:
    document = windowed(streamingConfigJson__outputMode=output, load__writeMode=write)
    if write == "upsert":
        document["load"]["keys"] = "country,window_start"
    if (output, write) in ALLOWED:
        assert parse(document).load.write_mode == write
    else:
        wrong = problem(document)
        assert (wrong.path, wrong.found) == ("load.writeMode", f"{write} with outputMode {output}")
        assert wrong.hint


@pytest.mark.parametrize("output", ["update", "complete"])
def test_update_and_complete_need_an_aggregation(output: str) -> None:
    document = stateless(streamingConfigJson__outputMode=output, load__writeMode="upsert", load__keys="id")
    assert problem(document).found == f"{output} without an aggregation"


def test_append_with_an_aggregation_needs_a_watermark() -> None:
    document = windowed(streamingConfigJson__watermark=...)
    assert problem(document).path == "streamingConfigJson.watermark"


def test_append_needs_the_window_on_the_watermarks_column() -> None:
    wrong = problem(windowed(transforms__0__parameters__windowColumn="delivered_at"))
    assert wrong.path == "transforms[0].parameters.windowColumn"
    assert "created_at" in wrong.expected


def test_append_without_a_window_needs_the_watermarks_column_as_group() -> None:
    document = windowed(
        transforms__0__parameters={"groupByColumns": "country", "aggregations": "price:sum"},
    )
    assert problem(document).path == "transforms[0].parameters.windowDuration"
    document["transforms"][0]["parameters"]["groupByColumns"] = "country,created_at"
    assert parse(document)


RENAMES = [("created_at", True), ("`created_at`", True), ("CREATED_AT", True), ("CAST(created_at AS TIMESTAMP)", False)]


@pytest.mark.parametrize(("expression", "carries"), RENAMES)
def test_the_watermark_goes_through_a_plain_rename_only(expression: str, carries: bool) -> None:
    columns = {"happened": expression, "country": "country", "price": "price"}
    select = {"transformType": "select", "parameters": {"columns": columns}}
    document = windowed(transforms__0__parameters__windowColumn="happened")
    document["transforms"].insert(0, select)
    if carries:
        del document["transforms"][1]["parameters"]["windowColumn"]
        config = parse(document)
        assert config.aggregation is not None
        assert config.aggregation.window_column == "happened"
    else:
        assert "through an expression Spark loses the watermark" in problem(document).hint


def test_columns_that_a_select_does_not_pass_on() -> None:
    select = {"transformType": "select", "parameters": {"columns": {"land": "country", "at": "created_at"}}}
    document = windowed(transforms__0__parameters__windowColumn="at")
    document["transforms"].insert(0, select)
    found = {(wrong.path, wrong.found) for wrong in problems(document)}
    passed_on = "which the step before does not pass on"
    assert found == {
        ("transforms[1].parameters.groupByColumns", f'the column "country", {passed_on}'),
        ("transforms[1].parameters.aggregations[1]", f'the column "price", {passed_on}'),
    }


WINDOWS: list[tuple[dict[str, Any], str]] = [
    ({"windowDuration": ...}, "transforms[0].parameters.windowDuration"),
    ({"slideDuration": "11 minutes"}, "transforms[0].parameters.slideDuration"),
    ({"aggregations": "price:min,price:max"}, "transforms[0].parameters.aggregations[0]"),
    ({"aggregations": "country:count"}, "transforms[0].parameters.aggregations[0]"),
    ({"aggregations": "price:sum:window_start"}, "transforms[0].parameters.aggregations[0]"),
    ({"aggregations": "*:count"}, "transforms[0].parameters.aggregations[0]"),
    ({"aggregations": "*:sum:total"}, "transforms[0].parameters.aggregations[0]"),
    ({"aggregations": "price"}, "transforms[0].parameters.aggregations"),
    ({"aggregations": "price:sum,"}, "transforms[0].parameters.aggregations"),
    ({"aggregations": []}, "transforms[0].parameters.aggregations"),
    ({"aggregations": [{"column": "price"}]}, "transforms[0].parameters.aggregations[0].function"),
    ({"groupByColumns": "country,country"}, "transforms[0].parameters.groupByColumns"),
    ({"groupByColumns": "country,"}, "transforms[0].parameters.groupByColumns"),
]


@pytest.mark.parametrize(("changes", "path"), WINDOWS)
def test_aggregations_that_make_no_sense(changes: dict[str, Any], path: str) -> None:
    document = windowed(**{f"transforms__0__parameters__{key}": value for key, value in changes.items()})
    assert problems(document)[0].path == path


def test_ambiguous_results_are_told_how_to_be_named() -> None:
    wrong = problems(windowed(transforms__0__parameters__aggregations="price:min,price:max"))
    assert [item.hint for item in wrong] == ['name it: "price:min:min_price"', 'name it: "price:max:max_price"']


def test_a_sliding_window_and_named_results() -> None:
    aggregations = "*:count:orders, price:min:cheapest ,price:max:dearest"
    parameters = {"slideDuration": "5 minutes", "windowDuration": "INTERVAL 1 hour 30 minutes"}
    document = windowed(transforms__0__parameters__aggregations=aggregations)
    document["transforms"][0]["parameters"] |= parameters
    config = parse(document)
    assert config.aggregation is not None
    assert config.aggregation.window_duration == "1 hour 30 minutes"
    assert config.aggregation.slide_duration == "5 minutes"
    assert [item.output for item in config.aggregation.aggregations] == ["orders", "cheapest", "dearest"]


def test_odd_column_names_as_a_list_of_objects() -> None:
    odd = [{"column": "a:b", "function": "SUM", "output": "x,y"}, "price:avg"]
    document = windowed(transforms__0__parameters__aggregations=odd)
    document["transforms"][0]["parameters"]["groupByColumns"] = ["Straße, Nr.", " x"]
    config = parse(document)
    assert config.aggregation is not None
    assert config.aggregation.aggregations[0].column == "a:b"
    assert config.aggregation.group_by == ("Straße, Nr.", " x")
    assert parse(config.to_json()) == config


def test_upsert_needs_keys_and_others_have_none() -> None:
    assert problem(stateless(load__writeMode="upsert")).path == "load.keys"
    assert problem(stateless(load__keys="id")).path == "load.keys"


GROUP_KEYS = [
    ("country", ["window_start"]),
    ("window_start", ["country"]),
    ("country,window_start,orders", ["orders"]),
    ("country,window_strat", ["window_start"]),
]


@pytest.mark.parametrize("output", ["update", "complete"])
@pytest.mark.parametrize(("keys", "told"), GROUP_KEYS)
def test_the_keys_of_update_and_complete_are_the_groups(keys: str, told: list[str], output: str) -> None:
    document = windowed(streamingConfigJson__outputMode=output, load__writeMode="upsert", load__keys=keys)
    wrong = problems(document)
    assert {item.path for item in wrong} == {"load.keys"}
    assert all(any(name in str(item) for item in wrong) for name in told)


@pytest.mark.parametrize("keys", ["country,window_start", "window_end,country", "window_start,window_end,country"])
def test_either_bound_identifies_a_window(keys: str) -> None:
    assert parse(windowed(streamingConfigJson__outputMode="update", load__writeMode="upsert", load__keys=keys))


def test_keys_follow_a_select_after_the_aggregation() -> None:
    columns = {"land": "country", "total": "price * 2"}
    select = {"transformType": "select", "parameters": {"columns": columns}}
    document = totals(load__keys="land")
    document["transforms"].append(select)
    assert parse(document)
    document["load"]["keys"] = "land,total"
    assert "total, which is no group column" in problem(document).found


def test_a_total_of_everything_cannot_be_upserted() -> None:
    document = totals(transforms__0__parameters__groupByColumns=..., load__keys="price")
    assert "complete with writeMode overwrite" in problem(document).expected
    document["load"] |= {"writeMode": "overwrite"}
    del document["load"]["keys"]
    document["streamingConfigJson"]["outputMode"] = "complete"
    assert parse(document)


KAFKA: list[tuple[Document, str]] = [
    (stateless(extract__topic=...), "extract.topic"),
    (stateless(extract__connectionParams__subscribe="others"), "extract.topic"),
    (stateless(extract__connectionParams__subscribePattern="o.*"), "extract.topic"),
    (stateless(extract__schema=...), "extract.schemaName"),
    (stateless(extract__schemaName="order", schemas={"order": "a INT"}), "extract.schema"),
    (stateless(extract__connectionParams={}), 'extract.connectionParams["kafka.bootstrap.servers"]'),
    (stateless(extract__connectionParams__endingOffsets="latest"), "extract.connectionParams.endingOffsets"),
    (stateless(extract__connectionParams__maxOffsetsPerTrigger="few"), "extract.connectionParams.maxOffsetsPerTrigger"),
    (stateless(extract__connectionParams__startingOffsets={"orders": 1}), "extract.connectionParams"),
    (stateless(extract__path="/data"), "extract.path"),
    (stateless(extract__commitGroup=""), "extract.commitGroup"),
    (stateless(extract__commitGroup=["lag"]), "extract.commitGroup"),
    (stateless(streamingConfigJson__maxFilesPerTrigger=5), "streamingConfigJson.maxFilesPerTrigger"),
    (files(extract__connectionParams__path=...), "extract.connectionParams.path"),
    (files(extract__connectionParams__format=...), "extract.connectionParams.format"),
    (files(extract__path="/elsewhere"), "extract.path"),
    (files(extract__topic="orders"), "extract.topic"),
    (files(extract__commitGroup="lag"), "extract.commitGroup"),
    (files(streamingConfigJson__maxRecordsPerTrigger=5), "streamingConfigJson.maxRecordsPerTrigger"),
    (stateless(extract={"sourceType": "rate", "schema": "a INT"}), "extract.schema"),
]


@pytest.mark.parametrize(("document", "path"), KAFKA)
def test_sources_whose_settings_do_not_fit(document: Document, path: str) -> None:
    assert problem(document).path == path


def test_the_commit_group_is_not_the_group_that_spark_reads_with() -> None:
    document = stateless(extract__commitGroup="lag")
    assert parse(document).extract.commit_group == "lag"
    document["extract"]["connectionParams"]["Kafka.Group.Id"] = "readers"
    assert parse(document).extract.commit_group == "lag"
    document["extract"]["connectionParams"]["Kafka.Group.Id"] = "lag"
    wrong = problem(document)
    assert (wrong.path, wrong.expected) == ("extract.commitGroup", "a group that nobody reads with")
    assert "kafka.group.id" in wrong.found


def test_the_commit_group_in_both_spellings() -> None:
    assert '"commitGroup":"lag"' in parse(stateless(extract__commit_group="lag")).to_json().replace(" ", "")


def test_options_that_differ_only_in_case() -> None:
    document = files(extract__connectionParams__PATH="/data/in")
    assert problem(document).found == "both path and PATH"


def test_options_and_limits_as_spark_gets_them() -> None:
    config = parse(stateless(streamingConfigJson__maxRecordsPerTrigger="1000"))
    assert config.reader_options == {
        "kafka.bootstrap.servers": "localhost:9092",
        "subscribe": "orders",
        "maxOffsetsPerTrigger": "1000",
    }
    document = stateless(extract__topic=..., extract__connectionParams__subscribe="orders")
    document["extract"]["connectionParams"]["MAXOFFSETSPERTRIGGER"] = 10
    document["streamingConfigJson"]["maxRecordsPerTrigger"] = 1000
    config = parse(document)
    assert config.extract.topic == "orders"
    assert config.reader_options["maxOffsetsPerTrigger"] == "10"
    assert "MAXOFFSETSPERTRIGGER" not in config.reader_options
    rate = parse(stateless(extract={"sourceType": "rate-micro-batch", "connectionParams": {"rowsPerBatch": 10}}))
    assert (rate.extract.source_type, rate.reader_options) == ("rate", {"rowsPerBatch": "10"})


LATE: list[tuple[dict[str, Any], str]] = [
    ({"strategy": "dlq"}, "streamingConfigJson.lateDataConfig.dlqTopic"),
    ({"strategy": "drop", "dlqTopic": "late"}, "streamingConfigJson.lateDataConfig.dlqTopic"),
    ({"strategy": "log"}, "streamingConfigJson.lateDataConfig.strategy"),
]


@pytest.mark.parametrize(("late", "path"), LATE)
def test_late_data_that_does_not_fit(late: dict[str, Any], path: str) -> None:
    assert problem(windowed(streamingConfigJson__lateDataConfig=late)).path == path


def test_late_data_needs_a_watermark() -> None:
    document = stateless(streamingConfigJson__lateDataConfig={"strategy": "drop"})
    assert problem(document).found == "lateDataConfig without watermark"


TRIGGERS = [
    ("availablenow", TriggerKind.AVAILABLE_NOW, None),
    ("AvailableNow", TriggerKind.AVAILABLE_NOW, None),
    ("available_now", TriggerKind.AVAILABLE_NOW, None),
    (" ONCE ", TriggerKind.ONCE, None),
    ("continuous", TriggerKind.CONTINUOUS, None),
    ("continuous=1 second", TriggerKind.CONTINUOUS, "1 second"),
    ("processingtime=5 seconds", TriggerKind.PROCESSING_TIME, "5 seconds"),
    ("ProcessingTime = 1  minute", TriggerKind.PROCESSING_TIME, "1 minute"),
    ("processing-time=0 seconds", TriggerKind.PROCESSING_TIME, "0 seconds"),
]


@pytest.mark.parametrize(("text", "kind", "interval"), TRIGGERS)
def test_triggers_in_all_spellings(text: str, kind: TriggerKind, interval: str | None) -> None:
    streaming = parse(stateless(streamingConfigJson__triggerMode=text)).streaming
    assert streaming is not None
    assert (streaming.trigger.kind, streaming.trigger.interval) == (kind, interval)
    assert streaming.trigger.endless is (kind in (TriggerKind.PROCESSING_TIME, TriggerKind.CONTINUOUS))


@pytest.mark.parametrize(
    ("text", "strategy"),
    [
        *[(text, LateDataStrategy.DROP) for text in ("drop", "DROP")],
        *[(text, LateDataStrategy.LOG_AND_DROP) for text in ("logAndDrop", "log_and_drop", "log-and-drop", "logdrop")],
        *[
            (text, LateDataStrategy.SEND_TO_DLQ)
            for text in ("sendToDLQ", "send_to_dlq", "sendtodlq", "dlq", "SendToDLQ")
        ],
        *[(text, LateDataStrategy.SEPARATE_STREAM) for text in ("separateStream", "separate-stream", "separate")],
    ],
)
def test_late_data_strategies_in_all_spellings(text: str, strategy: LateDataStrategy) -> None:
    late = {"strategy": text} | ({"dlqTopic": "late"} if strategy is LateDataStrategy.SEND_TO_DLQ else {})
    streaming = parse(windowed(streamingConfigJson__lateDataConfig=late)).streaming
    assert streaming is not None
    assert streaming.late_data is not None
    assert streaming.late_data.strategy is strategy


def test_other_enumerations_in_other_spellings() -> None:
    document = totals(
        mode="Streaming",
        load__sinkType="Postgres",
        load__writeMode="UPSERT",
        load__writeStrategy="Single",
        extract__sourceType="Kafka",
        streamingConfigJson__outputMode=" Update ",
        transforms__0__transformType="Aggregation",
    )
    config = parse(document)
    assert config.load.write_mode is WriteMode.UPSERT
    assert config.load.write_strategy is WriteStrategy.SINGLE
    assert config.streaming is not None
    assert config.streaming.output_mode is OutputMode.UPDATE
    assert config.load.sink_type == "postgresql"
    assert config.aggregation is not None


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("orders", TableName(None, "orders")),
        ("sales.orders", TableName("sales", "orders")),
        ("Sales.Orders", TableName("Sales", "Orders")),
        ('"my.schema"."a ""b"" c"', TableName("my.schema", 'a "b" c')),
        ("größe.straße", TableName("größe", "straße")),
    ],
)
def test_table_names(text: str, target: TableName) -> None:
    assert parse(stateless(load__table=text)).load.target == target


def test_every_setting_of_the_database_is_one_that_the_connection_takes() -> None:
    settings = {name: "1" for name in CONNECTION_PARAMS if name != "dbname"}
    load = parse(stateless(load__connectionParams=settings)).load
    assert "batchsize" not in load.database_settings
    connection = DatabaseConnection.from_airflow("warehouse", "postgres://").completed(load.database_settings)
    assert connection.port == 1


def test_a_configuration_is_frozen() -> None:
    config = parse(stateless())
    with pytest.raises(ValueError, match="frozen"):
        config.name = "other"  # type: ignore[misc]
