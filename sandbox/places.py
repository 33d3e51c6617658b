"""Where the sandbox keeps things: pinned downloads in ``.cache``, the state of a demo in ``.sandbox``."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def cache_dir() -> Path:
    """Return the folder of downloads that outlive ``.venv`` (``ETL_SANDBOX_CACHE`` moves it)."""
    folder = Path(os.environ.get("ETL_SANDBOX_CACHE") or REPOSITORY / ".cache")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def state_dir() -> Path:
    """Return the folder of the demo's state.

    ``.sandbox`` in the repository; a folder of the user's own under the temporary directory when that path is too
    long for the unix sockets that Airflow opens (about 100 bytes).
    """
    folder = REPOSITORY / ".sandbox"
    if len(os.fsencode(folder)) > 70:
        folder = Path(tempfile.gettempdir()) / f"etl-sandbox-{os.getuid()}"
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    return folder


@contextmanager
def only_one(lock_file: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes for as long as the block runs."""
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    with lock_file.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def everyone_may_enter(path: Path) -> bool:
    """Tell whether a user who owns nothing here can reach ``path`` through all its parents."""
    return all(parent.stat().st_mode & 0o001 for parent in [path, *path.parents] if parent.is_dir())
