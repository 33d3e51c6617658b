"""An archive of the Java classes that a short streaming job loads: a driver then starts on half the processor time.

The JVM reads it in place of the jars (dynamic class-data sharing, ``java -XX:ArchiveClassesAtExit``). One that does not
fit the Java or the jars at hand is ignored by the JVM, and never asked for here: its name carries what it was made of.
``make test`` makes it; without it everything runs as well, only later.
"""

from __future__ import annotations

import functools
import hashlib
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from sandbox.errors import SandboxError
from sandbox.jars import pyspark_home
from sandbox.java import QUICK_JAVA, java_home, java_version
from sandbox.places import cache_dir, only_one
from sandbox.spark_cluster import spark_environ

_JOB = Path(__file__).with_name("class_archive_job.py")
_SECONDS = 300


def quick_java() -> str:
    """Return the options of a JVM that lives for a minute, with the archive where it has been made.

    To be split as a shell does it, which ``SPARK_SUBMIT_OPTS``, ``SPARK_DAEMON_JAVA_OPTS`` and Spark's
    ``extraJavaOptions`` all do.
    """
    archive = _place()
    if not archive.exists():
        return QUICK_JAVA
    return _options(f"-XX:SharedArchiveFile={archive}")


def make_class_archive() -> None:
    """Make the archive unless it is there: half a minute, once for each Java and pyspark.

    :raises SandboxError: the job whose classes are kept does not end well.
    """
    archive = _place()
    with only_one(archive.with_suffix(".lock")):
        if not archive.exists():
            print("Making the archive of Spark's classes (the first time only) …", file=sys.stderr, flush=True)
            _make(archive)


def _options(flag: str) -> str:
    # A JVM that cannot use the archive need not say so.
    return f"{QUICK_JAVA} {shlex.quote(flag)} -Xlog:cds*=off"


@functools.cache
def _place() -> Path:
    jars = sorted((jar.name, jar.stat().st_size, int(jar.stat().st_mtime)) for jar in pyspark_home().glob("jars/*.jar"))
    made_of = repr((str(java_home()), java_version(), str(pyspark_home()), jars))
    return cache_dir() / "classes" / f"{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.jsa"


def _make(archive: Path) -> None:
    for older in archive.parent.glob("*.jsa"):
        older.unlink()
    half = archive.with_suffix(".half")
    half.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="etl-classes-") as folder:
        submit = str(pyspark_home() / "bin" / "spark-submit")
        command = [submit, "--master", "local[2]", "--conf", "spark.ui.enabled=false", str(_JOB), folder]
        done = subprocess.run(
            command,
            env=spark_environ({"SPARK_SUBMIT_OPTS": _options(f"-XX:ArchiveClassesAtExit={half}")}),
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    if done.returncode != 0 or not half.exists():
        raise SandboxError(
            "The archive of Spark's classes could not be made",
            found="\n".join((done.stdout + done.stderr).splitlines()[-25:]),
            cure=f"see that {java_home()} runs spark-submit and that {archive.parent} has 200 MB free",
        )
    half.rename(archive)


if __name__ == "__main__":
    make_class_archive()
