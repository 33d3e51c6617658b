"""Drivers that start ahead of their time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from drivers import Garage
from pipeline_runs import Pipelines


@pytest.fixture
def pipelines(database: Any, tmp_path: Path) -> Pipelines:
    return Pipelines(database, tmp_path)


@pytest.fixture
def garage(pipelines: Pipelines) -> Iterator[Garage]:
    with Garage(pipelines) as garage:
        yield garage
