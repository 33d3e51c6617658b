"""A day of a web shop's order events, the same for the same seed, with everything that makes real streams hard.

The events come in the order of their arrival, which is not the order of ``created_at``. Some lines are not JSON, some
hold a value of the wrong type, some orders arrive twice, some hours late, and one is stamped a year ahead. What each
line is, is known: :class:`Counts` says how the books must end.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from pathlib import Path

from sandbox.kafka import Record

SCHEMA = (
    "order_id BIGINT, customer_id BIGINT, sku STRING, country STRING, quantity INT, price DECIMAL(10,2), "
    "created_at TIMESTAMP"
)
_COUNTRIES = {"DE": 30, "FR": 20, "GB": 18, "NL": 10, "ES": 9, "IT": 8, "PL": 5}
_PRICES = {"lamp-01": 2499, "mug-07": 899, "poster-3": 1250, "chair-2": 8900, "pen-11": 249, "bag-05": 3999}
_LINE_FEED = "\n"


class Kind(Enum):
    """What a line is."""

    VALID = "valid"
    DUPLICATE = "duplicate"
    STRAGGLER = "straggler"
    FUTURE = "future"
    MALFORMED = "malformed"
    MISTYPED = "mistyped"


@dataclass(frozen=True)
class Event:
    """One line as it arrives; ``created_at`` and ``country`` are those of the order, also where it is unreadable."""

    kind: Kind
    arrives_at: datetime
    created_at: datetime
    country: str
    quantity: int
    key: str
    line: str

    @property
    def is_readable(self) -> bool:
        """Tell whether the line fits :data:`SCHEMA`."""
        return self.kind not in (Kind.MALFORMED, Kind.MISTYPED)


@dataclass(frozen=True)
class Counts:
    """How many lines there are of each kind."""

    valid: int
    duplicates: int
    stragglers: int
    future: int
    malformed: int
    mistyped: int

    @property
    def unreadable(self) -> int:
        """Lines that must become dead letters."""
        return self.malformed + self.mistyped

    @property
    def readable(self) -> int:
        """Lines that fit the schema, duplicates and late ones among them."""
        return self.valid + self.duplicates + self.stragglers + self.future

    @property
    def total(self) -> int:
        """All lines."""
        return self.readable + self.unreadable


@dataclass(frozen=True)
class OrderDay:
    """All events of a day, in the order of their arrival."""

    events: tuple[Event, ...]

    @property
    def counts(self) -> Counts:
        """Return how many lines there are of each kind."""
        found = Counter(event.kind for event in self.events)
        return Counts(
            valid=found[Kind.VALID],
            duplicates=found[Kind.DUPLICATE],
            stragglers=found[Kind.STRAGGLER],
            future=found[Kind.FUTURE],
            malformed=found[Kind.MALFORMED],
            mistyped=found[Kind.MISTYPED],
        )

    def windows(self, length: timedelta = timedelta(minutes=5)) -> dict[tuple[datetime, str], int]:
        """Return the number of readable orders for each window's start and country, as if none were ever late."""
        midnight = datetime(1970, 1, 1, tzinfo=UTC)
        return dict(
            Counter(
                (event.created_at - (event.created_at - midnight) % length, event.country)
                for event in self.events
                if event.is_readable
            )
        )

    def write_files(self, folder: Path, files: int = 24) -> list[Path]:
        """Write JSON-lines files in the order of arrival and return them.

        Each appears complete and at once, and is younger than the one before, so that a stream reads them in order.
        """
        folder.mkdir(parents=True, exist_ok=True)
        size = -(-len(self.events) // files)
        oldest = datetime.now(UTC).timestamp() - files
        written = []
        for number in range(files):
            part = self.events[number * size : (number + 1) * size]
            hidden = folder / f".orders-{number:03}.part"
            hidden.write_text("".join(event.line + _LINE_FEED for event in part), encoding="utf-8")
            os.utime(hidden, (oldest + number, oldest + number))
            written.append(hidden.rename(folder / f"orders-{number:03}.jsonl"))
        return written

    def records(self) -> Iterator[Record]:
        """Yield the same lines as Kafka records: keyed by order, stamped with the time of arrival."""
        for event in self.events:
            yield Record(event.line, key=event.key, timestamp_ms=int(event.arrives_at.timestamp() * 1000))


def order_day(seed: int = 1, orders: int = 20_000, day: date = date(2026, 3, 2)) -> OrderDay:
    """Make a day of about ``orders`` events."""
    chance = random.Random(seed)
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    events = []
    for number in range(1, orders + 1):
        event = _event(chance, number, midnight)
        events.append(event)
        if event.kind is Kind.VALID and chance.random() < 0.005:
            events.append(_again(chance, event))
    events.sort(key=lambda event: event.arrives_at)
    # Last to arrive: its stamp pushes the watermark past everything, which closes all windows of the day.
    events.append(_from_the_future(chance, orders + 1, events[-1].arrives_at))
    return OrderDay(tuple(events))


def _event(chance: random.Random, number: int, midnight: datetime) -> Event:
    # Busy in the evening, quiet at night.
    created = midnight + timedelta(hours=min(chance.triangular(0, 24, 18), 23.999))
    delay = timedelta(seconds=min(chance.expovariate(1 / 40), 420))
    kind = Kind.VALID
    fate = chance.random()
    if fate < 0.002:
        kind = Kind.MALFORMED
    elif fate < 0.004:
        kind = Kind.MISTYPED
    elif fate < 0.008 and created < midnight + timedelta(hours=16):
        kind, delay = Kind.STRAGGLER, timedelta(hours=chance.uniform(3, 7))
    return _make(chance, kind, number, created, created + delay)


def _make(chance: random.Random, kind: Kind, number: int, created: datetime, arrives: datetime) -> Event:
    created = created.replace(microsecond=created.microsecond // 1000 * 1000)
    country = chance.choices(list(_COUNTRIES), list(_COUNTRIES.values()))[0]
    sku = chance.choice(list(_PRICES))
    order = {
        "order_id": number,
        "customer_id": chance.randint(1, 5_000),
        "sku": sku,
        "country": country,
        "quantity": chance.choices([1, 2, 3, 4, 10], [60, 20, 10, 8, 2])[0],
        "price": _PRICES[sku] / 100,
        "created_at": created.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
    quantity = int(str(order["quantity"]))
    return Event(kind, arrives, created, country, quantity, str(number), _line(chance, kind, order))


def _line(chance: random.Random, kind: Kind, order: dict[str, object]) -> str:
    if kind is Kind.MISTYPED:
        name, value = chance.choice([("quantity", "three"), ("price", "a lot"), ("created_at", "yesterday")])
        order = {**order, name: value}
    line = json.dumps(order)
    return line[: chance.randint(5, len(line) - 5)] if kind is Kind.MALFORMED else line


def _again(chance: random.Random, event: Event) -> Event:
    arrives = event.arrives_at + timedelta(seconds=chance.uniform(0, 60))
    values = (event.created_at, event.country, event.quantity, event.key, event.line)
    return Event(Kind.DUPLICATE, arrives, *values)


def _from_the_future(chance: random.Random, number: int, arrives: datetime) -> Event:
    return _make(chance, Kind.FUTURE, number, arrives + timedelta(days=365), arrives + timedelta(seconds=1))
