"""Certificates for the embedded Java: it brings its own list, which lacks what a company's proxy adds to a machine."""

from __future__ import annotations

import hashlib
import os
import re
import ssl
import struct
from pathlib import Path

from sandbox.java import is_embedded
from sandbox.places import cache_dir, only_one

# Nothing in it is secret; Java wants a word all the same.
_WORD = "changeit"
_BLOCK = re.compile("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def trust_settings() -> list[str]:
    """Return the arguments that let the embedded Java trust what the machine's other tools trust; none for another."""
    bundle = _bundle()
    if bundle is None or not is_embedded():
        return []
    content = bundle.read_text(encoding="utf-8", errors="replace")
    store = cache_dir() / "java" / f"trusted-{hashlib.sha256(content.encode()).hexdigest()[:12]}.jks"
    with only_one(cache_dir() / "java.lock"):
        if not store.exists():
            store.parent.mkdir(parents=True, exist_ok=True)
            half = store.with_suffix(".new")
            half.write_bytes(_store(content))
            half.replace(store)
    names = {"trustStore": str(store), "trustStoreType": "JKS", "trustStorePassword": _WORD}
    return [f"-Djavax.net.ssl.{name}={value}" for name, value in names.items()]


def _bundle() -> Path | None:
    paths = ssl.get_default_verify_paths()
    for name in (os.environ.get("SSL_CERT_FILE"), paths.cafile, "/etc/ssl/certs/ca-certificates.crt"):
        if name and Path(name).is_file():
            return Path(name)
    return None


def _store(bundle: str) -> bytes:
    """Return the certificates as Java's own kind of key store, "JKS"."""
    found = [ssl.PEM_cert_to_DER_cert(block) for block in dict.fromkeys(_BLOCK.findall(bundle))]
    entries = b"".join(_entry(f"ca-{number}", certificate) for number, certificate in enumerate(found))
    content = struct.pack(">III", 0xFEEDFEED, 2, len(found)) + entries
    return content + hashlib.sha1(_WORD.encode("utf-16-be") + b"Mighty Aphrodite" + content).digest()


def _entry(alias: str, certificate: bytes) -> bytes:
    made = struct.pack(">Q", 0)
    return (
        struct.pack(">I", 2) + _text(alias) + made + _text("X.509") + struct.pack(">I", len(certificate)) + certificate
    )


def _text(text: str) -> bytes:
    return struct.pack(">H", len(text)) + text.encode("ascii")
