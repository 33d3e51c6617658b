"""Real servers for all suites, and the rule that a required suite is never skipped in CI."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from sandbox.postgres import PostgresServer


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
def retail_dir() -> Path:
    """The real shop's daily files beside the repository."""
    folder = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "online-retail"
    if not folder.is_dir():
        pytest.skip(f"no data in {folder}")
    return folder


def pytest_report_header() -> list[str]:
    """Name every real server that the suites run against."""
    from importlib.metadata import version

    from sandbox.java import java_version
    from sandbox.postgres import postgres_version

    return [
        f"servers: PostgreSQL {postgres_version()}, Java {java_version()}, "
        f"Spark {version('pyspark')}, Airflow {version('apache-airflow')}"
    ]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """With ``CI=true`` every suite is required: a skip fails the run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if os.environ.get("CI") == "true" and skipped and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter.write_line("")
        reporter.write_line(f"required suite: {len(skipped)} skipped with CI=true, which fails the run", red=True)
