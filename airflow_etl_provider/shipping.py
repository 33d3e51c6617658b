"""The installed ``spark_jobs`` as the archive and the application file that spark-submit ships to a cluster."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import zipfile
from pathlib import Path

import spark_jobs
from spark_jobs.contracts.errors import ConfigError

_EPOCH = (1980, 1, 1, 0, 0, 0)
_PACKAGE = Path(spark_jobs.__file__).parent


def application_file() -> Path:
    """Return the path of ``run_pipeline.py``, the application that spark-submit starts."""
    return _PACKAGE / "run_pipeline.py"


def package_archive(directory: Path | None = None) -> Path:
    """Return a zip of the installed ``spark_jobs`` for ``--py-files``; made once for each state of the package.

    The same files give the same bytes on every machine. The archive is written beside its final name, with mode 0600,
    and moved there, so that two tasks may ask at the same time.

    :param directory: where archives are kept; by default a private directory of this user in the temporary directory.
    :raises ConfigError: the default directory belongs to somebody else or is open to others.
    """
    files = _package_files()
    target = (directory or _private_directory()) / f"spark_jobs-{spark_jobs.__version__}-{_state_of(files)}.zip"
    if not target.exists():
        handle, unfinished = tempfile.mkstemp(dir=target.parent, suffix=".zip")
        with os.fdopen(handle, "wb") as out:
            _write(out, files)
        Path(unfinished).replace(target)
    return target


def _package_files() -> list[Path]:
    return sorted(
        path
        for path in _PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    )


def _state_of(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        state = path.stat()
        digest.update(f"{path}\0{state.st_mtime_ns}\0{state.st_size}\0".encode())
    return digest.hexdigest()[:16]


def _write(out: object, files: list[Path]) -> None:
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[call-overload]
        for path in files:
            name = (Path(_PACKAGE.name) / path.relative_to(_PACKAGE)).as_posix()
            entry = zipfile.ZipInfo(name, date_time=_EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, path.read_bytes())


def _private_directory() -> Path:
    """Return a directory that nobody else can write to: what lies there is run as this user's code."""
    directory = Path(tempfile.gettempdir()) / f"etl-pipeline-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigError(
            "The directory for the Spark archive is not safe",
            found=f"{directory}, mode {stat.filemode(found.st_mode)}, owner {found.st_uid}",
            expected=f"a directory with mode drwx------ that belongs to user {os.getuid()}",
            cure="remove it, or set TMPDIR for the Airflow worker",
        )
    return directory
