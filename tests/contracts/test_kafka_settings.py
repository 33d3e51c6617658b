"""One connection, two Kafka clients: Java's settings, and what librdkafka makes of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from spark_jobs.contracts.airflow_connection import AirflowConnection
from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.jaas import LOGIN_MODULES, login_line, parse_login
from spark_jobs.contracts.kafka_settings import client_options, java_settings, librdkafka_settings

PLAIN = LOGIN_MODULES["PLAIN"]
SECRET = "Pq7xQz-19/blue@harbour"
BROKER = {"bootstrap.servers": "b:9092"}
# A line's end within quotes ends Java's text.
texts = some.text(some.characters(exclude_characters="\r\n", exclude_categories=["Cs"]))


def connection(**values: Any) -> AirflowConnection:
    return AirflowConnection.parse("broker", json.dumps({"conn_type": "kafka", **values}))


@given(texts, texts, some.sampled_from(sorted(LOGIN_MODULES)))
def test_a_login_line_is_read_as_it_was_written(user: str, password: str, mechanism: str) -> None:
    entry = parse_login(login_line(mechanism, user, password))
    assert (entry.module, entry.options) == (LOGIN_MODULES[mechanism], {"username": user, "password": password})


@given(some.text("abc=;\"'\\/* \n1", max_size=40))
def test_any_line_is_read_or_refused_without_being_quoted(line: str) -> None:
    line = f"{PLAIN} required password={SECRET} {line}"
    said = ""
    try:
        parse_login(line)
    except ConfigError as error:
        said = str(error)
    assert SECRET not in said


@pytest.mark.parametrize(
    ("line", "options"),
    [
        (f'{PLAIN} required username="a" password="b";', {"username": "a", "password": "b"}),
        (f"{PLAIN}  Required\n username=a\n password='b c' ; ", {"username": "a", "password": "b c"}),
        (f'/* ours */ {PLAIN} required // all\n username="a\\"\\\\\\t\\101" ;', {"username": 'a"\\\tA'}),
        (f"{PLAIN} required;", {}),
    ],
)
def test_a_persons_lines_are_read_as_java_does(line: str, options: dict[str, str]) -> None:
    assert parse_login(line).options == options


@pytest.mark.parametrize(
    "line",
    [
        "",
        ";",
        f"{PLAIN};",
        f'{PLAIN} maybe username="a";',
        f'{PLAIN} required username="a"',
        f'{PLAIN} required username="a;',
        f"{PLAIN} required a b;",
        f"{PLAIN} required a=;",
        f"{PLAIN} required a=1; {PLAIN} required a=1;",
    ],
)
def test_what_java_would_not_read_is_refused(line: str) -> None:
    with pytest.raises(ConfigError, match=r"sasl\.jaas\.config"):
        parse_login(line)


def test_a_login_and_its_line_come_to_the_same() -> None:
    extra = {"security.protocol": "SASL_SSL", "sasl.mechanisms": "SCRAM-SHA-512"}
    own = java_settings(connection(host="b", port=9093, login="me", password=SECRET, extra=extra))
    line = {"sasl.mechanism": "SCRAM-SHA-512", "sasl.jaas.config": login_line("SCRAM-SHA-512", "me", SECRET)}
    assert own == {"security.protocol": "SASL_SSL", **line, "bootstrap.servers": "b:9093"}
    assert librdkafka_settings(own) == {
        "bootstrap.servers": "b:9093",
        "security.protocol": "sasl_ssl",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "me",
        "sasl.password": SECRET,
    }


def test_what_only_tunes_the_reading_is_left_out() -> None:
    options = {"kafka.bootstrap.servers": "b:9092", "kafka.max.poll.records": "5", "KAFKA.isolation.level": "x"}
    settings = librdkafka_settings(client_options({**options, "startingOffsets": "earliest"}))
    assert settings == {**BROKER, "isolation.level": "x", "security.protocol": "plaintext"}


@pytest.mark.parametrize(
    ("java", "settings"),
    [
        ({"ssl.truststore.type": "PEM", "ssl.truststore.location": "/ca.pem"}, {"ssl.ca.location": "/ca.pem"}),
        ({"ssl.truststore.certificates": "CERT"}, {"ssl.ca.pem": "CERT"}),
        ({"ssl.truststore.location": "/ca.jks", "ssl.ca.location": "/ca.pem"}, {"ssl.ca.location": "/ca.pem"}),
        (
            {"ssl.keystore.type": "PEM", "ssl.keystore.location": "/me.pem", "ssl.key.password": "x"},
            {"ssl.certificate.location": "/me.pem", "ssl.key.location": "/me.pem", "ssl.key.password": "x"},
        ),
        (
            {"ssl.keystore.type": "pkcs12", "ssl.keystore.location": "/me.p12", "ssl.keystore.password": "x"},
            {"ssl.keystore.location": "/me.p12", "ssl.keystore.password": "x"},
        ),
        ({"ssl.endpoint.identification.algorithm": ""}, {"ssl.endpoint.identification.algorithm": "none"}),
    ],
)
def test_trust_and_keys_go_over(java: dict[str, str], settings: dict[str, str]) -> None:
    made = librdkafka_settings({**BROKER, "security.protocol": "SSL", **java})
    assert made == {**BROKER, "security.protocol": "ssl", **settings}


def test_every_setting_is_one_that_the_client_knows() -> None:
    from confluent_kafka.admin import AdminClient

    sasl = {"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN"}
    java = {**BROKER, **sasl, "sasl.jaas.config": login_line("PLAIN", "a", "b"), "client.dns.lookup": "use_all_dns_ips"}
    java |= {"ssl.endpoint.identification.algorithm": "HTTPS"}
    AdminClient({**librdkafka_settings(java), "log_level": 0})


@pytest.mark.parametrize(
    ("java", "named"),
    [
        ({"bootstrap.servers": " "}, "no brokers"),
        ({"security.protocol": "SASL_SSL"}, "GSSAPI"),
        ({"security.protocol": "SASL_SSL", "sasl.mechanism": "AWS_MSK_IAM"}, "AWS_MSK_IAM"),
        ({"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN"}, "no user is given"),
        ({"security.protocol": "SSL", "ssl.truststore.location": "/ca.jks"}, r"ssl\.truststore\.location of type JKS"),
        ({"security.protocol": "SSL", "ssl.keystore.location": "/me.jks"}, r"ssl\.keystore\.location of type JKS"),
        ({"sasl.login.callback.handler.class": "my.Handler"}, "callback"),
        (
            {
                "security.protocol": "SASL_SSL",
                "sasl.mechanism": "PLAIN",
                "sasl.jaas.config": f"my.Module required username=a password={SECRET};",
            },
            r"my\.Module",
        ),
        (
            {
                "security.protocol": "SASL_SSL",
                "sasl.mechanism": "PLAIN",
                "sasl.jaas.config": f"{PLAIN} required password={SECRET};",
            },
            "no username",
        ),
    ],
)
def test_what_java_alone_can_do_is_said(java: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        librdkafka_settings({**BROKER, **java})
    assert SECRET not in str(caught.value)
