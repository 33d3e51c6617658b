"""The connection to the tracker that commands share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from spark_jobs.contracts.credentials import resolve_database
from spark_jobs.contracts.tracker.connect import Connection, connect

CONNECTION = typer.Option(
    "--connection",
    envvar="ETL_CONNECTION",
    metavar="CREDENTIAL_ID",
    help="Name of the connection to the ledger's database: AIRFLOW_CONN_<ID>, or a file in ETL_CREDENTIALS_DIR.",
)
SCHEMA = typer.Option("--schema", envvar="ETL_TRACKER_SCHEMA", help="Schema of the ledger's tables.")


@contextmanager
def tracker_session(credential_id: str) -> Iterator[Connection]:
    """Open the tracker's database by the name of its connection; closed at the end of the block."""
    with connect(resolve_database(credential_id), application_name="etl-pipeline") as conn:
        yield conn
