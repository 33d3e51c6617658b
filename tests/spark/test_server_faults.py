"""What the server refuses, whatever the rows are: an error of its own each, no dead letters, nothing written.

What passes by itself is retryable, and the same run again finishes.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import Pipelines, file_pipeline, write_lines

from sandbox.postgres import PostgresServer
from sandbox.postgres_binaries import binaries, unprivileged_user
from sandbox.processes import run_as
from spark_jobs.contracts.errors import EtlError
from spark_jobs.contracts.exit_codes import ExitCode
from spark_jobs.runtime.run import Ended
from spark_jobs.runtime.stopping import Stop

STRATEGIES = ["single", "staged", "two_phase"]


@dataclass(frozen=True)
class User:
    """A login without any privilege of a superuser, who owns the test's database."""

    database: Any
    name: str
    password: str

    @property
    def airflow_uri(self) -> str:
        return f"postgres://{self.name}:{self.password}@127.0.0.1:{self.database.server.port}/{self.database.name}"

    def connect(self) -> Any:
        """Look into the database as the superuser."""
        return self.database.connect()

    def as_superuser(self, statement: str) -> None:
        options = {"autocommit": True, "options": "-c default_transaction_read_only=off"}
        with self.database.server.connect(self.database.name, **options) as conn:
            conn.execute(statement.format(database=f'"{self.database.name}"', user=self.name).encode())


@pytest.fixture
def user(database: Any) -> Iterator[User]:
    login = User(database, f"user_{secrets.token_hex(4)}", secrets.token_hex(8))
    login.as_superuser(f"CREATE ROLE {{user}} LOGIN PASSWORD '{login.password}'")
    login.as_superuser("ALTER DATABASE {database} OWNER TO {user}")
    yield login
    login.as_superuser("REASSIGN OWNED BY {user} TO CURRENT_USER")
    login.as_superuser("DROP OWNED BY {user}")
    login.as_superuser("DROP ROLE {user}")


@pytest.fixture
def runs(user: User, spark: Any, tmp_path: Path) -> Pipelines:
    """Pipelines that write as ``user``."""
    return Pipelines(user, tmp_path, spark)


class DuringABatch(Stop):
    """Runs one statement as the superuser when a micro-batch begins, another one when it has ended."""

    def __init__(self, user: User, fault: str, cure: str) -> None:
        super().__init__()
        self._user, self._fault, self._cure = user, fault, cure

    def enter_batch(self) -> None:
        super().enter_batch()
        self._user.as_superuser(self._fault)

    def leave_batch(self) -> None:
        self._user.as_superuser(self._cure)
        super().leave_batch()


LIMITS = {
    "role": ("ALTER ROLE {user} CONNECTION LIMIT 0", "ALTER ROLE {user} CONNECTION LIMIT -1"),
    "database": ("ALTER DATABASE {database} CONNECTION LIMIT 0", "ALTER DATABASE {database} CONNECTION LIMIT -1"),
}
READ_ONLY = (
    "ALTER DATABASE {database} SET default_transaction_read_only = on",
    "ALTER DATABASE {database} RESET default_transaction_read_only",
)


@pytest.mark.parametrize("limit", list(LIMITS))
def test_a_run_that_gets_no_connection_is_retryable(runs: Pipelines, user: User, inbox: Path, limit: str) -> None:
    fault, cure = LIMITS[limit]
    config = _config(runs, inbox)
    user.as_superuser(fault)
    try:
        with pytest.raises(EtlError, match="too many connections for") as refused:
            runs.run(config)
    finally:
        user.as_superuser(cure)
    assert refused.value.retryable
    assert "limit of connections" in str(refused.value)
    runs.finish(config)
    assert runs.one("SELECT count(*) FROM result") == 100


@pytest.mark.parametrize("reserved", ["0", "2"])
def test_a_server_without_a_free_connection_is_retryable(
    database: Any, spark: Any, tmp_path: Path, reserved: str
) -> None:
    settings = {"max_connections": "4", "superuser_reserved_connections": reserved, "max_wal_senders": "0"}
    with PostgresServer(settings=settings) as small, ExitStack() as busy:
        small.create_database("orders")
        user = User(type(database)(small, "orders"), "writer", secrets.token_hex(8))
        user.as_superuser(f"CREATE ROLE writer LOGIN PASSWORD '{user.password}'")
        runs = Pipelines(user, tmp_path, spark)
        config = _config(runs, tmp_path / "in")
        for _ in range(4 - int(reserved)):
            busy.enter_context(small.connect())
        with pytest.raises(EtlError, match=r"too many clients|connection slots are reserved") as refused:
            runs.run(config)
    assert refused.value.retryable
    assert "limit of connections" in str(refused.value)


