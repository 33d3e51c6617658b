"""Arithmetic of source offsets, as the ledger keeps them: do two micro-batches join up?

Kafka's offset is ``{topic: {partition: next offset}}``. A file source's is ``{"logOffset": n}``, an entry of the
checkpoint's own log; the rate source's and others' are a number or an object that can only be compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Offsets = Any
"""A parsed JSON value; None before the first micro-batch."""


class Seam(BaseModel):
    """A place where two ranges of a source do not join up.

    :param where: topic and partition, or "" for a source without.
    :param kind: ``hole``: nobody read from ``end`` up to ``start``; ``overlap``: it was read twice; ``other``: the
        offsets differ, and only the source could tell which it is.
    :param rows: how many offsets, where they are numbers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    where: str
    kind: Literal["hole", "overlap", "other"]
    end: Any
    start: Any
    rows: int | None = None

    def __str__(self) -> str:
        place = f"{self.where} " if self.where else ""
        if self.kind == "hole":
            return f"{place}offsets {self.end} to {self.start} were never read"
        if self.kind == "overlap":
            return f"{place}offsets {self.start} to {self.end} were read twice"
        return f"{place}ends at {self.end}, goes on at {self.start}"


def by_partition(offsets: Offsets) -> dict[tuple[str, int], int] | None:
    """Return Kafka's offsets by topic and partition; None for another kind of offset."""
    if not isinstance(offsets, Mapping) or not offsets:
        return None
    if not all(isinstance(parts, Mapping) for parts in offsets.values()):
        return None
    try:
        return {(topic, int(part)): int(offset) for topic, parts in offsets.items() for part, offset in parts.items()}
    except (TypeError, ValueError):
        # Of another source, which names and counts otherwise.
        return None


def seams(end: Offsets, start: Offsets) -> Iterator[Seam]:
    """Yield where the range that begins at ``start`` does not join up with the one that ended at ``end``.

    A partition that only one of them names joins up: it is new, or was deleted with its topic (which the ledger's
    gaps tell). One that is new must begin at its first offset, which only the broker knows.
    """
    before, after = by_partition(end), by_partition(start)
    if before is not None and after is not None:
        for topic, part in sorted(before.keys() & after.keys()):
            yield from _of_numbers(f"{topic}[{part}]", before[topic, part], after[topic, part])
        return
    ends, starts = _number(end), _number(start)
    if ends is not None and starts is not None:
        yield from _of_numbers("", ends, starts)
    elif end != start:
        yield Seam(where="", kind="other", end=end, start=start)


def reaches(offsets: Offsets, wanted: Offsets) -> bool:
    """Tell whether ``offsets`` are at ``wanted`` or behind it, in each partition that ``wanted`` names."""
    have, want = by_partition(offsets), by_partition(wanted)
    if want is not None:
        return have is not None and all(have.get(key, -1) >= offset for key, offset in want.items())
    number, least = _number(offsets), _number(wanted)
    if number is not None and least is not None:
        return number >= least
    return bool(offsets == wanted)


def _number(offsets: Offsets) -> int | None:
    if isinstance(offsets, Mapping) and offsets.keys() == {"logOffset"}:
        offsets = offsets["logOffset"]
    return offsets if isinstance(offsets, int) and not isinstance(offsets, bool) else None


def _of_numbers(where: str, end: int, start: int) -> Iterator[Seam]:
    if start != end:
        kind: Literal["hole", "overlap"] = "hole" if start > end else "overlap"
        yield Seam(where=where, kind=kind, end=end, start=start, rows=abs(start - end))
