"""A server that was started long ago: what a test cannot wait for, and no server lets itself be told."""

from __future__ import annotations

from typing import Any

from psycopg import sql

_PATH = sql.SQL("search_path = etl, pg_catalog, public")


def long_up(conn: Any, since: str = "'-infinity'::timestamptz") -> None:
    """Let this session, and the database's later ones, be told so.

    What stands before the server's own function in the search path is what a query finds.

    :param since: SQL: when the server was started.
    """
    conn.execute(
        "CREATE OR REPLACE FUNCTION etl.pg_postmaster_start_time() RETURNS timestamptz "
        f"LANGUAGE sql AS $$ SELECT {since} $$"
    )
    database = conn.execute("SELECT current_database()").fetchone()[0]
    conn.execute(sql.SQL("ALTER DATABASE {} SET {}").format(sql.Identifier(database), _PATH))
    conn.execute(sql.SQL("SET {}").format(_PATH))
