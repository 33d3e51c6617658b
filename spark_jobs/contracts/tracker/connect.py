"""The one place where psycopg's and ADBC's errors become the project's, and where the tracker's sessions begin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg import IsolationLevel, errors, sql
from psycopg.pq import TransactionStatus
from psycopg.rows import RowFactory, tuple_row

from spark_jobs.contracts.credentials import DatabaseConnection
from spark_jobs.contracts.errors import (
    ConfigError,
    ContendedError,
    DatabaseUnreachableError,
    DataError,
    EtlError,
    LoginRefusedError,
    TargetMismatchError,
    TransientError,
)
from spark_jobs.contracts.tracker.statements import DRIVER_IDLE_TIMEOUT, begin_settings, quote_identifier

Connection = psycopg.Connection[Any]

_TRANSIENT_CLASSES: Final = ("40", "53", "57")
_TRANSIENT_STATES: Final = ("25006",)
_CONTENDED: Final = ("40001", "40P01", "55P03", "57014", "25P03")
_LOGIN_STATES: Final = ("28000", "28P01", "3D000")
_SCHEMA_STATES: Final = ("42501", "42P01", "3F000", "42703", "42883", "42P10", "42804", "42846")
# libpq keeps no SQLSTATE of a refused login, so the words are all there is.
_REFUSED_WORDS: Final = ("password", "authentication", "does not exist", "pg_hba", "role ", "permission denied")
_STATE_CURES: Final = {
    "42501": "grant the privilege that the message names to the connection's user",
    "42P01": "create the table that the message names, or correct its name; the ledger's own: `etl-pipeline migrate`",
    "3F000": "create the schema that the message names, or correct its name; the ledger's own: `etl-pipeline migrate`",
    "42P10": "the target's unique index on load.keys is gone or not valid: create it again",
    "42804": "a column has another type than the query: change the table, or the select before the load",
    "42846": "a column has another type than the query: change the table, or the select before the load",
    "25006": "the server takes no writes (a standby, or default_transaction_read_only): connect to the primary",
    "57014": "somebody cancelled the statement (pg_cancel_backend): run the pipeline again",
    "53100": "the server's disk is full: make room there, and run the pipeline again",
    "53300": "a limit of connections (role, database, max_connections) is reached: close some or raise it, run again",
    "53400": "raise the server's limit that the message names, or make the micro-batches smaller; run again",
}
_TOO_MANY_WORDS: Final = ("too many connections", "too many clients", "remaining connection slots")
KEEPALIVE: Final = {
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "300000",
}
"""So that a network that drops packets without a word is noticed: an answer to COMMIT would be awaited for hours."""


def connect(connection: DatabaseConnection, *, application_name: str, connect_timeout: int = 10) -> Connection:
    """Open a session that works through a pooler in transaction mode.

    :param application_name: at most 63 bytes; see :func:`~spark_jobs.contracts.tracker.statements.application_name`.
    :param connect_timeout: seconds; the connection's own setting wins.
    :returns: an autocommit connection whose ``transaction()`` is READ COMMITTED; nothing is prepared on the server.
    :raises DatabaseUnreachableError: if the server does not answer.
    :raises LoginRefusedError: if it refuses the user, the password or the database.
    """
    conninfo = session_conninfo(connection, application_name, connect_timeout=connect_timeout)
    try:
        conn: Connection = psycopg.Connection.connect(conninfo, autocommit=True, prepare_threshold=None)
    except psycopg.OperationalError as error:
        raise classify(error, f"Connecting to {connection}") from error
    # The fence is read again after waiting for its lock: a transaction-wide snapshot would see the past.
    conn.isolation_level = IsolationLevel.READ_COMMITTED
    return conn


def session_conninfo(connection: DatabaseConnection, application_name: str, *, connect_timeout: int = 10) -> str:
    """Return what :func:`connect` opens a session by, for another kind of connection; it has the password in it.

    :raises ConfigError: host or database is missing.
    """
    extra = {"connect_timeout": str(connect_timeout), **KEEPALIVE}
    return connection.conninfo(application_name=application_name, defaults=extra)


def classify(error: BaseException, what: str = "A statement in PostgreSQL") -> EtlError:
    """Return the project's error for one of psycopg or ADBC, by its SQLSTATE; an :class:`EtlError` stays as it is.

    :param what: what was being done; the message begins with it.
    """
    if isinstance(error, EtlError):
        return error
    state = getattr(error, "sqlstate", None)
    found = _text_of(error)
    if state is None:
        return _without_state(error, what, found)
    return _by_state(state, what, f"{found} (SQLSTATE {state})")


def classify_state(state: str, what: str, found: str) -> EtlError:
    """Return the project's error for a SQLSTATE that came without its exception.

    Empty: the connection could not be opened, or was lost; the server's words tell which.
    """
    return _by_state(state, what, f"{found} (SQLSTATE {state})") if state else _without_answer(what, found)


@contextmanager
def classified(what: str) -> Iterator[None]:
    """Turn errors of psycopg that leave the block into the project's."""
    try:
        yield
    except psycopg.Error as error:
        raise classify(error, what) from error


