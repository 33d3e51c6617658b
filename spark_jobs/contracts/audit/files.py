"""A checkpoint's files, wherever they are: on this machine, or in a storage that fsspec reaches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from spark_jobs.contracts.audit.logs import TornError
from spark_jobs.contracts.errors import CheckpointUnreadableError, EtlError
from spark_jobs.contracts.redaction import mask


class CheckpointFiles(Protocol):
    """Reads, and never writes. Every method raises :class:`CheckpointUnreadableError` where the storage fails."""

    location: str

    def names(self, folder: str = "") -> list[str]:
        """Return the names in a folder; none where there is no such folder."""

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open a file for reading.

        :raises FileNotFoundError: it is not there.
        """

    def exists(self) -> bool:
        """Tell whether the folder itself is there."""

    def place_exists(self) -> bool:
        """Tell whether the folder that it lies in is there, so that its absence says something."""


class OpenFiles(Protocol):
    """Finds the storage of a location."""

    def __call__(self, location: str) -> CheckpointFiles:
        """Return the location's files.

        :raises CheckpointUnreadableError: its scheme cannot be read here.
        """


class LocalFiles:
    """Files of this machine."""

    def __init__(self, location: str, root: Path) -> None:
        self.location = location
        self._root = root

    def names(self, folder: str = "") -> list[str]:
        """Return the names in a folder."""
        with _readable(self.location, folder):
            try:
                return [path.name for path in (self._root / folder).iterdir()]
            except FileNotFoundError:
                return []

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Open a file for reading."""
        with _readable(self.location, name), (self._root / name).open("rb") as stream:
            yield stream

    def exists(self) -> bool:
        """Tell whether the folder is there."""
        with _readable(self.location, ""):
            return self._root.is_dir()

    def place_exists(self) -> bool:
        """Tell whether its parent is there."""
        with _readable(self.location, ""):
            return self._root.parent.is_dir()


class StoredFiles:
    """Files of a file system of fsspec's.

    :param storage: an ``fsspec.AbstractFileSystem``. :param root: the folder's path there.
    """

    def __init__(self, location: str, storage: Any, root: str) -> None:
        self.location = location
        self._storage = storage
        self._root = root.rstrip("/")

    def names(self, folder: str = "") -> list[str]:
        """Return the names in a folder."""
        path = self._path(folder)
        with _readable(self.location, folder):
            # What was listed before may have changed since.
            self._storage.invalidate_cache()
            try:
                found = self._storage.ls(path, detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
        # Object stores may list the folder itself.
        return [name for one in found if (name := str(one).rstrip("/").rpartition("/")[2]) and not _same(one, path)]

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Open a file for reading."""
        with _readable(self.location, name), self._storage.open(self._path(name), "rb") as stream:
            yield stream

    def exists(self) -> bool:
        """Tell whether anything is there: an object store has no empty folders."""
        with _readable(self.location, ""):
            self._storage.invalidate_cache()
            return bool(self._storage.exists(self._root))

    def place_exists(self) -> bool:
        """Tell whether its bucket or container can be listed; of a folder in there nobody can tell."""
        bucket = self._root.lstrip("/").partition("/")[0]
        with _readable(self.location, ""):
            try:
                self._storage.ls(bucket, detail=False)
            except FileNotFoundError:
                return False
        return True

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root


def local_files(location: str) -> LocalFiles | None:
    """Return the files of a location without a scheme, or of ``file:``; None for another scheme.

    :raises CheckpointUnreadableError: the path is relative: to the driver's folder, which nobody knows here.
    """
    scheme = scheme_of(location)
    if scheme not in ("", "file"):
        return None
    # As Hadoop takes it: a percent sign is one, and what follows `//` is a host.
    path = location[len("file:") :] if scheme else location
    root = Path(f"/{path[2:].partition('/')[2]}" if scheme and path.startswith("//") else path)
    if not root.is_absolute():
        raise CheckpointUnreadableError(
            f"{location} cannot be read from here",
            found="a relative path, which means a folder below the one that the driver was started in",
            expected="an absolute path, or a URI such as s3a://bucket/path",
            cure="say where it is: `checkpoint`, or --checkpoint on the command line",
        )
    return LocalFiles(location, root)


def scheme_of(location: str) -> str:
    """Return the scheme in small letters; empty without one."""
    scheme, colon, rest = location.partition(":")
    return scheme.lower() if colon and scheme.isascii() and scheme.isalnum() and rest.startswith("/") else ""


@contextmanager
def _readable(location: str, name: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, EtlError, TornError):
        # Not there, which says something; or what the caller makes of the file's content.
        raise
    except Exception as error:  # each storage has errors of its own
        raise CheckpointUnreadableError(
            f"{location} cannot be read from here",
            found=f"{name or 'its folder'}: {mask(f'{type(error).__name__}: {error}')}",
            expected="a folder that this process may list and read",
            cure="check the permissions of the user who runs the audit, the connection to the storage and the network",
        ) from error


def _same(listed: Any, path: str) -> bool:
    return str(listed).strip("/") == path.strip("/")
