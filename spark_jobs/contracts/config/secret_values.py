"""Which keys and values look like a secret: they are refused in a configuration and never shown in a message."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SECRET_WORDS = frozenset(
    {"password", "passwd", "passphrase", "passcode", "pwd", "secret", "secrets", "token", "credentials", "jaas"}
)
_SECRET_ENDS = ("password", "passwd", "passphrase", "secret", "token", "apikey", "secretkey", "privatekey", "accesskey")
_SECRET_PAIRS = frozenset(
    {("private", "key"), ("access", "key"), ("secret", "key"), ("api", "key"), ("account", "key")}
)
_KEYSTORE_KEY = ("keystore", "key")
# Names that speak about a secret without holding one: where it is, of which kind, which class handles it.
_ABOUT = frozenset(
    {"url", "uri", "file", "path", "location", "type", "class", "algorithm", "id", "seconds", "ms", "provider", "mode"}
)
SPARK_REDACTION = (
    "(?i:s[e]cret|pass[w]ord|passwd|passphrase|passcode|pwd|token|credential|jaas|airflow_conn|etl[.]connection[.]"
    "|(?:access|account|api|keystore|private).?key)"
)
"""``spark.redaction.regex``: what Spark hides in its UI and event log, at least all that :func:`is_secret_key` names.

Two words are written so that the Spark provider does not take the pattern itself for a secret's name: it masks what
follows such a word in the command that it logs.
"""
_SECRET_VALUES = (
    re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/\s:@]*:[^/\s@]+@"),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    re.compile(r"LoginModule\s+(required|requisite|sufficient|optional)", re.IGNORECASE),
)
_SECRET_ASSIGNMENT = re.compile(r"(?:^|[?&;,\s])(?:\w*password|passwd|pwd|secret|\w*token)\s*=\s*\S", re.IGNORECASE)


def is_secret_key(key: str) -> bool:
    """Say whether a key of this name holds a secret, such as ``kafka.sasl.jaas.config`` or ``sslPassword``."""
    words = tuple(word.lower() for word in _WORD.findall(key))
    if not words or words[-1] in _ABOUT:
        return False
    pairs = set(pairwise(words))
    return (
        bool(_SECRET_WORDS.intersection(words))
        or words[-1].endswith(_SECRET_ENDS)
        or bool(_SECRET_PAIRS & pairs)
        or words[-2:] == _KEYSTORE_KEY
    )


def is_secret_value(value: Any) -> bool:
    """Say whether a text holds a secret in itself: a URL with a password, a private key, a JAAS line."""
    return isinstance(value, str) and any(pattern.search(value) for pattern in _SECRET_VALUES)


def assigns_secret(value: str) -> bool:
    """Say whether a connection text holds ``password=…`` or the like; SQL may without being secret: do not ask it."""
    return is_secret_value(value) or bool(_SECRET_ASSIGNMENT.search(value))
