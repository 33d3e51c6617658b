"""A pooler in transaction mode before a sandbox's PostgreSQL, where pgbouncer is installed."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from sandbox.errors import SandboxError
from sandbox.ports import free_port, is_listening
from sandbox.postgres import PostgresServer
from sandbox.postgres_binaries import unprivileged_user
from sandbox.processes import ServerProcess


def is_installed() -> bool:
    """Tell whether there is a pgbouncer to be used."""
    return _program() is not None


class PgBouncer:
    """pgbouncer in transaction mode; a context manager.

    Few server sessions for many clients, and a session is somebody else's after each transaction.

    :param pool_size: server sessions for each database.
    """

    def __init__(self, server: PostgresServer, *, pool_size: int = 4) -> None:
        self.port = free_port()
        self._server = server
        self._pool_size = pool_size
        self._folder = Path(tempfile.mkdtemp(prefix="etl-pgbouncer-"))
        self._process: ServerProcess | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def uri(self, database: str) -> str:
        """Return a libpq URI that goes through the pooler."""
        return f"postgresql://{self._server.user}:{self._server.password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> Self:
        """Start the pooler and wait until it takes connections.

        :raises SandboxError: it is not installed, or does not start.
        """
        program = _program()
        if program is None:
            raise SandboxError("pgbouncer is not installed", expected="a program of that name on PATH")
        settings = self._write_settings()
        user = unprivileged_user()
        if user is not None:
            for path in (self._folder, *self._folder.iterdir()):
                shutil.chown(path, user)
        log = self._folder / "server.log"
        self._process = ServerProcess("pgbouncer", [program, settings], log=log, user=user, cwd=self._folder)
        self._process.wait_until(lambda: is_listening(self.port))
        return self

    def stop(self) -> None:
        """Stop the pooler."""
        if self._process is not None:
            self._process.stop()
            self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write_settings(self) -> Path:
        users = self._folder / "users.txt"
        users.touch(mode=0o600)
        users.write_text(f'"{self._server.user}" "{self._server.password}"\n')
        settings = self._folder / "pgbouncer.ini"
        settings.write_text(
            f"[databases]\n* = host=127.0.0.1 port={self._server.port}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = scram-sha-256\nauth_file = {users}\n"
            f"pool_mode = transaction\ndefault_pool_size = {self._pool_size}\n"
            "ignore_startup_parameters = extra_float_digits\n"
        )
        return settings


def _program() -> str | None:
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
