"""A real PostgreSQL server of the sandbox's own.

PostgreSQL refuses to run as root: where the caller is root it runs as an unprivileged user.
"""

from __future__ import annotations

import secrets
import shutil
import signal
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg import sql

from sandbox.places import everyone_may_enter
from sandbox.ports import free_port
from sandbox.postgres_binaries import binaries, unprivileged_user
from sandbox.processes import Command, ServerProcess, run_as

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
        self._runs_as = unprivileged_user()
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


def _reachable(folder: Path) -> bool:
    present = folder
    while not present.exists():
        present = present.parent
    return everyone_may_enter(present)
