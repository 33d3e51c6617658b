from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import Pipelines

from spark_jobs.contracts.tracker.migrate import migrate


@pytest.fixture
def pipelines(database: Any, spark: Any, tmp_path: Path) -> Pipelines:
    """Pipelines run in this process, in the session's Spark."""
    return Pipelines(database, tmp_path, spark)


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    """The folder where source files arrive."""
    folder = tmp_path / "in box"
    folder.mkdir()
    return folder


@pytest.fixture
def role(database: Any) -> Iterator[str]:
    """A role without a login that may write the ledger and create tables, and nothing else."""
    name = f"Writers {uuid.uuid4().hex[:8]}"
    with database.connect(autocommit=True) as conn:
        migrate(conn, "etl")
        conn.execute(f'CREATE ROLE "{name}"')
        conn.execute(f'GRANT USAGE, CREATE ON SCHEMA public, etl TO "{name}"')
        conn.execute(f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA etl TO "{name}"')
        conn.execute(f'GRANT USAGE ON ALL SEQUENCES IN SCHEMA etl TO "{name}"')
    yield name
    with database.connect(autocommit=True) as conn:
        conn.execute(f'DROP OWNED BY "{name}"')
        conn.execute(f'DROP ROLE "{name}"')
