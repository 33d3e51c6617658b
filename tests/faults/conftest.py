"""Drivers that start ahead of their time, on a JVM whose classes are loaded already."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from drivers import Garage
from pipeline_runs import Pipelines, file_pipeline, write_lines


@pytest.fixture(scope="session")
def class_archive(postgres_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of the classes that a run loads: a driver then starts in half the time."""
    folder = tmp_path_factory.mktemp("classes")
    archive = folder / "spark.jsa"
    postgres_server.create_database("classes")
    database = type("Database", (), {"airflow_uri": postgres_server.airflow_uri("classes")})()
    pipelines = Pipelines(database, folder)
    write_lines(folder / "in" / "0.json", {"id": 1})
    config = file_pipeline("classes", folder / "in", pipelines.checkpoints, schema="id INT")
    with Garage(pipelines, java=f"-XX:ArchiveClassesAtExit={archive}") as garage:
        driver = garage.driver()
        assert driver.run(config, stop_jvm=True).exit_code == 0
    postgres_server.drop_database("classes")
    assert archive.exists()
    return archive


@pytest.fixture
def pipelines(database: Any, tmp_path: Path) -> Pipelines:
    return Pipelines(database, tmp_path)


@pytest.fixture
def garage(pipelines: Pipelines, class_archive: Path) -> Iterator[Garage]:
    with Garage(pipelines, java=f"-XX:SharedArchiveFile={class_archive}") as garage:
        yield garage
