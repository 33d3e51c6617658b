"""What a task sends to Airflow's metrics, and that nothing of it can fail the task."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk._shared.observability.metrics.base_stats_logger import NoStatsLogger
from airflow.sdk._shared.observability.metrics.otel_logger import SafeOtelLogger
from airflow.sdk._shared.observability.metrics.validators import ALLOWED_CHARACTERS, stat_name_default_handler
from airflow.sdk.exceptions import AirflowException
from airflow.sdk.observability import stats
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from airflow_etl_provider import metrics
from airflow_etl_provider.hooks.driver_lines import DriverLines
from airflow_etl_provider.operators.streaming_pipeline import StreamingPipelineOperator
from airflow_etl_provider.run_report import RunReport
from spark_jobs.contracts.errors import BreakerOpenError, DatabaseUnreachableError
from spark_jobs.contracts.run_figures import RunFigures, Waited

Sent = tuple[str, str, float, dict[str, str]]
_ROW = re.compile(r"^\| `(etl\.[\w.]+)` \| \w+ \| ([^|]+) \|", re.MULTILINE)


class Receiver(NoStatsLogger):
    """A backend that keeps what it gets."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []

    def incr(self, stat: str, count: int = 1, rate: float = 1, *, tags: Any = None) -> None:
        self.sent.append(("count", stat, count, tags))

    def gauge(self, stat: str, value: float, rate: float = 1, delta: bool = False, *, tags: Any = None) -> None:
        self.sent.append(("gauge", stat, value, tags))

    def timing(self, stat: str, dt: Any, *, tags: Any = None) -> None:
        self.sent.append(("timing", stat, dt.total_seconds(), tags))


class Ledger:
    """What the report asks of a ledger."""

    def __init__(self, figures: RunFigures | Exception) -> None:
        self._figures = figures

    def figures(self, run_id: str) -> RunFigures:
        assert run_id == "r1"
        if isinstance(self._figures, Exception):
            raise self._figures
        return self._figures


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    kept = Receiver()
    stats.initialize(factory=lambda: kept, export_legacy_names=True)
    yield kept
    stats.initialize(factory=NoStatsLogger, export_legacy_names=True)


def report(figures: RunFigures | Exception, heard: DriverLines | None = None) -> RunReport:
    ledger: Any = Ledger(figures)
    return RunReport("stream", "orders", ledger=ledger, run_id="r1", heard=heard or DriverLines())


ORDERS = {"pipeline_id": "orders", "work": "stream"}
BACK = RunFigures(
    "finished",
    0,
    retries={"write": Waited(2, 3.5), "read": Waited(1, 0.25)},
    dead_letters={"read": 7},
    breaker_changes={("postgresql://db:5432/shop", "closed"): 1},
    breakers={"postgresql://db:5432/shop": "closed", "kafka://broker:9092": "half-open"},
)


def test_a_run_that_came_through(receiver: Receiver) -> None:
    with report(BACK).told():
        pass
    shop = {"system": "postgresql_db_5432_shop"}
    assert receiver.sent == [
        ("count", "etl.run.ended", 1, {**ORDERS, "exit": "finished"}),
        ("count", "etl.run.attempts", 4, ORDERS),
        ("count", "etl.run.retries", 2, {**ORDERS, "kind": "write"}),
        ("timing", "etl.run.retry_wait", 3.5, {**ORDERS, "kind": "write"}),
        ("count", "etl.run.retries", 1, {**ORDERS, "kind": "read"}),
        ("timing", "etl.run.retry_wait", 0.25, {**ORDERS, "kind": "read"}),
        ("count", "etl.run.dead_letters", 7, {**ORDERS, "stage": "read"}),
        ("count", "etl.breaker.changes", 1, {"pipeline_id": "orders", **shop, "to": "closed"}),
        ("gauge", "etl.breaker.open", 0, shop),
        ("gauge", "etl.breaker.open", 1, {"system": "kafka_broker_9092"}),
    ]


@pytest.mark.parametrize(
    ("figures", "exit_class"),
    [
        (RunFigures("failed", 15), "transient"),
        (RunFigures("registered"), "never_started"),
        (RunFigures("running"), "lost"),
        (RunFigures("fenced"), "fenced"),
        (RunFigures(), "unexpected"),
        (ValueError("the ledger is not as it was"), "unexpected"),
    ],
)
def test_how_a_run_failed(receiver: Receiver, figures: RunFigures, exit_class: str) -> None:
    with pytest.raises(AirflowException, match="it failed"), report(figures).told():
        raise AirflowException("it failed")
    assert receiver.sent[0] == ("count", "etl.run.ended", 1, {**ORDERS, "exit": exit_class})


