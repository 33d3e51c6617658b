"""Java and jars as a machine without either gets them."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from sandbox import java
from sandbox.errors import SandboxError
from sandbox.jars import jars


def test_the_embedded_java_takes_sparks_argument(monkeypatch):
    monkeypatch.setenv("JAVA", "embedded")
    command = [java.java(), "--add-modules=jdk.incubator.vector", "-version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "embedded" in java.java_version()


def test_an_unknown_choice_is_named(monkeypatch):
    monkeypatch.setenv("JAVA", "openjdk")
    with pytest.raises(SandboxError, match=r"openjdk.*auto, system or embedded"):
        java.java_home()


def test_several_callers_get_the_same_complete_jars(tmp_path, monkeypatch):
    monkeypatch.setenv("JAVA", "embedded")
    monkeypatch.setenv("ETL_SANDBOX_CACHE", str(tmp_path / "with a space"))
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: jars("jdbc"), range(3)))
    assert found[0] == found[1] == found[2]
    assert [jar.stat().st_size > 500_000 for jar in found[0]] == [True]
    assert not list(tmp_path.rglob("*.new"))
