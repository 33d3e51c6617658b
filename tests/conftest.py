"""Real servers for all suites, and the rule that a required suite is never skipped in CI."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from _pytest.runner import runtestprotocol
from hypothesis import settings

from sandbox.class_archive import quick_java
from sandbox.jars import jars
from sandbox.kafka import KafkaBroker
from sandbox.postgres import PostgresServer
from sandbox.spark_cluster import SparkCluster, spark_environ
from spark_jobs.contracts import redaction

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


# How long an example takes is the machine's affair.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@dataclass(frozen=True)
class Database:
    """A database of the test's own on the real server."""

    server: PostgresServer
    name: str

    @property
    def uri(self) -> str:
        """libpq's URI, password included."""
        return self.server.uri(self.name)

    @property
    def airflow_uri(self) -> str:
        """The value of an ``AIRFLOW_CONN_*`` variable."""
        return self.server.airflow_uri(self.name)

    def connect(self, **options: Any) -> psycopg.Connection[tuple[Any, ...]]:
        return self.server.connect(self.name, **options)


@pytest.fixture(autouse=True)
def secrets_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the secrets that a test hid: hypothesis makes passwords of words that other tests want to see."""
    hidden = redaction._Hidden()
    hidden._known, hidden._secrets = set(redaction._hidden._known), redaction._hidden._secrets
    monkeypatch.setattr(redaction, "_hidden", hidden)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One PostgreSQL server for the whole session; ``POSTGRES=embedded|system`` chooses which."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[Database]:
    """A fresh, empty database, dropped after the test with whatever still uses it."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    postgres_server.create_database(name)
    yield Database(postgres_server, name)
    postgres_server.drop_database(name)


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """A local Spark session with two cores and the Kafka connector; times are UTC."""
    from pyspark.sql import SparkSession

    from spark_jobs.runtime.session import DEFAULTS

    os.environ.update({name: spark_environ()[name] for name in ("JAVA_HOME", "SPARK_LOCAL_IP", "PYSPARK_PYTHON")})
    builder = SparkSession.builder.master("local[2]").appName("tests")
    for name, value in {**DEFAULTS, **_SPARK_SETTINGS}.items():
        builder = builder.config(name, value)
    session = builder.config("spark.jars", ",".join(jar.as_uri() for jar in jars("spark-kafka"))).getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    # It says goodbye when pytest has closed its streams.
    logging.getLogger("py4j").setLevel(logging.WARNING)
    yield session
    session.stop()


_SPARK_SETTINGS = {
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.memory": "2g",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.shuffle.partitions": "2",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
}


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaBroker]:
    """A real broker for the whole session; a topic exists only after ``create_topic``."""
    with KafkaBroker() as broker:
        yield broker


@pytest.fixture(scope="session")
def spark_cluster() -> Iterator[SparkCluster]:
    """A real standalone cluster: a master and two workers, all processes of their own."""
    with SparkCluster(workers=2) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def retail_dir() -> Path:
    """The real shop's daily files beside the repository."""
    folder = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "online-retail"
    if not folder.is_dir():
        pytest.skip(f"no data in {folder}")
    return folder


def pytest_configure() -> None:
    """Start all drivers, those of an Airflow among them, on a Java for short lives."""
    os.environ.setdefault("SPARK_SUBMIT_OPTS", quick_java())
    os.environ.setdefault("SPARK_DAEMON_JAVA_OPTS", quick_java())


def pytest_report_header() -> list[str]:
    """Name every real server that the suites run against."""
    from importlib.metadata import version

    from sandbox.jars import pinned
    from sandbox.java import java_version
    from sandbox.postgres_binaries import postgres_version

    return [
        f"servers: PostgreSQL {postgres_version()}, Java {java_version()}, Spark {version('pyspark')}, "
        f"Kafka {pinned('kafka_2.13')}, Airflow {version('apache-airflow')}"
    ]


def _suite(item: pytest.Item) -> str:
    return item.path.relative_to(Path(__file__).parent).parts[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep each suite together, in the order in which pytest-randomly has shuffled their first tests.

    The one with an Airflow of its own comes first: a worker that has nothing left to do takes the last tests of another
    one, and would start a second Airflow.
    """
    suites = sorted(dict.fromkeys(map(_suite, items)), key=lambda name: name != "system")
    order = {name: number for number, name in enumerate(suites)}
    items.sort(key=lambda item: order[_suite(item)])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Stop a suite's servers with its last test: an idle Airflow or cluster would slow down all that follows."""
    if nextitem is None or _suite(nextitem) == _suite(item):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    runtestprotocol(item, nextitem=None)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """With ``CI=true`` every suite is required: one that is skipped, or has no test, fails the run."""
    is_worker = hasattr(session.config, "workerinput")
    if os.environ.get("CI") != "true" or exitstatus != pytest.ExitCode.OK or is_worker:
        return
    if session.config.option.collectonly:
        # `make lint` asks only whether all can be collected.
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    problems = [f"{len(reporter.stats['skipped'])} tests were skipped"] if reporter.stats.get("skipped") else []
    if session.config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        present = {report.nodeid.split("/")[1] for report in reporter.stats.get("passed", [])}
        problems += [f"the suite {name} has no test" for name in sorted(_REQUIRED_SUITES - present)]
    if problems:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter.write_line("")
        reporter.write_line(f"required suites (CI=true): {'; '.join(problems)}", red=True)


_REQUIRED_SUITES = {
    "airflow",
    "chaos",
    "contracts",
    "faults",
    "integration",
    "protocol",
    "sandbox",
    "sinks",
    "spark",
    "system",
}