def test_without_its_database_the_drivers_lines_count(receiver: Receiver) -> None:
    heard = DriverLines()
    for line in (
        "2026-11-22 08:15:02,055 WARNING etl.retry event=retry kind=write attempt=1 of=3 wait_seconds=0.5 error='x'",
        '{"ts": "2026-11-22T08:15:02.055123Z", "level": "WARNING", "logger": "etl.retry", "event": "retry", '
        '"kind": "write", "attempt": 2, "of": 3, "wait_seconds": 1.25, "error": "x"}',
        # What a row says is no retry, wherever it stands.
        "2026-11-22 08:15:02,055 WARNING etl.batch event=rows_refused sample='"
        "2026-11-22 08:15:02,055 WARNING etl.retry event=retry kind=write attempt=1 of=3 wait_seconds=9 '",
        '{"logger": "etl.retry", "event": "retry", "kind": "elsewhere"}',
        "{ no JSON",
        '{"a":' * 5000,
    ):
        assert list(heard.listening([line])) == [line]
    away = DatabaseUnreachableError("It does not answer")
    with pytest.raises(DatabaseUnreachableError), report(AssertionError("nobody asks it again"), heard).told():
        raise away
    assert receiver.sent == [
        ("count", "etl.run.ended", 1, {**ORDERS, "exit": "database_unreachable"}),
        ("count", "etl.run.attempts", 3, ORDERS),
        ("count", "etl.run.retries", 2, {**ORDERS, "kind": "write"}),
        ("timing", "etl.run.retry_wait", 1.75, {**ORDERS, "kind": "write"}),
    ]


def test_a_wait_without_end_counts_as_none() -> None:
    heard = DriverLines()
    heard.hear("2026-11-22 08:15:02,055 WARNING etl.retry event=retry kind=read attempt=1 of=3 wait_seconds=1e999")
    assert (heard.retries["read"].times, heard.retries["read"].seconds) == (1, 0.0)


def test_an_open_breaker(receiver: Receiver) -> None:
    with pytest.raises(BreakerOpenError), RunReport("stream", "orders").told():
        raise BreakerOpenError("postgresql://db:5432/shop", datetime.now(UTC))
    assert receiver.sent == [
        ("count", "etl.run.ended", 1, {**ORDERS, "exit": "breaker_open"}),
        ("gauge", "etl.breaker.open", 1, {"system": "postgresql_db_5432_shop"}),
    ]


def test_a_task_that_is_killed_asks_nobody(receiver: Receiver) -> None:
    with pytest.raises(SystemExit), report(AssertionError("no time for that")).told():
        raise SystemExit(1)
    assert receiver.sent == [("count", "etl.run.ended", 1, {**ORDERS, "exit": "killed"})]


def test_the_operator_tells_of_a_run_that_never_began(
    receiver: Receiver, context: Any, pipeline: dict[str, Any], connections: Callable[..., None]
) -> None:
    connections(spark_default="spark://local", warehouse="postgres://loader@127.0.0.1:1/shop")
    with pytest.raises(AirflowException):
        StreamingPipelineOperator(task_id="run", pipeline=pipeline).execute(context)
    assert receiver.sent == [("count", "etl.run.ended", 1, {**ORDERS, "exit": "database_unreachable"})]


def test_a_broken_backend_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Any:
        raise RuntimeError("no such collector")

    stats.initialize(factory=broken, export_legacy_names=True)
    try:
        with report(BACK).told():
            pass
        with pytest.raises(AirflowException, match="it failed"), report(RunFigures("failed", 999)).told():
            raise AirflowException("it failed")
    finally:
        stats.initialize(factory=NoStatsLogger, export_legacy_names=True)
    assert "Metric etl.run.ended was not sent: RuntimeError: no such collector" in caplog.text


def test_opentelemetry_gets_the_same() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    stats.initialize(factory=lambda: SafeOtelLogger(provider), export_legacy_names=True)
    try:
        with report(BACK).told():
            pass
        found: Any = reader.get_metrics_data()
    finally:
        stats.initialize(factory=NoStatsLogger, export_legacy_names=True)
        provider.shutdown()
    points = {
        (metric.name, tuple(sorted(point.attributes.items()))): point.sum
        if metric.name.endswith("wait")
        else point.value
        for metric in found.resource_metrics[0].scope_metrics[0].metrics
        for point in metric.data.data_points
    }
    write = tuple(sorted({**ORDERS, "kind": "write"}.items()))
    assert points["airflow.etl.run.retries", write] == 2
    assert points["airflow.etl.run.retry_wait", write] == 3500
    assert points["airflow.etl.breaker.open", (("system", "kafka_broker_9092"),)] == 1


def test_tags_fit_into_a_statsd_line(receiver: Receiver) -> None:
    metrics.count(metrics.BREAKER_CHANGES, 1, pipeline_id="x" * 200, system="kafka://ä,=" * 30, to="half-open")
    [(_, name, _, tags)] = receiver.sent
    line = ",".join((name, *(f"{key}={value}" for key, value in tags.items())))
    assert stat_name_default_handler(line, allowed_chars={*ALLOWED_CHARACTERS, ",", "="}) == line


def test_each_name_is_documented_with_its_tags(repository: Path) -> None:
    pages = [
        (repository / "docs" / page).read_text() for page in ("reference/operator.md", "guides/retry-and-breaker.md")
    ]
    reference, guide = ({name: tuple(re.findall(r"`(\w+)`", tags)) for name, tags in _ROW.findall(p)} for p in pages)
    assert reference == metrics.TAGS
    assert guide
    assert guide.items() <= metrics.TAGS.items()
