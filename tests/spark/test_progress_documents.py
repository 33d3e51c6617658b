"""Spark's JSON of progress, whatever is in it, becomes a row that PostgreSQL takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spark_jobs.contracts.credentials import DatabaseConnection
from spark_jobs.contracts.errors import DataError, EtlError
from spark_jobs.contracts.redaction import hide
from spark_jobs.contracts.tracker.connect import Connection, connect
from spark_jobs.contracts.tracker.migrate import migrate
from spark_jobs.contracts.tracker.progress import newest_progress, write_progress
from spark_jobs.runtime.spark_progress import Whose, completed, error_of, is_micro_batch, range_of
from spark_jobs.sources.base import BatchSize

WHOSE = Whose("orders", "q", "r1", 1)

_texts = st.text(alphabet=st.characters(codec=None, categories=None), max_size=40)
_numbers = st.integers(-(2**70), 2**70) | st.floats() | st.none()
_json = st.recursive(
    _texts | _numbers | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=8,
)
_documents = st.fixed_dictionaries(
    {"batchId": st.integers(0, 2**62), "runId": st.uuids().map(str), "durationMs": st.just({"addBatch": 1})},
    optional={
        "timestamp": _texts | st.just("+12345-01-01T00:00:00.000Z"),
        "batchDuration": _numbers,
        "numInputRows": _numbers,
        "inputRowsPerSecond": _numbers,
        "processedRowsPerSecond": _numbers,
        "eventTime": st.dictionaries(st.sampled_from(["min", "max", "watermark"]), _texts),
        "stateOperators": st.lists(
            st.fixed_dictionaries({"numRowsTotal": st.integers(0, 2**62), "memoryUsedBytes": st.integers(0, 2**62)}),
            max_size=3,
        ),
        "sources": st.lists(st.dictionaries(_texts | st.sampled_from(["description", "endOffset"]), _json), max_size=2),
    },
)


@pytest.fixture
def ledger(database: Any) -> Iterator[Connection]:
    with connect(DatabaseConnection.from_airflow("warehouse", database.airflow_uri), application_name="test") as conn:
        migrate(conn, "etl")
        yield conn


def _row(news: dict[str, Any], **backlog: int) -> Any:
    return completed(news, WHOSE, 1, lambda _end, _latest: BatchSize(**backlog))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(news=_documents)
def test_whatever_spark_tells_can_be_kept(ledger: Connection, news: dict[str, Any]) -> None:
    ledger.execute("TRUNCATE etl.query_progress")
    write_progress(ledger, "etl", [_row(news)])
    kept = newest_progress(ledger, "etl", "orders")
    assert kept is not None
    assert (kept.batch_id, kept.spark_run_id) == (news["batchId"], news["runId"])


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(what=_texts, found=_texts, number=st.uuids())
def test_whatever_an_error_says_can_be_kept(ledger: Connection, what: str, found: str, number: Any) -> None:
    ledger.execute("TRUNCATE etl.query_progress")
    failed = _row({"batchId": 1, "runId": str(number)}).model_copy(
        update={"outcome": "failed", "phase": "writing", "error": error_of(DataError(what, found=found))}
    )
    write_progress(ledger, "etl", [failed])
    kept = newest_progress(ledger, "etl", "orders")
    assert kept is not None
    assert kept.spark_run_id == str(number)


def test_times_that_are_none_or_beyond_what_python_knows() -> None:
    def watermark(text: str) -> datetime | None:
        found: datetime | None = _row({"batchId": 0, "runId": "s", "eventTime": {"watermark": text}}).watermark
        return found

    assert watermark("1970-01-01T00:00:00.000Z") is None
    assert watermark("2026-01-01T00:09:00.000Z") == datetime(2026, 1, 1, 0, 9, tzinfo=UTC)
    # A session in any zone can read it back.
    for beyond in ("+12345-01-01T00:00:00.000Z", "9999-12-31T23:59:59.999Z"):
        assert watermark(beyond) == datetime(9999, 12, 30, tzinfo=UTC)


def test_a_topic_named_like_a_secret_keeps_its_offsets_and_an_address_loses_its_password() -> None:
    source = {
        "description": "KafkaV2[Subscribe[password-resets]] at kafka://me:hunter22@broker",
        "endOffset": {"password-resets": {"0": 12}},
        "latestOffset": {"password-resets": {"0": 15}},
    }
    row = _row({"batchId": 0, "runId": "s", "sources": [source]}, rows=3, data_bytes=77)
    assert row.sources[0]["endOffset"] == source["endOffset"]
    assert "hunter22" not in row.sources[0]["description"]
    assert (row.backlog_rows, row.backlog_bytes) == (3, 77)


def test_no_row_grows_without_bound() -> None:
    offsets = {"orders": {str(number): number for number in range(10_000)}}
    [kept] = _row({"batchId": 0, "runId": "s", "sources": [{"endOffset": offsets, "numInputRows": 3}]}).sources
    assert kept == {"numInputRows": 3, "offsetsCut": True}
    assert range_of(None, offsets) == {"offsetsCut": True}
    error = error_of(EtlError("x" * 9_000, found="y" * 9_000))
    assert len(json.dumps(error)) < 10_000


def test_a_connections_secret_is_not_in_an_error() -> None:
    hide("t0ps3cret")
    assert "t0ps3cret" not in json.dumps(error_of(ValueError("refused: t0ps3cret")))
    assert error_of(ValueError("refused"))["type"] == "ValueError"


def test_a_trigger_that_found_nothing_is_no_micro_batch() -> None:
    assert is_micro_batch({"durationMs": {"addBatch": 3}})
    assert not is_micro_batch({"durationMs": {"latestOffset": 3, "triggerExecution": 3}})
    assert not is_micro_batch({})
