"""A connection of any type, in Airflow's URI or JSON form, read without Airflow."""

from __future__ import annotations

import json
from typing import Any, NoReturn, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Secret, SecretStr

from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.redaction import hide, hide_in


class Unpicklable(BaseModel):
    """A model that holds a secret: never pickled, never quoted by a validation error."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse: a pickle travels in files and task binaries, where nobody expects a password."""
        raise TypeError(f"{type(self).__name__} holds a secret and is not pickled; pass uri() where it is needed")


class AirflowConnection(Unpicklable):
    """A connection of any type, as Airflow keeps it. Password and extras are never shown, by log lines neither."""

    conn_id: str
    conn_type: str
    host: str | None = None
    login: str | None = None
    password: SecretStr | None = None
    database: str | None = None
    """Airflow calls it ``schema``."""
    port: int | None = None
    extra: Secret[dict[str, Any]] = Secret({})

    def model_post_init(self, _context: object) -> None:
        """Keep its secrets out of the logs."""
        hide(self.password.get_secret_value() if self.password else None)
        hide_in(self.extra.get_secret_value())

    @classmethod
    def parse(cls, conn_id: str, value: str) -> Self:
        """Read Airflow's URI or JSON form.

        :raises ConfigError: if it is neither; the message never quotes the value.
        """
        try:
            return cls._from_json(conn_id, value) if value.lstrip().startswith("{") else cls._from_uri(conn_id, value)
        except (ValueError, TypeError, AttributeError):
            # `from None`: the original message quotes pieces of the value, and any of them may be the password.
            raise ConfigError(
                f"The connection {conn_id!r} cannot be read",
                found="text that is neither Airflow's URI form nor its JSON form",
                expected="postgres://user:password@host:5432/database?sslmode=require, or "
                '{"conn_type": "postgres", "host": …, "login": …, "password": …, "schema": …, "port": …, "extra": {…}}',
                cure="percent-encode user, password and host in the URI form (`/` is %2F, `@` is %40, `#` is %23)",
            ) from None

    @classmethod
    def _from_json(cls, conn_id: str, value: str) -> Self:
        data = json.loads(value)
        extra = data.get("extra") or {}
        return cls(
            conn_id=conn_id,
            conn_type=_conn_type(data.get("conn_type") or ""),
            host=data.get("host") or None,
            login=data.get("login") or None,
            password=data.get("password"),
            database=data.get("schema") or None,
            port=data.get("port") or None,
            extra=Secret(_mapping(json.loads(extra) if isinstance(extra, str) else extra)),
        )

    @classmethod
    def _from_uri(cls, conn_id: str, value: str) -> Self:
        scheme, separator, rest = value.strip().partition("://")
        if not separator or not scheme:
            raise ValueError
        # Airflow allows a protocol of the host's own: spark://https://host.
        protocol, nested, inner = rest.partition("://")
        has_protocol = bool(nested) and not set("@:/?#") & set(protocol)
        parts = urlsplit("//" + (inner if has_protocol else rest))
        host = _host(parts.netloc)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        if parts.fragment:
            raise ValueError
        return cls(
            conn_id=conn_id,
            conn_type=_conn_type(scheme),
            host=f"{protocol}://{host}" if has_protocol and host else host,
            login=unquote(parts.username) if parts.username else None,
            password=SecretStr(unquote(parts.password)) if parts.password else None,
            database=unquote(parts.path[1:]) or None,
            port=parts.port,
            extra=Secret(_mapping(json.loads(query["__extra__"]) if "__extra__" in query else query)),
        )


def _conn_type(scheme: str) -> str:
    return "postgres" if scheme == "postgresql" else scheme.lower().replace("-", "_")


def _host(netloc: str) -> str | None:
    # Not urlsplit's hostname: it is lower-cased, which a socket directory does not survive.
    host = netloc.rpartition("@")[2]
    if host.startswith("["):
        return unquote(host[1:].partition("]")[0])
    return unquote(host.partition(":")[0]) or None


def _mapping(extra: Any) -> dict[str, Any]:
    if not isinstance(extra, dict):
        raise TypeError
    return extra
