"""The names of the provider's metrics, and the way to whatever receives Airflow's own: StatsD, Datadog, OpenTelemetry.

A metric that cannot be sent is a line in the log and nothing else.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

from airflow.sdk.observability import stats

log = logging.getLogger(__name__)

RUN_ENDED: Final = "etl.run.ended"
RUN_ATTEMPTS: Final = "etl.run.attempts"
RUN_RETRIES: Final = "etl.run.retries"
RUN_RETRY_WAIT: Final = "etl.run.retry_wait"
RUN_DEAD_LETTERS: Final = "etl.run.dead_letters"
REPLAY_LETTERS: Final = "etl.replay.letters"
BREAKER_CHANGES: Final = "etl.breaker.changes"
BREAKER_OPEN: Final = "etl.breaker.open"

TAGS: Final[dict[str, tuple[str, ...]]] = {
    RUN_ENDED: ("pipeline_id", "work", "exit"),
    RUN_ATTEMPTS: ("pipeline_id", "work"),
    RUN_RETRIES: ("pipeline_id", "work", "kind"),
    RUN_RETRY_WAIT: ("pipeline_id", "work", "kind"),
    RUN_DEAD_LETTERS: ("pipeline_id", "work", "stage"),
    REPLAY_LETTERS: ("pipeline_id", "outcome"),
    BREAKER_CHANGES: ("pipeline_id", "system", "to"),
    BREAKER_OPEN: ("system",),
}
"""All names, each with its tags."""

# Airflow drops a StatsD line with other characters, or with more than 250 of them, its tags included.
_UNFIT = re.compile(r"[^a-zA-Z0-9_.-]+")
_LONGEST = 90


def count(name: str, number: int, **tags: str) -> None:
    """Add to a counter; nothing is sent for nothing."""
    if number:
        _send(stats.incr, name, number, tags)


def timing(name: str, seconds: float, **tags: str) -> None:
    """Tell how long something took."""
    _send(stats.timing, name, timedelta(seconds=seconds), tags)


def gauge(name: str, value: float, **tags: str) -> None:
    """Tell how something stands."""
    _send(stats.gauge, name, value, tags)


def _send(how: Callable[..., None], name: str, value: Any, tags: dict[str, str]) -> None:
    try:
        how(name, value, tags={tag: _UNFIT.sub("_", tags[tag])[:_LONGEST] for tag in TAGS[name]})
    except Exception as error:  # noqa: BLE001 - whatever the backend raises: no task fails for a metric
        log.warning("Metric %s was not sent: %s: %s", name, type(error).__name__, error)