@pytest.mark.parametrize("limit", list(LIMITS))
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_batch_that_gets_no_connection_is_retryable(
    runs: Pipelines, user: User, inbox: Path, limit: str, strategy: str
) -> None:
    config = _config(runs, inbox, writeStrategy=strategy)
    ended = runs.run(config, stop=DuringABatch(user, *LIMITS[limit]))
    error = _retryable(runs, ended)
    assert "too many connections for" in error
    assert "limit of connections" in error
    _finishes(runs, config)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_server_that_becomes_read_only_is_retryable(runs: Pipelines, user: User, inbox: Path, strategy: str) -> None:
    config = _config(runs, inbox, writeStrategy=strategy)
    ended = runs.run(config, stop=DuringABatch(user, *READ_ONLY))
    error = _retryable(runs, ended)
    assert "25006" in error
    assert "read-only" in error
    assert "primary" in error
    _finishes(runs, config)


def test_a_hot_standby_says_that_it_is_one(
    spark: Any, postgres_server: PostgresServer, database: Any, tmp_path: Path
) -> None:
    inbox = tmp_path / "in"
    config = _config(Pipelines(database, tmp_path, spark), inbox)
    Pipelines(database, tmp_path, spark).finish(config)
    _write(inbox, 1)
    with _standby(postgres_server) as standby:
        replica = Pipelines(type(database)(standby, database.name), tmp_path, spark)
        assert replica.one("SELECT pg_is_in_recovery()")
        with pytest.raises(EtlError, match="read-only transaction") as refused:
            replica.run(config)
    assert refused.value.retryable
    assert refused.value.exit_code is ExitCode.TRANSIENT
    assert "primary" in str(refused.value)
    Pipelines(database, tmp_path, spark).finish(config)
    assert Pipelines(database, tmp_path).one("SELECT count(*) FROM result") == 200


@dataclass(frozen=True)
class FullDisk:
    """:param placing: what a table is created with, to lie on it. :param make_room: ends the fault."""

    placing: str
    make_room: Callable[[], None]


@pytest.fixture
def full_disk(user: User, postgres_server: PostgresServer) -> Iterator[FullDisk]:
    """A file system of 1 MB where the caller may mount one; else no file of the server can pass 16 MiB and half a page.

    A write that ends in the middle of a page is a full disk to PostgreSQL 15 and older; newer ones say so only of the
    real thing.
    """
    yield from (_small_file_system(user) if os.getuid() == 0 else _small_files(postgres_server))


