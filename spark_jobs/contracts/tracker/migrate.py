"""Numbered SQL migrations of the tracker's schema."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files

from psycopg import sql

from spark_jobs.contracts.errors import LedgerMissingError, LedgerVersionError
from spark_jobs.contracts.tracker.connect import Connection, classified, query, short_transaction

_NAME = re.compile(r"(\d{4})_(\w+)\.sql")
# Any number will do, as long as nobody else's advisory locks use it.
_LOCK_CLASS = 0x45544C

_CREATE_HISTORY = """
CREATE TABLE IF NOT EXISTS {schema}.schema_migration (
    version    integer     PRIMARY KEY,
    name       text        NOT NULL,
    checksum   text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
)"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered migration of this package."""

    version: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text; the same for both kinds of line ends."""
        return sha256("\n".join(self.text.splitlines()).encode()).hexdigest()

    @property
    def label(self) -> str:
        """Number and name, as people read it."""
        return f"{self.version:04d}_{self.name}"


def packaged() -> list[Migration]:
    """Return this package's migrations in order. Read as a resource: the package may lie in a zip file."""
    found = []
    for entry in files(__package__).joinpath("migrations").iterdir():
        if match := _NAME.fullmatch(entry.name):
            found.append(Migration(int(match[1]), match[2], entry.read_text(encoding="utf-8")))
    return sorted(found, key=lambda migration: migration.version)


def migrate(conn: Connection, schema: str = "etl", *, migrations: Sequence[Migration] | None = None) -> list[str]:
    """Create or upgrade the tracker's tables, all or nothing.

    Safe when several start at once: they wait for one another, and the later ones find nothing to do.

    :param migrations: instead of those of this package.
    :returns: the labels of the migrations that were applied now.
    :raises LedgerVersionError: if the schema was migrated by a newer version, or a migration was changed afterwards.
    """
    wanted = packaged() if migrations is None else list(migrations)
    with short_transaction(conn, f"Migrating the tracker's schema {schema!r}", lock_timeout_ms=60_000):
        conn.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", (_LOCK_CLASS, schema))
        _create_schema(conn, schema)
        applied = _applied(conn, schema)
        _check_history(applied, wanted, schema)
        pending = [migration for migration in wanted if migration.version not in applied]
        conn.execute("SELECT set_config('search_path', quote_ident(%s), true)", (schema,))
        for migration in pending:
            _apply(conn, schema, migration)
    return [migration.label for migration in pending]


def require_version(conn: Connection, schema: str = "etl") -> None:
    """Return if the tracker's schema has exactly this package's version.

    :raises LedgerMissingError: there are no tables at all.
    :raises LedgerVersionError: there are others; both name the command that cures it.
    """
    with classified(f"Reading the version of the tracker's schema {schema!r}"):
        applied = _applied(conn, schema) if _has_history(conn, schema) else {}
    wanted = packaged()
    _check_history(applied, wanted, schema)
    missing = [migration.label for migration in wanted if migration.version not in applied]
    if missing:
        kind = LedgerVersionError if applied else LedgerMissingError
        raise kind(
            f"The tracker's tables in schema {schema!r} are not up to date",
            found=f"version {max(applied, default=0)}; not applied: {', '.join(missing)}",
            expected=f"version {wanted[-1].version}",
            cure=f"run `etl-pipeline migrate --schema {schema}` with the same connection",
        )


def _create_schema(conn: Connection, schema: str) -> None:
    # CREATE SCHEMA IF NOT EXISTS asks for the privilege on the database also where there is nothing to create.
    if not conn.execute("SELECT FROM pg_namespace WHERE nspname = %s", (schema,)).rowcount:
        conn.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    if not _has_history(conn, schema):
        query(conn, schema, _CREATE_HISTORY)


def _has_history(conn: Connection, schema: str) -> bool:
    tables = conn.execute(
        "SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = %s AND c.relname = 'schema_migration'",
        (schema,),
    )
    return tables.rowcount > 0


def _applied(conn: Connection, schema: str) -> dict[int, tuple[str, str]]:
    rows = query(conn, schema, "SELECT version, name, checksum FROM {schema}.schema_migration")
    return {version: (name, checksum) for version, name, checksum in rows}


def _check_history(applied: dict[int, tuple[str, str]], wanted: Sequence[Migration], schema: str) -> None:
    known = {migration.version: migration for migration in wanted}
    unknown = sorted(set(applied) - set(known))
    if unknown:
        raise LedgerVersionError(
            f"The tracker's schema {schema!r} was migrated by a newer version of this package",
            found=f"version {unknown[-1]}",
            expected=f"version {max(known, default=0)} at most",
            cure="install the newer airflow-etl-provider here as well",
        )
    changed = [known[v].label for v, entry in applied.items() if entry != (known[v].name, known[v].checksum)]
    if changed:
        raise LedgerVersionError(
            f"Migrations of the tracker's schema {schema!r} differ from those that were applied",
            found=f"another name or checksum of {', '.join(sorted(changed))}",
            expected="migrations that never change once they were applied",
            cure="install an unmodified release of airflow-etl-provider, the one that made these tables or a newer one",
        )


def _apply(conn: Connection, schema: str, migration: Migration) -> None:
    conn.execute(migration.text.encode())
    query(
        conn,
        schema,
        "INSERT INTO {schema}.schema_migration (version, name, checksum) VALUES (%s, %s, %s)",
        (migration.version, migration.name, migration.checksum),
    )
