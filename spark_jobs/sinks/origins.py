"""Where a refused row comes from, read from what came along with it. Executor side."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

Origin = Mapping[str, str]
"""``source``, the JSON of a row's coordinates; ``raw_key`` and ``raw_value`` in base64, ``raw_headers``, ``event_time``
(:func:`spark_jobs.rows.origin`). What there is not is left out; a row that is made of many has none."""


def stored_origin(text: str | None) -> Origin:
    """Return the origin that a staging table has of a row."""
    return json.loads(text) if text else {}


def carried_origin(source: Any, raw: Mapping[str, Any] | None) -> Origin:
    """Return the origin of a row as its Arrow values have it (:func:`spark_jobs.rows.origin_columns`).

    :param source: its coordinates, or the JSON of them. :param raw: the record as it came, if the source has one.
    """
    found = {"source": source if isinstance(source, str) else _coordinates(source)}
    for name, value in (raw or {}).items():
        if value is not None:
            found[f"raw_{name}"] = value if isinstance(value, str) else base64.b64encode(value).decode()
    return found


def _coordinates(source: Mapping[str, Any]) -> str:
    # As Spark's to_json writes them, by which the parse stage's letters have theirs.
    given = {name: _moment(value) for name, value in source.items() if value is not None}
    return json.dumps(given, ensure_ascii=False, separators=(",", ":"))


def _moment(value: Any) -> Any:
    if not isinstance(value, datetime):
        return value
    text = value.isoformat(timespec="milliseconds")
    return f"{text.removesuffix('+00:00')}Z" if text.endswith("+00:00") else text
