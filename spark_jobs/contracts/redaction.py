"""Secrets kept out of text: the values that connections brought, however spelt, and what looks like a secret.

Whoever resolves a connection calls :func:`hide`; whatever is shown goes through :func:`mask`. Only for text that people
read: nothing here protects a secret from code in the same process.
"""

from __future__ import annotations

import json
import re
import threading
from typing import Any, Final
from urllib.parse import quote, quote_plus, unquote

from spark_jobs.contracts.config.secret_values import is_secret_key, is_secret_value

MASK: Final = "***"
_LEAST: Final = 4
"""Shorter secrets are not looked for: every line has such letters, and a mask at each would tell them."""
_LEAST_LINE: Final = 16
"""The lines of a longer secret, such as a private key, are looked for one by one as well."""
_DEEP: Final = 3
"""How often a text may have been quoted: a dict's ``repr`` that holds JSON within JSON."""
_PLAIN: Final = re.compile(r"[A-Za-z0-9]+")

# Each begins at a fixed word, so that a long line takes no longer than its length.
_LOOKS_SECRET: Final = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), MASK),
    (re.compile(r"(LoginModule\s+(?:required|requisite|sufficient|optional))\b[^;]*", re.IGNORECASE), rf"\1 {MASK}"),
    (re.compile(r"(://[^/\s:@?#]*:)[^/\s@]+@"), rf"\1{MASK}@"),
    (re.compile(r"(\bBearer\s+)[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1{MASK}"),
    (
        re.compile(
            r"""((?:password|passwd|passphrase|pwd|secret|token|(?:api|access|secret|private|account)[_.-]?key)
            (?:\s*=\s*|\\?["']\s*[:=]\s*))
            (?:\\?"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\s,;&"'}\])]+)""",
            re.IGNORECASE | re.VERBOSE,
        ),
        rf"\1{MASK}",
    ),
)

# The password within a URL or a JAAS line is a secret by itself.
_WITHIN: Final = (
    re.compile(r"://[^/\s:@?#]*:([^/\s@]+)@"),
    re.compile(r'password\s*=\s*"((?:[^"\\]|\\.)*)"', re.IGNORECASE),
)


class _Secret:
    """One secret and its forms."""

    def __init__(self, secret: str) -> None:
        self.length = len(secret)
        # No quoting changes letters and digits: a text without them has the secret in no form.
        self._core = max(_PLAIN.findall(secret), key=len, default="")
        self._forms = sorted(forms(secret), key=len, reverse=True)

    def mask(self, text: str) -> str:
        if self._core in text:
            for form in self._forms:
                text = text.replace(form, MASK)
        return text


class _Hidden:
    """The secrets of this process."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._secrets: tuple[_Secret, ...] = ()
        self._lock = threading.Lock()

    def add(self, secret: str) -> None:
        if secret in self._known:
            return
        with self._lock:
            # The longest first: one secret may be a part of another.
            found = (*self._secrets, _Secret(secret))
            self._secrets = tuple(sorted(found, key=lambda known: known.length, reverse=True))
            self._known.add(secret)

    def mask(self, text: str) -> str:
        for secret in self._secrets:
            text = secret.mask(text)
        return text


_hidden = _Hidden()


def hide(secret: str | None) -> None:
    """Mask this value from now on, in all its forms, wherever :func:`mask` meets it in this process."""
    if not secret:
        return
    lines = [line.strip() for line in secret.splitlines()] if "\n" in secret else []
    for part in (secret, *(line for line in lines if len(line) >= _LEAST_LINE)):
        if len(part) >= _LEAST:
            _hidden.add(part)


def hide_in(value: Any, key: str = "") -> None:
    """Hide the secrets in a connection's extras: what has a secret's name or looks like one, at any depth."""
    match value:
        case dict():
            for name, item in value.items():
                hide_in(item, str(name))
        case list() | tuple():
            for item in value:
                hide_in(item, key)
        case str():
            if is_secret_key(key) or is_secret_value(value):
                hide(value)
            for within in (found for pattern in _WITHIN for found in pattern.findall(value)):
                hide(within)
                hide(unquote(within))
            hide_in(_document(value))
        case int() | float() if is_secret_key(key) and not isinstance(value, bool):
            hide(str(value))


def forms(secret: str, *, deep: int = _DEEP) -> set[str]:
    """Return the ways in which a value is written: in URLs, connection strings, JAAS, SQL, JSON and Python's ``repr``.

    :param deep: how often JSON or ``repr`` may have quoted it.
    """
    found = {secret, *_in_urls(secret), *(_backslashed(secret, mark) for mark in "'\""), secret.replace("'", "''")}
    for _ in range(deep):
        found |= {shown for form in found for shown in _quoted(form)}
    return found


def mask(text: str) -> str:
    """Return the text with ``***`` in place of secrets."""
    text = _hidden.mask(text)
    for pattern, shown in _LOOKS_SECRET:
        text = pattern.sub(shown, text)
    return text


def masked(value: Any, key: str = "") -> Any:
    """Return a field with its secrets masked, at any depth; what stands under a secret's name is masked as a whole."""
    if value is not None and is_secret_key(key):
        return MASK
    match value:
        case str():
            return mask(value)
        case dict():
            return {mask(name) if isinstance(name, str) else name: masked(v, str(name)) for name, v in value.items()}
        case list() | tuple() | set() | frozenset():
            return [masked(item) for item in value]
        case None | bool() | int() | float():
            return value
        case _:
            return mask(_text(value))


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001 - a line must not be lost because of what stands in it
        return f"<{type(value).__name__} without a text: {type(error).__name__}>"


def _document(text: str) -> Any:
    """Return what a JSON text holds; None for other text."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        return json.loads(text)
    except ValueError:
        return None


def _in_urls(secret: str) -> set[str]:
    found = {quote(secret, safe=""), quote(secret), quote_plus(secret)} if _encodable(secret) else set()
    return found | {re.sub(r"%[0-9A-F]{2}", lambda code: code.group().lower(), form) for form in found}


def _encodable(secret: str) -> bool:
    try:
        secret.encode()
    except UnicodeEncodeError:
        return False
    return True


def _quoted(text: str) -> set[str]:
    # Within a text that has both quotes, `repr` writes each `'` as `\\'`: hence the two before it.
    both = "\"'" + text
    shown = {json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], repr(text)[1:-1], ascii(text)[1:-1]}
    return {*shown, repr(both)[4:-1], ascii(both)[4:-1]}


def _backslashed(text: str, mark: str) -> str:
    return text.replace("\\", "\\\\").replace(mark, f"\\{mark}")
