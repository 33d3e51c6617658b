from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import Pipelines


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
