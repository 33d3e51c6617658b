from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import Pipelines
from retail import Shop

from sandbox.kafka import KafkaBroker

SHARED = Path(__file__).resolve().parent.parent.parent.parent / "shared"


@pytest.fixture
def pipelines(database: Any, spark: Any, tmp_path: Path) -> Pipelines:
    """Pipelines run in this process, in the session's Spark."""
    return Pipelines(database, tmp_path, spark)


@pytest.fixture(scope="session")
def reference_pipelines() -> Path:
    """The pipeline files that must work as they stand."""
    folder = SHARED / "pipelines"
    if not folder.is_dir():
        pytest.skip(f"no pipelines in {folder}")
    return folder


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    """The folder where source files arrive."""
    folder = tmp_path / "in box"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def shop(retail_dir: Path) -> Shop:
    """Every file of the shop."""
    return Shop(tuple(sorted(retail_dir.glob("*.csv"))))


@pytest.fixture
def new_topic(kafka: KafkaBroker) -> Iterator[Callable[..., str]]:
    """Makes topics, which are deleted after the test."""
    made = []

    def create(name: str | None = None, partitions: int = 2) -> str:
        topic = kafka.create_topic(name or f"test-{uuid.uuid4().hex[:8]}", partitions=partitions)
        made.append(topic)
        return topic

    yield create
    for topic in made:
        kafka.delete_topic(topic)


@pytest.fixture(scope="session")
def retail_topic(kafka: KafkaBroker, shop: Shop) -> str:
    """Every line of the shop as a JSON record; to be read only."""
    topic = kafka.create_topic("retail", partitions=2)
    assert kafka.produce(topic, shop.json_lines()) == shop.count()
    return topic