@contextmanager
def short_transaction(
    conn: Connection, what: str, *, lock_timeout_ms: int = 5_000, name: str | None = None
) -> Iterator[None]:
    """Run the block in a transaction of its own, which is committed when the block ends; bounds every lock wait.

    :param name: the transaction's application name, by which a newer run finds the sessions of a driver that it takes
        over from; the connection's own unless given.
    :raises EtlError: if the connection is in a transaction already (the block would not be committed), or for any
        error of PostgreSQL, classified.
    """
    if conn.info.transaction_status == TransactionStatus.INTRANS:
        raise EtlError(f"{what} needs a connection without an open transaction", cure="commit or roll back before")
    with classified(what), conn.transaction():
        # A client frozen in here holds the fence as well: the server gives up on it.
        timeout = f"{max(lock_timeout_ms, 1)}ms"
        name = name or conn.info.get_parameters().get("application_name", "etl:control")
        raw(conn, begin_settings(), name, timeout, DRIVER_IDLE_TIMEOUT)
        yield


def set_local_role(conn: Connection, role: str | None) -> None:
    """Act as ``role`` until the open transaction ends; as the connection's own user where there is none.

    :raises ConfigError: there is no such role, or the user may not act as it.
    """
    if not role:
        return
    try:
        conn.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(role)))
    except (errors.InvalidParameterValue, errors.InsufficientPrivilege) as error:
        raise ConfigError(
            f"load.role {role!r} cannot be used",
            found=str(error),
            expected=f"a role of the server that {conn.info.user!r} is a member of, spelled as in pg_roles",
            cure=f"GRANT the role to {conn.info.user!r}, or correct load.role",
        ) from error


def raw(conn: Connection, statement: str, *parameters: str | None) -> list[tuple[Any, ...]]:
    """Run a statement of :mod:`~spark_jobs.contracts.tracker.statements` and return its rows, if it has any."""
    with psycopg.RawCursor(conn) as cursor:
        cursor.execute(statement.encode(), parameters)
        return cursor.fetchall() if cursor.description else []


def query(
    conn: Connection, schema: str, statement: str, parameters: Any = None, *, row_factory: RowFactory[Any] = tuple_row
) -> psycopg.Cursor[Any]:
    """Run a statement written with ``%(name)s`` values and ``{schema}`` for the tracker's schema."""
    # Not sql.Identifier: a percent sign in the name would be taken for a placeholder.
    ident = quote_identifier(schema).replace("%", "%%")
    composed = sql.SQL(statement).format(schema=sql.SQL(ident))
    return conn.cursor(row_factory=row_factory).execute(composed, () if parameters is None else parameters)


def _by_state(state: str, what: str, found: str) -> EtlError:
    error = EtlError(f"{what} failed", found=found)
    if state in _LOGIN_STATES:
        error = _login_refused(what, found)
    elif state.startswith("08"):
        error = _unreachable(what, found)
    elif state[:2] in _TRANSIENT_CLASSES or state in (*_CONTENDED, *_TRANSIENT_STATES):
        cure = _STATE_CURES.get(state, "run the pipeline again")
        kind = ContendedError if state in _CONTENDED else TransientError
        error = kind(f"{what} met a passing fault", found=found, cure=cure)
    elif state in _SCHEMA_STATES:
        error = TargetMismatchError(f"{what} was refused", found=found, cure=_STATE_CURES.get(state, ""))
    elif state[:2] in ("22", "23"):
        error = DataError(f"{what} was refused because of its data", found=found)
    return error


def _without_state(error: BaseException, what: str, found: str) -> EtlError:
    if isinstance(error, psycopg.OperationalError) or type(error).__name__ == "OperationalError":
        return _without_answer(what, found)
    return EtlError(f"{what} failed", found=f"{type(error).__name__}: {found}")


def _without_answer(what: str, found: str) -> EtlError:
    refused = "no password supplied" in found or (
        "FATAL" in found and any(word in found for word in _REFUSED_WORDS) and not _too_many(found)
    )
    return _login_refused(what, found) if refused else _unreachable(what, found)


def _login_refused(what: str, found: str) -> LoginRefusedError:
    return LoginRefusedError(
        f"{what} was refused",
        found=found,
        expected="a database that exists and a user who may use it",
        cure="correct the connection's user, password or database, or create them",
    )


def _too_many(found: str) -> bool:
    return "FATAL" in found and any(word in found for word in _TOO_MANY_WORDS)


def _unreachable(what: str, found: str) -> EtlError:
    if _too_many(found):
        return _by_state("53300", what, found)
    return DatabaseUnreachableError(
        f"{what} failed: the server does not answer, or the connection was lost",
        found=found,
        expected="a PostgreSQL server that accepts connections",
        cure="check the connection's host and port, that the server runs and that the network lets you through",
    )


def _text_of(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
