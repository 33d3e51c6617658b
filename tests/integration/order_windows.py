"""What Spark's watermark makes of order events, computed without Spark: windows, late rows, batch by batch.

Spark's rules in short: the watermark moves after a micro-batch, to the largest event time seen so far less the delay; a
micro-batch drops a row whose window had ended at the watermark of the batch before, and closes the windows that have
ended at its own. With AvailableNow a micro-batch without rows follows where the watermark has moved.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from sandbox.orders import Event

_LENGTH = timedelta(minutes=5)
_DELAY = timedelta(minutes=10)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CENT = Decimal("0.000001")

Key = tuple[datetime, str]


@dataclass
class Batch:
    """One micro-batch's books."""

    source: int = 0
    dead_lettered: int = 0
    late: int = 0
    written: int = 0


@dataclass
class Windows:
    """Five-minute windows per country under a watermark of ten minutes."""

    closed: dict[Key, tuple[int, int, Decimal]] = field(default_factory=dict)
    batches: list[Batch] = field(default_factory=list)
    _open: dict[Key, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    _watermark: datetime = _EPOCH
    _late_before: datetime = _EPOCH

    def run(self, events: Iterable[Event]) -> None:
        """Take one run of an AvailableNow trigger whose events fit one micro-batch."""
        newest = self._batch(list(events))
        if newest > self._watermark:
            self._late_before, self._watermark = self._watermark, newest
            self.batches.append(Batch(written=self._close()))
        self._late_before = self._watermark

    def _batch(self, events: list[Event]) -> datetime:
        batch = Batch(source=len(events))
        newest = self._watermark
        for event in events:
            if not event.is_readable:
                batch.dead_lettered += 1
                continue
            newest = max(newest, event.created_at - _DELAY)
            start = event.created_at - (event.created_at - _EPOCH) % _LENGTH
            if start + _LENGTH <= self._late_before:
                batch.late += 1
            else:
                self._open[start, event.country].append(json.loads(event.line, parse_float=Decimal))
        batch.written = self._close()
        self.batches.append(batch)
        return newest

    def _close(self) -> int:
        ended = [key for key in self._open if key[0] + _LENGTH <= self._watermark]
        for key in ended:
            orders = self._open.pop(key)
            prices = sum((Decimal(order["price"]) for order in orders), Decimal(0))
            average = (prices / len(orders)).quantize(_CENT, ROUND_HALF_UP)
            assert key not in self.closed
            self.closed[key] = (len(orders), sum(order["quantity"] for order in orders), average)
        return len(ended)
