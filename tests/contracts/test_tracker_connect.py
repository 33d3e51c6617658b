"""PostgreSQL's errors as the project's."""

from __future__ import annotations

import socket
import threading
from contextlib import closing

import adbc_driver_manager
import adbc_driver_postgresql.dbapi as adbc
import psycopg
import pytest
from psycopg.errors import lookup

from spark_jobs.contracts.credentials import DatabaseConnection
from spark_jobs.contracts.errors import (
    ContendedError,
    DatabaseUnreachableError,
    DataError,
    EtlError,
    LoginRefusedError,
    TargetMismatchError,
    TransientError,
)
from spark_jobs.contracts.tracker.connect import classify, classify_state, connect, short_transaction


def connection_to(there, **changes):
    return DatabaseConnection.from_airflow("warehouse", there.airflow_uri).model_copy(update=changes)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"user": "nobody"}, "password authentication failed"),
        ({"password": None}, "no password supplied"),
        ({"database": "no such database"}, "does not exist"),
    ],
)
def test_a_refused_login(database, changes, found):
    with pytest.raises(LoginRefusedError, match=found) as caught:
        connect(connection_to(database, **changes), application_name="t")
    assert not caught.value.retryable
    assert "warehouse" in str(caught.value)
    assert database.server.password not in str(caught.value)


@pytest.mark.parametrize("changes", [{"port": 1}, {"host": "no-such-host.invalid"}, {"host": "/no/such/dir"}])
def test_an_unreachable_server(database, changes):
    with pytest.raises(DatabaseUnreachableError) as caught:
        connect(connection_to(database, **changes), application_name="t")
    assert type(caught.value) is DatabaseUnreachableError
    assert caught.value.retryable


def test_a_server_that_accepts_and_says_nothing(database):
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(DatabaseUnreachableError):
            connect(connection_to(database, port=port), application_name="t", connect_timeout=2)


def test_a_server_that_hangs_up(database):
    def hang_up():
        caller, _ = rude.accept()
        caller.close()

    with closing(socket.create_server(("127.0.0.1", 0))) as rude:
        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(DatabaseUnreachableError):
            connect(connection_to(database, port=rude.getsockname()[1]), application_name="t")
        thread.join()


STATES = {
    TransientError: ["53100", "53300", "57P01", "57P03", "25006"],
    # Nothing that would let a circuit breaker leave the server alone.
    ContendedError: ["40001", "40P01", "57014", "55P03", "25P03"],
    DatabaseUnreachableError: ["08000", "08006", "08P01"],
    LoginRefusedError: ["28P01", "28000", "3D000"],
    TargetMismatchError: ["42501", "42P01", "42703", "3F000", "42P10", "42804"],
    DataError: ["22003", "22P02", "23505", "23514"],
    EtlError: ["42601", "XX000", "0A000", "26000"],
}


@pytest.mark.parametrize(("expected", "state"), [(kind, state) for kind, states in STATES.items() for state in states])
def test_classes_of_states(expected, state):
    error = classify(lookup(state)("the text"), "Counting sheep")
    assert type(error) is expected
    assert state in str(error)
    assert str(error).startswith("Counting sheep")
    assert error.retryable == (expected in (TransientError, ContendedError, DatabaseUnreachableError))
    assert error.blames_system == (expected in (TransientError, DatabaseUnreachableError))


def fetch(cursor, statement):
    cursor.execute(statement)
    return cursor.fetchall()


def test_errors_of_adbc_are_classified_alike(database):
    connection = connection_to(database)
    with adbc.connect(connection.uri(), autocommit=True) as conn, conn.cursor() as cursor:
        for statement, expected in (("SELECT * FROM nowhere", TargetMismatchError), ("SELECT 1/0", DataError)):
            with pytest.raises(adbc_driver_manager.Error) as caught:
                fetch(cursor, statement)
            assert type(classify(caught.value)) is expected
    with pytest.raises(adbc_driver_manager.Error) as caught:
        adbc.connect(connection_to(database, user="nobody").uri()).close()
    assert type(classify(caught.value)) is LoginRefusedError


def test_a_session_that_was_ended(database):
    with connect(connection_to(database), application_name="t") as conn:
        with database.connect(autocommit=True) as admin:
            admin.execute("SELECT pg_terminate_backend(%s)", (conn.info.backend_pid,))
        with pytest.raises(psycopg.OperationalError) as caught:
            conn.execute("SELECT 1")
        assert type(classify(caught.value)) in (TransientError, DatabaseUnreachableError)


def test_a_privilege_that_is_missing(database):
    with connect(connection_to(database), application_name="t") as conn:
        conn.execute("CREATE SCHEMA etl; CREATE TABLE etl.pipeline (id int); CREATE ROLE etl_poor")
        try:
            with pytest.raises(TargetMismatchError, match="grant the privilege"), short_transaction(conn, "Reading"):
                conn.execute("SET LOCAL ROLE etl_poor; SELECT * FROM etl.pipeline")
        finally:
            conn.execute("DROP ROLE etl_poor")


def test_an_error_of_the_project_stays_as_it_is():
    error = EtlError("x")
    assert classify(error) is error


def test_a_tasks_refused_login_is_told_from_a_lost_connection():
    refused = 'connection to server at "10.0.0.1" failed: FATAL:  no pg_hba.conf entry for host "10.0.0.7", user "etl"'
    assert type(classify_state("", "Writing part 0", refused)) is LoginRefusedError
    assert type(classify_state("", "Writing part 0", "server closed the connection")) is DatabaseUnreachableError
    full = "FATAL:  sorry, too many clients already"
    assert type(classify_state("", "Writing part 0", full)) is TransientError