def _small_file_system(user: User) -> Iterator[FullDisk]:
    folder = Path(tempfile.mkdtemp(prefix="etl-small-disk-"))
    folder.chmod(0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=755", "none", folder], check=True)
    try:
        space, name = folder / "space", f"small_{user.name}"
        space.mkdir()
        shutil.chown(space, unprivileged_user())
        user.as_superuser(f"CREATE TABLESPACE {name} LOCATION '{space}'")
        yield FullDisk(f"TABLESPACE {name}", lambda: user.as_superuser("ALTER TABLE result SET TABLESPACE pg_default"))
        user.as_superuser("DROP TABLE IF EXISTS result")
        user.as_superuser(f"DROP TABLESPACE {name}")
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
        folder.rmdir()


def _small_files(server: PostgresServer) -> Iterator[FullDisk]:
    with server.connect() as conn:
        row = conn.execute("SELECT pg_read_file('postmaster.pid')").fetchone()
    assert row is not None
    postmaster = row[0].split()[0]

    def limit(size: str) -> None:
        # Sessions inherit it from now on; a segment of the write-ahead log just fits.
        run_as(unprivileged_user(), ["prlimit", f"--fsize={size}:", "--pid", postmaster])

    limit(str(16 * 2**20 + 4096))
    try:
        yield FullDisk("", lambda: limit("unlimited"))
    finally:
        limit("unlimited")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_full_disk_is_retryable(runs: Pipelines, user: User, inbox: Path, strategy: str, full_disk: FullDisk) -> None:
    config = _config(runs, inbox, writeStrategy=strategy)
    _write(inbox, 0, width=1000, count=30_000)
    user.as_superuser(f"CREATE TABLE result (id BIGINT, name TEXT) {full_disk.placing}")
    user.as_superuser("ALTER TABLE result OWNER TO {user}")
    error = _retryable(runs, runs.run(config))
    assert "53100" in error
    assert "disk is full" in error
    full_disk.make_room()
    _finishes(runs, config, 30_000)


@pytest.mark.parametrize("strategy", ["staged", "single", "two_phase"])
def test_staging_tables_need_a_privilege(runs: Pipelines, user: User, inbox: Path, strategy: str) -> None:
    config = _config(runs, inbox, writeStrategy=strategy)
    runs.finish(config)
    for schema, what in (("etl", "TABLES"), ("etl", "SEQUENCES"), ("public", "TABLES")):
        user.as_superuser(f"GRANT ALL ON ALL {what} IN SCHEMA {schema} TO {{user}}")
    user.as_superuser("ALTER SCHEMA etl OWNER TO CURRENT_USER")
    user.as_superuser("GRANT USAGE ON SCHEMA etl TO {user}")
    _write(inbox, 1)
    ended = runs.run(config)
    if strategy != "staged":
        assert ended.error is None, str(ended.error)
        return
    assert ended.exit_code is ExitCode.TARGET_MISMATCH
    assert ended.error is not None
    assert not ended.error.retryable
    assert "permission denied for schema etl" in str(ended.error)
    assert "grant the privilege" in str(ended.error)
    assert runs.one("SELECT count(*) FROM result") == 100
    assert runs.one("SELECT count(*) FROM etl.dead_letter") == 0
    user.as_superuser("GRANT CREATE ON SCHEMA etl TO {user}")
    _finishes(runs, config, 200)


def test_the_ledgers_schema_needs_a_privilege(runs: Pipelines, user: User, inbox: Path) -> None:
    user.as_superuser("ALTER DATABASE {database} OWNER TO CURRENT_USER")
    with pytest.raises(EtlError, match="permission denied for database") as refused:
        runs.run(_config(runs, inbox))
    assert not refused.value.retryable
    assert refused.value.exit_code is ExitCode.TARGET_MISMATCH
    assert "grant the privilege" in str(refused.value)
    assert runs.one("SELECT to_regnamespace('etl') IS NULL")


@contextmanager
def _standby(primary: PostgresServer) -> Iterator[PostgresServer]:
    """Run a hot standby of the server: a copy of its data, with its login."""
    folder = Path(tempfile.mkdtemp(prefix="etl-standby-"))
    folder.chmod(0o755)
    if (owner := unprivileged_user()) is not None:
        shutil.chown(folder, owner)
    source = primary.uri()
    run_as(
        owner, [binaries() / "pg_basebackup", "-D", folder / "data", "-R", "-X", "stream", "-c", "fast", "-d", source]
    )
    (folder / "login").write_text(primary.password)
    try:
        with PostgresServer(folder) as standby:
            yield standby
    finally:
        shutil.rmtree(folder)


def _config(runs: Pipelines, inbox: Path, **load: Any) -> dict[str, Any]:
    _write(inbox, 0)
    return file_pipeline("faults", inbox, runs.checkpoints, schema="id BIGINT, name STRING", load=load)


def _write(inbox: Path, number: int, *, width: int = 10, count: int = 100) -> None:
    write_lines(inbox / f"{number}.json", *({"id": i, "name": "x" * width} for i in range(count)))


def _retryable(runs: Pipelines, ended: Ended) -> str:
    """Return the error's text: a passing fault, and nothing was written."""
    assert ended.error is not None
    assert ended.error.retryable, str(ended.error)
    assert ended.exit_code in (ExitCode.TRANSIENT, ExitCode.DATABASE_UNREACHABLE)
    assert runs.one("SELECT count(*) FROM result") == 0
    assert runs.one("SELECT count(*) FROM etl.batch_tracker") == 0
    assert runs.one("SELECT count(*) FROM etl.dead_letter") == 0
    assert runs.one("SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()") == 0
    return str(ended.error)


def _finishes(runs: Pipelines, config: dict[str, Any], rows: int = 100) -> None:
    runs.finish(config)
    assert runs.one("SELECT count(*) FROM result") == rows
    assert runs.one("SELECT count(*) FROM etl.dead_letter") == 0
