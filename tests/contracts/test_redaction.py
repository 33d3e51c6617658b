"""A secret that a connection brought is in no line, however it is spelt; what looks like one is masked as well."""

from __future__ import annotations

import io
import json
import logging
import re
from typing import Any
from urllib.parse import quote, quote_plus
from uuid import uuid4

import psycopg.conninfo
import pytest
from hypothesis import given
from hypothesis import strategies as some

from spark_jobs.contracts.airflow_connection import AirflowConnection
from spark_jobs.contracts.config.secret_values import SPARK_REDACTION, is_secret_key
from spark_jobs.contracts.credentials import DatabaseConnection
from spark_jobs.contracts.log_settings import LogFormat
from spark_jobs.contracts.redaction import MASK, hide, mask, masked
from spark_jobs.logs.events import log_event
from spark_jobs.logs.formats import formatter
from spark_jobs.sources.secrets import reader_options

SECRET_WORDS = [
    *("password", "passwd", "passphrase", "passcode", "pwd", "secret", "secrets", "token", "credentials", "jaas"),
    *("private", "access", "api", "account", "keystore", "key", "url"),
    *("apikey", "secretkey", "privatekey", "accesskey"),
]
ODD = "Zq7'x\"Q\\z%41 /bl\u00fce\u2603@h#r?&"
# A tail of its own: a secret that hypothesis makes up must not be in every line of the tests that come after it.
SECRETS = some.text(some.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12).map(
    lambda s: s + "\u2603Zq7"
)


def spellings(secret: str) -> list[str]:
    """The secret as texts have it, each by its own library."""
    within = {"s": secret, "deep": [secret]}
    return [
        secret,
        quote(secret, safe=""),
        quote_plus(secret),
        json.dumps(secret),
        json.dumps(json.dumps(within)),
        json.dumps(within, ensure_ascii=False),
        repr(secret),
        repr(within),
        repr(f"\"'{secret}"),
        psycopg.conninfo.make_conninfo(password=secret),
        str([ValueError(secret)]),
    ]


@given(secret=SECRETS)
def test_a_hidden_value_is_masked_in_every_spelling(secret: str) -> None:
    hide(secret)
    for text in spellings(secret):
        assert "Zq7" not in mask(f"before {text} after"), text
        assert "Zq7" not in json.dumps(masked({"it": [text], text: 1}))


@pytest.mark.parametrize("form", ["plain", "json"])
def test_a_password_is_in_no_line(form: LogFormat) -> None:
    database = DatabaseConnection.from_airflow("w", f"postgres://u:{quote(ODD, safe='')}@h:5432/d")
    output = io.StringIO()
    handler = logging.StreamHandler(output)
    handler.setFormatter(formatter(form))
    log = logging.Logger("etl.test", logging.DEBUG)
    log.addHandler(handler)
    for text in (*spellings(ODD), database.uri(), database.conninfo(), repr(database.uri())):
        log.debug(text)
        log.debug("%s", {"given": text})
        log_event(log, logging.INFO, "odd", it=text, more=[text], k={text: text})
        try:
            raise ValueError(text)
        except ValueError:
            log.exception("it failed")
    shown = output.getvalue()
    assert shown.count(MASK) > 50
    for piece in ("Zq7", "h#r", "h%23r", "bl\u00fce", "bl\\u00fce", "bl%C3%BC"):
        assert piece not in shown


@pytest.mark.parametrize(
    "connection",
    [
        {"extra": {"sslpassword": "SECRET"}},
        {"extra": {"fs.s3a.secret.key": "SECRET"}},
        {"extra": {"sasl.password": "SECRET"}},
        {"extra": {"nested": {"list": [{"api_key": "SECRET"}]}}},
        {"extra": json.dumps({"keyfile_dict": json.dumps({"private_key": "SECRET"})})},
        {"extra": {"sasl.jaas.config": 'x.ScramLoginModule required username="me" password="SECRET";'}},
        {"extra": {"connect": "mongodb://me:SECRET@host/"}},
        {"password": "SECRET"},
    ],
    ids=str,
)
def test_the_secrets_of_a_connection_are_hidden(connection: dict[str, Any]) -> None:
    secret = f"Kq8-{uuid4()}"
    text = json.dumps({"conn_type": "kafka", **connection}).replace("SECRET", secret)
    assert mask(secret) == secret
    AirflowConnection.parse("c", text)
    shown = mask(f"before {text} {secret} after")
    assert secret not in shown
    assert shown.startswith("before ")
    assert shown.endswith(" after")


