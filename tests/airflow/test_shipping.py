from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from airflow_etl_provider.shipping import application_file, package_archive
from spark_jobs.contracts.errors import ConfigError


def test_the_same_package_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    assert package_archive(first).read_bytes() == package_archive(second).read_bytes()


def test_it_is_made_once(tmp_path: Path) -> None:
    made = package_archive(tmp_path)
    before = made.stat()
    assert package_archive(tmp_path) == made
    assert made.stat().st_ino == before.st_ino
    assert [path.name for path in tmp_path.iterdir()] == [made.name]


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    assert package_archive(tmp_path).stat().st_mode & 0o777 == 0o600


def test_the_package_runs_from_the_archive(tmp_path: Path) -> None:
    archive = package_archive(tmp_path)
    code = "import spark_jobs.contracts.errors as e; from spark_jobs.contracts.tracker.migrate import packaged; "
    code += "print(e.__file__, len(packaged()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(archive)},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith(str(archive))
    assert int(done.stdout.split()[-1]) > 0
    assert not [name for name in zipfile.ZipFile(archive).namelist() if "__pycache__" in name]


def test_a_directory_that_others_can_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"etl-pipeline-{os.getuid()}").mkdir()
    (tmp_path / f"etl-pipeline-{os.getuid()}").chmod(0o777)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ConfigError, match="not safe"):
        package_archive()


def test_the_application_lies_in_the_package() -> None:
    assert application_file().name == "run_pipeline.py"
    assert application_file().parent.name == "spark_jobs"
