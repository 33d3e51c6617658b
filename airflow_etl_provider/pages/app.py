"""The pages: a way to Spark's UI, the pipeline, its dead letters."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from airflow.configuration import conf
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import DictLoader, Environment

from airflow_etl_provider.pages.shown_run import MaySee, SeenRun, ShownRun
from airflow_etl_provider.pages.templates import TEMPLATES
from spark_jobs.contracts.errors import EtlError
from spark_jobs.contracts.tracker.breaker_changes import breaker_changes
from spark_jobs.contracts.tracker.letters import count_letters
from spark_jobs.contracts.tracker.progress import recent_progress
from spark_jobs.contracts.tracker.queries import pipeline_status
from spark_jobs.contracts.tracker.run_state import RunLife, RunPhase, run_life

log = logging.getLogger("etl.pages")

_BATCHES = 25
# Nothing but these pages' own text and style: what a ledger holds was written by somebody else.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

app = FastAPI(title="Streaming ETL", dependencies=[MaySee], openapi_url=None, docs_url=None, redoc_url=None)
_pages = Environment(loader=DictLoader(TEMPLATES), autoescape=True)


@app.get("/spark")
def spark(shown: SeenRun) -> Response:
    """Lead to Spark's UI while the driver lives, then to the history server; else say why there is nothing."""
    life = run_life(shown.conn, shown.schema, shown.run_id)
    address = _live_ui(life) or _history(life)
    if address:
        return RedirectResponse(address, 302, headers={"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})
    return _page("spark", shown, life=life, over=life.phase is not RunPhase.RUNNING)


@app.get("/pipeline")
def pipeline(shown: SeenRun) -> Response:
    """Show how the pipeline is, the task's run, the newest micro-batches, and which breakers its runs changed."""
    [status] = pipeline_status(shown.conn, shown.schema, shown.pipeline_id)
    life = run_life(shown.conn, shown.schema, shown.run_id)
    batches = recent_progress(shown.conn, shown.schema, shown.pipeline_id, _BATCHES)
    changes = breaker_changes(shown.conn, shown.schema, shown.pipeline_id)
    return _page("pipeline", shown, status=status, life=life, batches=batches, changes=changes)


@app.get("/dead-letters")
def dead_letters(shown: SeenRun) -> Response:
    """Show how many dead letters of the pipeline there are, by status, stage and error class."""
    counts = count_letters(shown.conn, shown.schema, shown.pipeline_id)
    return _page("dead-letters", shown, counts=counts)


@app.exception_handler(EtlError)
def _not_found_out(request: Request, error: EtlError) -> Response:
    log.warning("%s could not be shown: %s", request.url.path, error)
    values: Mapping[str, Any] = error.to_json()
    return HTMLResponse(_pages.get_template("error").render(error=values), 503, _HEADERS)


def _page(name: str, shown: ShownRun, **values: Any) -> Response:
    return HTMLResponse(_pages.get_template(name).render(shown=shown, **values), 200, _HEADERS)


def _live_ui(life: RunLife) -> str | None:
    return life.ui_url if life.phase is RunPhase.RUNNING and _is_web(life.ui_url) else None


def _history(life: RunLife) -> str | None:
    server = conf.get("etl", "spark_history_url", fallback="").rstrip("/")
    if not life.application_id or not _is_web(server):
        return None
    return f"{server}/history/{quote(life.application_id, safe='')}/"


def _is_web(address: str | None) -> bool:
    if not address:
        return False
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)
