"""Spark's JSON of a micro-batch's progress, as the tracker keeps it. Nothing in it may make the writing fail."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from spark_jobs.contracts.errors import EtlError
from spark_jobs.contracts.redaction import mask, masked
from spark_jobs.contracts.tracker.progress import BatchProgress
from spark_jobs.sinks.sorting import moment, readable
from spark_jobs.sources.base import BatchSize

_MOST_TEXT: Final = 2_000
_MOST_SOURCES: Final = 64 * 1024
_OFFSETS: Final = ("startOffset", "endOffset", "latestOffset")
_MOST_BIGINT: Final = 2**63 - 1

Backlog = Callable[[Any, Any], BatchSize]
"""How much a source has after one offset, up to another."""


@dataclass(frozen=True, slots=True)
class Whose:
    """Whose micro-batches they are."""

    pipeline_id: str
    query_id: str
    run_id: str
    epoch: int


def is_micro_batch(news: Mapping[str, Any]) -> bool:
    """Tell whether Spark has carried out a micro-batch: it also tells of triggers that found nothing to do."""
    return "addBatch" in news.get("durationMs", {})


def completed(news: Mapping[str, Any], whose: Whose, attempt: int, backlog: Backlog) -> BatchProgress:
    """Return the progress of a micro-batch that Spark has finished.

    :param news: Spark's own JSON, parsed. What it lacks, or has in a form that cannot be kept, is None.
    """
    sources = [dict(source) for source in news.get("sources", [])]
    state = list(news.get("stateOperators", []))
    event_time = storable(news.get("eventTime") or {})
    behind = _behind(sources, backlog)
    return BatchProgress(
        pipeline_id=whose.pipeline_id,
        query_id=whose.query_id,
        batch_id=int(news["batchId"]),
        spark_run_id=str(news["runId"]),
        run_id=whose.run_id,
        epoch=whose.epoch,
        attempt=attempt,
        outcome="completed",
        triggered_at=_instant(news.get("timestamp")),
        duration_ms=_whole(news.get("batchDuration")),
        durations={name: int(value) for name, value in news.get("durationMs", {}).items()},
        input_rows=_whole(news.get("numInputRows")),
        input_rows_per_second=_finite(news.get("inputRowsPerSecond")),
        processed_rows_per_second=_finite(news.get("processedRowsPerSecond")),
        watermark=_watermark(event_time.get("watermark")),
        event_time=event_time or None,
        sources=[_kept(source) for source in sources],
        backlog_rows=_whole(behind.rows),
        backlog_bytes=_whole(behind.data_bytes),
        state_rows=_sum(state, "numRowsTotal"),
        state_bytes=_sum(state, "memoryUsedBytes"),
        state_operators=storable(state) or None,
    )


def error_of(error: BaseException) -> dict[str, Any]:
    """Return an error as it is kept: no secrets, no more than a page, nothing that PostgreSQL refuses."""
    known = error if isinstance(error, EtlError) else EtlError(type(error).__name__, found=str(error))
    kept: dict[str, Any] = storable(masked(known.to_json()))
    return kept | {"type": type(error).__name__}


def range_of(start: Any, end: Any) -> dict[str, Any]:
    """Return offsets as Spark's progress has them."""
    return _kept({"startOffset": start, "endOffset": end})


def storable(value: Any) -> Any:
    """Return JSON that fits a jsonb column: no null characters, no halves of characters, no endless text."""
    match value:
        case str():
            text = value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
            return text if len(text) <= _MOST_TEXT else f"{text[: _MOST_TEXT - 1]}…"
        case dict():
            return {storable(str(name)): storable(item) for name, item in value.items()}
        case list() | tuple():
            return [storable(item) for item in value]
        case float() if not math.isfinite(value):
            return None
        case _:
            return value


def _kept(source: dict[str, Any]) -> dict[str, Any]:
    # Its description is a path or an address; offsets are no text of people's, and keys of theirs no names of secrets.
    # Masked before it is cut: half a secret would not be known again.
    masks = {"description": mask(str(source["description"]))} if "description" in source else {}
    found: dict[str, Any] = storable({**source, **masks})
    if len(json.dumps(found)) > _MOST_SOURCES:
        # batch_tracker has them.
        found = {name: value for name, value in found.items() if name not in _OFFSETS} | {"offsetsCut": True}
    return found


def _behind(sources: list[dict[str, Any]], backlog: Backlog) -> BatchSize:
    if len(sources) != 1:
        return BatchSize()
    end, latest = sources[0].get("endOffset"), sources[0].get("latestOffset")
    return BatchSize() if end is None or latest is None else backlog(end, latest)


def _instant(text: Any) -> datetime | None:
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        # Beyond year 9999, which Spark knows and Python does not.
        return moment(_MOST_BIGINT) if str(text).startswith("+") else None
    return readable(found if found.tzinfo else found.replace(tzinfo=UTC))


def _watermark(text: Any) -> datetime | None:
    found = None if text is None else _instant(text)
    # Spark's word for none yet.
    return None if found is None or found.timestamp() == 0 else found


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and 0 <= value <= _MOST_BIGINT else None


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _sum(operators: list[dict[str, Any]], name: str) -> int | None:
    return _whole(sum(int(operator.get(name, 0)) for operator in operators)) if operators else None
