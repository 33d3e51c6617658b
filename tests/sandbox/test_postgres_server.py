"""The sandbox's own PostgreSQL: what the other suites rely on."""

from __future__ import annotations

import tempfile
from pathlib import Path

import psycopg
import pytest

from sandbox.postgres import PostgresServer


def test_database_takes_two_phase_commits(database):
    with database.connect(autocommit=True) as connection:
        assert connection.execute("SHOW max_prepared_transactions").fetchone() == ("64",)
        assert connection.execute("SELECT current_database()").fetchone() == (database.name,)


def test_a_database_with_a_prepared_transaction_can_be_dropped(postgres_server):
    postgres_server.create_database("orphaned")
    with postgres_server.connect("orphaned", autocommit=True) as connection:
        connection.execute("CREATE TABLE t (a int)")
        connection.execute("BEGIN")
        connection.execute("INSERT INTO t VALUES (1)")
        connection.execute("PREPARE TRANSACTION 'orphan'")
    postgres_server.drop_database("orphaned")
    with postgres_server.connect() as connection:
        assert connection.execute("SELECT count(*) FROM pg_database WHERE datname = 'orphaned'").fetchone() == (0,)


@pytest.mark.parametrize("choice", ["system", "embedded"])
def test_committed_rows_survive_a_crash_and_a_restart(tmp_path_factory, monkeypatch, choice):
    monkeypatch.setenv("POSTGRES", choice)
    with PostgresServer() as server:
        with server.connect() as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        server.kill()
        with pytest.raises(psycopg.OperationalError):
            server.connect(connect_timeout=2)
        server.start()
        server.restart()
        with server.connect() as connection:
            assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
        folder = server.log.parent
    assert not folder.exists()


def test_data_is_kept_in_a_given_folder_with_a_space():
    with tempfile.TemporaryDirectory() as home:
        # Everyone may enter: as root the server runs as somebody else.
        Path(home).chmod(0o755)
        folder = Path(home) / "with a space"
        with PostgresServer(folder) as server, server.connect() as connection:
            connection.execute("CREATE TABLE kept ()")
        with PostgresServer(folder) as server, server.connect() as connection:
            assert connection.execute("SELECT count(*) FROM pg_tables WHERE tablename = 'kept'").fetchone() == (1,)
