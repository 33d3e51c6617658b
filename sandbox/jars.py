"""Jars that pyspark does not bring: pinned in ``ivy.xml``, fetched once by the Ivy inside pyspark, cached for good."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args

from sandbox.errors import SandboxError
from sandbox.java import java
from sandbox.java_trust import trust_settings
from sandbox.places import cache_dir, only_one

Group = Literal["spark-kafka", "broker", "jdbc", "spark-s3"]
_PINS = Path(__file__).with_name("ivy.xml")


def jars(group: Group) -> list[Path]:
    """Return the jars of a group, fetching them when this is the first time. Safe when several processes ask at once.

    :raises SandboxError: they cannot be fetched.
    """
    if group not in get_args(Group):
        raise SandboxError("No such group of jars", found=group, expected=", ".join(get_args(Group)))
    folder = _folder(group)
    if not folder.is_dir():
        with only_one(cache_dir() / "jars.lock"):
            if not folder.is_dir():
                _fetch(group, folder)
    return sorted(folder.glob("*.jar"))


def is_cached(group: Group) -> bool:
    """Tell whether the jars are here already."""
    return _folder(group).is_dir()


def classpath(group: Group) -> str:
    """Return the group as the ``-cp`` argument of ``java``."""
    return ":".join(str(jar) for jar in jars(group))


def pinned(artifact: str) -> str:
    """Return the version that ``ivy.xml`` pins for an artifact."""
    found = re.search(rf'name="{re.escape(artifact)}" rev="([^"]+)"', _PINS.read_text())
    return found.group(1) if found else "unknown"


def pyspark_home() -> Path:
    """Return the folder of the installed pyspark, which is a SPARK_HOME."""
    found = importlib.util.find_spec("pyspark")
    if found is None or found.origin is None:
        raise SandboxError("pyspark is not installed", cure="run `make setup`")
    return Path(found.origin).parent


def _folder(group: Group) -> Path:
    digest = hashlib.sha256(_PINS.read_bytes()).hexdigest()[:12]
    return cache_dir() / "jars" / digest / group


def _fetch(group: Group, folder: Path) -> None:
    half = folder.with_name(f"{group}.new")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    ivy = next((pyspark_home() / "jars").glob("ivy-*.jar"))
    place = ["-cache", str(cache_dir() / "ivy"), "-retrieve", f"{half}/[artifact]-[revision].[ext]"]
    what = ["-ivy", str(_PINS), "-confs", group, "-types", "jar", "bundle"]
    print(f"Fetching the jars of {group} (the first time only) …", file=sys.stderr, flush=True)
    command = [str(java()), *trust_settings(), "-jar", str(ivy), *what, *place]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=half)
    if done.returncode != 0 or not any(half.glob("*.jar")):
        raise SandboxError(
            f"The jars of {group} could not be fetched",
            found="\n".join((done.stdout + done.stderr).splitlines()[-25:]),
            cure="see that Maven Central is to be reached; behind a proxy set JAVA_TOOL_OPTIONS=-Dhttps.proxyHost=…",
        )
    half.rename(folder)