def test_a_number_may_be_a_secret() -> None:
    AirflowConnection.parse("c", json.dumps({"conn_type": "x", "extra": {"token": 784523197}}))
    assert mask("it is 784523197") == "it is ***"


def test_what_a_connection_does_not_keep_secret_is_shown() -> None:
    AirflowConnection.parse("c", json.dumps({"conn_type": "x", "extra": {"sslmode": "verify-full", "region": "north"}}))
    assert mask("sslmode=verify-full in north") == "sslmode=verify-full in north"


@pytest.mark.parametrize(
    "name",
    [
        "kafka.sasl.jaas.config",
        "kafka.ssl.keystore.key",
        "kafka.ssl.key.password",
        "kafka.ssl.keystore.passphrase",
        "fs.azure.account.key.store.dfs.core.windows.net",
        "fs.azure.account.oauth2.client.secret",
        "fs.gs.auth.service.account.private.key",
        "fs.s3a.access.key",
        "fs.s3a.session.token",
        "sasl.oauthbearer.credentials",
        "apiKey",
        "private_key",
        "userPwd",
        "spark.executorEnv.AIRFLOW_CONN_WAREHOUSE",
        "spark.hadoop.etl.connection.warehouse",
    ],
)
def test_spark_hides_what_we_hide(name: str) -> None:
    assert re.search(SPARK_REDACTION, name)


@given(before=some.sampled_from(["", "kafka.", "fs.x."]), words=some.lists(some.sampled_from(SECRET_WORDS), min_size=1))
def test_spark_hides_every_name_that_we_know_as_a_secrets(before: str, words: list[str]) -> None:
    name = before + ".".join(words)
    assert not is_secret_key(name) or re.search(SPARK_REDACTION, name)


def test_jaas_lines_are_masked() -> None:
    extra = {"sasl.mechanism": "PLAIN"}
    connection = AirflowConnection.parse(
        "k", json.dumps({"conn_type": "kafka", "login": "me", "password": 'Wq6"a\\b', "extra": extra})
    )
    options = reader_options("kafka", connection)
    assert 'Wq6\\"a\\\\b' in options["kafka.sasl.jaas.config"]
    for text in (str(options), json.dumps(options), options["kafka.sasl.jaas.config"]):
        assert "Wq6" not in mask(text)
    # Also of a connection that this process never resolved.
    unknown = 'org.apache.kafka.common.security.plain.PlainLoginModule required username="me" password="Vr5a";'
    assert mask(f"sasl.jaas.config = {unknown} next").endswith(f"PlainLoginModule required {MASK}; next")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:Rs4x@db:5432/x", "postgresql://me:***@db:5432/x"),
        ("https://:Rs4x@proxy/", "https://:***@proxy/"),
        ("password=Rs4x host=db", "password=*** host=db"),
        ("PGPASSWORD='Rs4 x' psql", "PGPASSWORD=*** psql"),
        ('{"password": "Rs4\\"x", "port": 1}', '{"password": ***, "port": 1}'),
        ("{'api_key': 'Rs4x', 'b': 1}", "{'api_key': ***, 'b': 1}"),
        ("Authorization: Bearer Rs4xRs4xRs4x", "Authorization: Bearer ***"),
        ("fs.s3a.secret.key=Rs4x", "fs.s3a.secret.key=***"),
        ("-----BEGIN RSA PRIVATE KEY-----\nRs4x\n-----END RSA PRIVATE KEY-----.", "***."),
        ("-----BEGIN PRIVATE KEY-----\nRs4x cut off", "***"),
    ],
)
def test_what_looks_like_a_secret_is_masked(text: str, shown: str) -> None:
    assert mask(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        'password authentication failed for user "loader"',
        "the token expired",
        "jdbc:postgresql://db:5432/shop?user=a@b",
        "http://localhost:4040/jobs",
        "What to do: put the password into the connection",
        "credentialId 'warehouse'",
    ],
)
def test_what_only_speaks_of_secrets_is_shown(text: str) -> None:
    assert mask(text) == text


def test_fields_named_like_a_secret_are_masked_as_a_whole() -> None:
    given = {"password": "x", "nested": [{"sasl.jaas.config": ["y"], "ok": 1}], "token": None}
    assert masked(given) == {"password": MASK, "nested": [{"sasl.jaas.config": MASK, "ok": 1}], "token": None}


def test_very_short_secrets_do_not_mask_all_text() -> None:
    hide("a")
    hide("")
    hide(None)
    assert mask("a batch has an id") == "a batch has an id"


def test_a_long_line_takes_no_longer_than_its_length() -> None:
    line = "secretpasswordtoken" * 50_000 + "://" * 50_000 + '"password": "' * 20_000
    assert mask(line)
