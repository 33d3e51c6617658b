"""``etl-pipeline schema``: the JSON Schema of pipeline files."""

from __future__ import annotations

import json

import typer

from spark_jobs.contracts.config import json_schema


def schema() -> None:
    """Print the JSON Schema, with which an editor completes and checks pipeline files."""
    typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))
