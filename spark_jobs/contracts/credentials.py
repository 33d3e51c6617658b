"""Connections found outside Airflow, and handed to libpq without showing a secret."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote, urlencode

from pydantic import Secret, SecretStr

from spark_jobs.contracts.airflow_connection import AirflowConnection, Unpicklable
from spark_jobs.contracts.errors import ConfigError, ConnectionMissingError
from spark_jobs.contracts.redaction import hide, hide_in

__all__ = ["AirflowConnection", "DatabaseConnection", "resolve", "resolve_database"]

HadoopLookup = Callable[[str], str | None]

_CREDENTIAL_ID: Final = re.compile(r"[\w\-][\w\-.]*")
# fmt: off
# The keys of Airflow's PostgresHook that are not libpq's.
_NOT_FOR_LIBPQ: Final = frozenset((
    "iam", "redshift", "redshift-serverless", "cursor", "cluster-identifier", "workgroup-name", "aws_conn_id",
    "sqlalchemy_scheme", "sqlalchemy_query", "azure_conn_id",
))
_LIBPQ_OPTIONS: Final = frozenset((
    "hostaddr", "passfile", "connect_timeout", "client_encoding", "options", "application_name",
    "fallback_application_name",
    "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout",
    "gssencmode", "sslmode", "sslcompression", "sslcert", "sslkey", "sslpassword", "sslrootcert", "sslcrl",
    "sslcrldir", "sslsni", "requirepeer", "ssl_min_protocol_version", "ssl_max_protocol_version",
    "krbsrvname", "gsslib", "gssdelegation", "service", "target_session_attrs", "load_balance_hosts",
    "channel_binding", "require_auth", "sslcertmode", "sslnegotiation",
))
# fmt: on
_NAMES: Final = {
    "host": "host",
    "hostname": "host",
    "port": "port",
    "database": "database",
    "dbname": "database",
    "user": "user",
    "username": "user",
    "login": "user",
}


class DatabaseConnection(Unpicklable):
    """How to reach one PostgreSQL database. Its ``str`` and ``repr`` show where, never with which secret."""

    conn_id: str
    host: str | None = None
    port: int | None = None
    database: str | None = None
    user: str | None = None
    password: SecretStr | None = None
    parameters: Secret[dict[str, str]] = Secret({})
    """Further options of libpq, such as ``sslmode``; secret, because ``sslpassword`` may be among them."""

    def model_post_init(self, _context: object) -> None:
        """Keep its secrets out of the logs."""
        hide(self.password.get_secret_value() if self.password else None)
        hide_in(self.parameters.get_secret_value())

    def __str__(self) -> str:
        where = f"{self.host or 'the default host'}{f' port {self.port}' if self.port else ''}"
        return f"database {self.database!r} on {where} as {self.user!r} (connection {self.conn_id!r})"

    @classmethod
    def from_airflow(cls, conn_id: str, value: str) -> Self:
        """Read Airflow's URI or JSON form of a PostgreSQL connection.

        :raises ConfigError: if it is neither, is of another type, or has extras that neither Airflow nor libpq knows.
        """
        return cls.of(AirflowConnection.parse(conn_id, value))

    @classmethod
    def of(cls, connection: AirflowConnection) -> Self:
        """Read a connection that is parsed already; raises as :meth:`from_airflow` does."""
        if connection.conn_type not in ("postgres", "postgresql"):
            raise ConfigError(
                f"The connection {connection.conn_id!r} is not a PostgreSQL connection",
                found=f"type {connection.conn_type!r}",
                expected="type 'postgres'",
                cure="name another credentialId, or correct the connection's type",
            )
        extra = {key: item for key, item in connection.extra.get_secret_value().items() if key not in _NOT_FOR_LIBPQ}
        plain = cls(
            conn_id=connection.conn_id,
            host=connection.host,
            port=connection.port,
            database=connection.database,
            user=connection.login,
            password=connection.password,
        )
        return plain.completed({key: _option(item) for key, item in extra.items()}, "its extras")

    def completed(self, parameters: Mapping[str, str], origin: str = "connectionParams") -> Self:
        """Return the connection with ``parameters`` in the places that it leaves open.

        :param parameters: ``host``, ``port``, ``database``, ``user`` and options of libpq.
        :raises ConfigError: if one contradicts the connection, is a password or is not known.
        """
        filled: dict[str, Any] = {}
        options = dict(self.parameters.get_secret_value())
        for key, value in parameters.items():
            name = _NAMES.get(key)
            if name is None and key not in _LIBPQ_OPTIONS:
                raise self._unfitting(key, origin)
            present = options.get(key) if name is None else getattr(self, name)
            if present is not None and str(present) != value:
                raise self._contradiction(key, str(present), value, origin)
            if name is None:
                options[key] = value
            else:
                filled[name] = _port(self.conn_id, value) if name == "port" else value
        return self.model_copy(update={**filled, "parameters": Secret(options)})

    def conninfo(
        self, *, application_name: str | None = None, defaults: Mapping[str, str] | None = None, **extra: str
    ) -> str:
        """Return libpq's ``key='value'`` string, password included: hand it to a driver, never to a log.

        :param defaults: options for where the connection says nothing.
        :param extra: options that win over the connection's own.
        :raises ConfigError: if host or database is missing.
        """
        settings = {**(defaults or {}), **self._settings(application_name), **extra}
        return " ".join(f"{key}='{_escaped(value)}'" for key, value in settings.items())

    def uri(
        self, *, application_name: str | None = None, defaults: Mapping[str, str] | None = None, **extra: str
    ) -> str:
        """Return a URI for libpq and ADBC, password included; raises as :meth:`conninfo` does.

        :param defaults: settings that the connection's own ones win over.
        """
        settings = {**(defaults or {}), **self._settings(application_name), **extra}
        # All in the query: the one form that holds IPv6, socket directories and several hosts alike.
        return "postgresql:///?" + urlencode(settings, quote_via=quote, safe="")

    def _settings(self, application_name: str | None) -> dict[str, str]:
        if not self.host or not self.database:
            raise ConfigError(
                f"The connection {self.conn_id!r} does not say where the database is",
                found="no host" if not self.host else "no database",
                expected="host and database in the connection or in load.connectionParams",
                cure="complete the connection, for example postgres://user:password@host:5432/database",
            )
        settings = {
            "host": self.host,
            "port": str(self.port) if self.port else None,
            "dbname": self.database,
            "user": self.user,
            "password": self.password.get_secret_value() if self.password else None,
            **self.parameters.get_secret_value(),
            "application_name": application_name,
        }
        return {key: value for key, value in settings.items() if value is not None}

    def _unfitting(self, key: str, origin: str) -> ConfigError:
        secret = "pass" in key.lower() or "secret" in key.lower()
        return ConfigError(
            f"The connection {self.conn_id!r} cannot use the option {key!r} of {origin}",
            found="a secret" if secret else "an option that PostgreSQL's client library does not know",
            expected="host, port, database, user, or an option of libpq such as sslmode",
            cure="put the password into the connection" if secret else "remove the option or correct its name",
        )

    def _contradiction(self, key: str, present: str, value: str, origin: str) -> ConfigError:
        shown = f"{present!r} in the connection, {value!r} in {origin}" if "pass" not in key else "two values"
        return ConfigError(
            f"{origin} contradicts the connection {self.conn_id!r} on {key!r}",
            found=shown,
            expected="one value, or the option in one of the two places only",
            cure=f"remove {key!r} from {origin}, or from the connection",
        )


def resolve(
    credential_id: str,
    *,
    environ: Mapping[str, str] | None = None,
    hadoop_lookup: HadoopLookup | None = None,
) -> AirflowConnection:
    """Find a connection outside Airflow.

    Looked up in this order: the environment's ``AIRFLOW_CONN_<ID>``; the file ``<ID>`` in the directory that
    ``ETL_CREDENTIALS_DIR`` names (mode 0600 or 0400); ``hadoop_lookup("etl.connection.<ID>")``.

    :param environ: instead of the process's environment.
    :raises ConnectionMissingError: if it is nowhere, naming the three places.
    :raises ConfigError: if it cannot be read, or its file may be read by others.
    """
    environ = os.environ if environ is None else environ
    if not _CREDENTIAL_ID.fullmatch(credential_id):
        raise ConfigError(f"{credential_id!r} is not a connection's name", expected="letters, digits, _, - and .")
    value = environ.get(_variable(credential_id)) or _from_file(credential_id, environ.get("ETL_CREDENTIALS_DIR"))
    if value is None and hadoop_lookup is not None:
        value = hadoop_lookup(f"etl.connection.{credential_id}")
    if value is None:
        raise ConnectionMissingError(
            f"The connection {credential_id!r} was not found",
            expected="a connection in Airflow's URI or JSON form",
            cure=f"in Airflow, create the connection {credential_id!r}; elsewhere set {_variable(credential_id)}, or "
            f"put a file {credential_id!r} of mode 0600 into the directory that ETL_CREDENTIALS_DIR names, or store "
            f"etl.connection.{credential_id} in a Hadoop credential provider",
        )
    return AirflowConnection.parse(credential_id, value)


def resolve_database(
    credential_id: str,
    parameters: Mapping[str, str] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    hadoop_lookup: HadoopLookup | None = None,
) -> DatabaseConnection:
    """Find a PostgreSQL connection outside Airflow and complete it with ``load.connectionParams``.

    Raises as :func:`resolve`, :meth:`DatabaseConnection.of` and :meth:`DatabaseConnection.completed` do.
    """
    found = DatabaseConnection.of(resolve(credential_id, environ=environ, hadoop_lookup=hadoop_lookup))
    return found.completed(parameters or {})


def _variable(credential_id: str) -> str:
    return f"AIRFLOW_CONN_{credential_id.upper()}"


def _from_file(credential_id: str, directory: str | None) -> str | None:
    if not directory:
        return None
    path = Path(directory) / credential_id
    try:
        with path.open(encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise ConfigError(
                    f"The connection file {path} may be read by others",
                    found=f"mode {mode:04o}",
                    expected="mode 0600 or 0400",
                    cure=f"chmod 600 {path}",
                )
            return file.read().strip() or None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(
            f"The connection file {path} cannot be read", found=error.strerror or type(error).__name__
        ) from error


def _option(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _port(conn_id: str, value: str) -> int:
    if not value.isascii() or not value.isdigit() or not 0 < int(value) < 65536:
        raise ConfigError(f"The port of the connection {conn_id!r} is not a port", found=repr(value))
    return int(value)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")
