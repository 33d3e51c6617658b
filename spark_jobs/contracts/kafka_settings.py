"""Settings of Kafka clients: as an Airflow connection has them, as Java's client and as librdkafka take them.

A connection becomes Java's settings, which Spark reads with. Whoever asks the broker without Java goes on from those:
so both log in alike, and what one of them cannot do is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from spark_jobs.contracts.airflow_connection import AirflowConnection
from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.jaas import LOGIN_MODULES, login_line, parse_login

# librdkafka's names, which Airflow's Kafka connections use, and the Java client's way to say the same.
_RENAMED: Final = {"sasl.mechanisms": "sasl.mechanism"}

# fmt: off
# librdkafka's own names, and those that both clients read alike.
_SAME: Final = frozenset((
    "bootstrap.servers", "client.dns.lookup", "isolation.level", "broker.address.family",
    "ssl.ca.location", "ssl.ca.pem", "ssl.certificate.location", "ssl.certificate.pem", "ssl.key.location",
    "ssl.key.pem", "ssl.key.password", "enable.ssl.certificate.verification", "https.ca.location",
    "sasl.oauthbearer.method", "sasl.oauthbearer.client.id", "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.token.endpoint.url", "sasl.oauthbearer.scope", "sasl.oauthbearer.extensions",
))
# What has Java's code do the login or the encryption.
_CLASSES: Final = ("sasl.client.callback.handler.class", "sasl.login.callback.handler.class", "sasl.login.class",
                   "ssl.engine.factory.class", "security.providers")
# fmt: on


def java_settings(connection: AirflowConnection) -> dict[str, str]:
    """Return the Java client's settings for a connection, secrets included.

    The extras are client settings, with or without the prefix ``kafka.``; user and password (or ``sasl.username`` and
    ``sasl.password``) become ``sasl.jaas.config``.
    """
    extra = {str(name): str(value) for name, value in connection.extra.get_secret_value().items()}
    settings = {
        _RENAMED.get(name, name): value for name, value in ((n.removeprefix("kafka."), v) for n, v in extra.items())
    }
    user = settings.pop("sasl.username", None) or connection.login
    secret = connection.password.get_secret_value() if connection.password else None
    password = settings.pop("sasl.password", None) or secret
    mechanism = settings.get("sasl.mechanism", "").upper()
    if user and password and mechanism in LOGIN_MODULES and "sasl.jaas.config" not in settings:
        settings["sasl.jaas.config"] = login_line(mechanism, user, password)
    if connection.host and "bootstrap.servers" not in settings:
        settings["bootstrap.servers"] = f"{connection.host}:{connection.port}" if connection.port else connection.host
    return settings


def client_options(options: Mapping[str, str]) -> dict[str, str]:
    """Return the Java client's settings among the options of Spark's Kafka reader."""
    return {name[6:]: value for name, value in options.items() if name.lower().startswith("kafka.")}


def librdkafka_settings(java: Mapping[str, str]) -> dict[str, str]:
    """Return what makes librdkafka reach and trust the same brokers, and log in as the same user.

    Settings that only tune the reading are left out.

    :raises ConfigError: there are no brokers, or Java's client alone can do it: its key stores, its classes, Kerberos.
    """
    settings = {name: value for name, value in java.items() if name in _SAME and value.strip()}
    if not settings.get("bootstrap.servers"):
        raise ConfigError(
            "The Kafka source has no brokers",
            expected="extract.connectionParams['kafka.bootstrap.servers'], or a host in its connection",
            cure="name the brokers as host:port,host:port",
        )
    for add in (_add_protocol, _add_login, _add_trust, _add_key):
        add(java, settings)
    return settings


def _add_protocol(java: Mapping[str, str], settings: dict[str, str]) -> None:
    _refuse_classes(java)
    settings["security.protocol"] = java.get("security.protocol", "PLAINTEXT").strip().lower()
    check = java.get("ssl.endpoint.identification.algorithm")
    if check is not None:
        # Java's way to switch the check off is an empty text.
        settings["ssl.endpoint.identification.algorithm"] = check.strip().lower() or "none"


def _add_login(java: Mapping[str, str], settings: dict[str, str]) -> None:
    if not settings["security.protocol"].startswith("sasl"):
        return
    # Java's default.
    mechanism = java.get("sasl.mechanism", "GSSAPI").strip().upper()
    settings["sasl.mechanism"] = mechanism
    if mechanism == "OAUTHBEARER" and "sasl.oauthbearer.method" in settings:
        return
    if mechanism not in LOGIN_MODULES:
        raise _java_only(
            f"SASL mechanism {mechanism}",
            f"{', '.join(LOGIN_MODULES)}, or OAUTHBEARER with librdkafka's sasl.oauthbearer.method",
        )
    settings.update(_user(java, mechanism))


def _user(java: Mapping[str, str], mechanism: str) -> dict[str, str]:
    if "sasl.jaas.config" not in java:
        raise ConfigError(
            f"The Kafka source logs in by {mechanism}, and no user is given",
            found="neither login and password nor sasl.jaas.config",
            expected="a user and a password in the connection that extract.credentialId names",
            cure="complete the connection",
        )
    entry = parse_login(java["sasl.jaas.config"])
    if entry.module not in LOGIN_MODULES.values():
        raise _java_only(f"the login module {entry.module}", " or ".join(sorted(set(LOGIN_MODULES.values()))))
    missing = [name for name in ("username", "password") if not entry.options.get(name)]
    if missing:
        raise ConfigError("sasl.jaas.config names no user", found=f"no {' and no '.join(missing)}")
    return {"sasl.username": entry.options["username"], "sasl.password": entry.options["password"]}


def _add_trust(java: Mapping[str, str], settings: dict[str, str]) -> None:
    if settings.keys() & {"ssl.ca.location", "ssl.ca.pem"} or not _encrypted(settings):
        return
    if certificates := java.get("ssl.truststore.certificates"):
        settings["ssl.ca.pem"] = certificates
    elif location := java.get("ssl.truststore.location"):
        settings.update(_store(java, "ssl.truststore", {"PEM": {"ssl.ca.location": location}}))


def _add_key(java: Mapping[str, str], settings: dict[str, str]) -> None:
    own = {"ssl.certificate.location", "ssl.certificate.pem", "ssl.key.location", "ssl.key.pem"}
    if settings.keys() & own or not _encrypted(settings):
        return
    if chain := java.get("ssl.keystore.certificate.chain"):
        settings.update({"ssl.certificate.pem": chain, "ssl.key.pem": java.get("ssl.keystore.key", "")})
    elif location := java.get("ssl.keystore.location"):
        pem = {"ssl.certificate.location": location, "ssl.key.location": location}
        pkcs12 = {"ssl.keystore.location": location, "ssl.keystore.password": java.get("ssl.keystore.password", "")}
        settings.update(_store(java, "ssl.keystore", {"PEM": pem, "PKCS12": pkcs12}))


def _store(java: Mapping[str, str], name: str, ways: Mapping[str, dict[str, str]]) -> dict[str, str]:
    # Java's default.
    kind = java.get(f"{name}.type", "JKS").strip().upper()
    if kind not in ways:
        instead = "ssl.ca.location" if name == "ssl.truststore" else "ssl.certificate.location and ssl.key.location"
        raise _java_only(f"{name}.location of type {kind}", f"type {' or '.join(ways)}; or {instead}, files in PEM")
    return ways[kind]


def _refuse_classes(java: Mapping[str, str]) -> None:
    if given := [name for name in _CLASSES if java.get(name)]:
        raise _java_only(", ".join(given), "settings without classes of Java")


def _encrypted(settings: Mapping[str, str]) -> bool:
    return settings["security.protocol"].endswith("ssl")


def _java_only(found: str, expected: str) -> ConfigError:
    return ConfigError(
        "The broker cannot be asked in the way in which Spark reads from it",
        found=found,
        expected=expected,
        cure="add the expected settings to the extras of the connection that extract.credentialId names: Spark goes "
        "on with its own",
    )
