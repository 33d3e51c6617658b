"""What a checkpoint says, as far as a restart asks for it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

from spark_jobs.contracts.audit.files import CheckpointFiles
from spark_jobs.contracts.audit.logs import (
    Planned,
    SourceEntry,
    TornError,
    check_commit,
    parse_metadata,
    parse_planned,
    read_text,
    source_entries,
)

NEWEST: Final = 100
"""How many of the newest micro-batches are looked at: as many as Spark keeps, unless it is told otherwise."""
_LOGS: Final = ("offsets", "commits", "sources", "state")
_SEEDING: Final = "etl-seeding"
_FILE_LOG: Final = "sources/0"


@dataclass(frozen=True, slots=True)
class Heads:
    """Which micro-batches the logs name, in order."""

    offsets: tuple[int, ...]
    commits: tuple[int, ...]

    @property
    def planned(self) -> int | None:
        """The newest one that was planned."""
        return max(self.offsets, default=None)

    @property
    def committed(self) -> int | None:
        """The newest one that was committed."""
        return max(self.commits, default=None)

    @property
    def window(self) -> tuple[int, int]:
        """The newest :data:`NEWEST` micro-batches, first and last; from 0 to 0 without any."""
        last = max((*self.offsets, *self.commits), default=0)
        return max(last - NEWEST + 1, 0), last

    def holes(self) -> list[str]:
        """Return, in words, what is missing among the newest micro-batches."""
        found = [
            f"{log}/{_ranges(missing)} missing"
            for log, numbers in (("offsets", self.offsets), ("commits", self.commits))
            if (missing := _missing(numbers))
        ]
        planned, committed = self.planned, self.committed
        if committed is not None and (planned is None or planned < committed):
            found.append(f"commits/{committed}, and no offsets/{committed}")
        if planned is not None and planned > 0 and (committed is None or committed < planned - 1):
            after = "nothing" if committed is None else f"nothing after commits/{committed}"
            found.append(f"offsets/{planned}, and {after}")
        return found


@dataclass(slots=True)
class FileSum:
    """Files without their order: two sums are equal when the files are, but for one chance in 2^64."""

    files: int = 0
    digest: int = 0

    def add(self, path: str) -> None:
        """Count a file."""
        self.files += 1
        self.digest += int.from_bytes(sha256(path.encode("utf-8", "surrogatepass")).digest()[:8], "big", signed=True)


@dataclass(slots=True)
class Image:
    """A checkpoint as it was when it was read.

    :param planned: entries of the offset log, of the newest :data:`NEWEST` committed or planned micro-batches.
    :param damage: what cannot be read, in words.
    """

    query_id: str | None
    heads: Heads
    has_logs: bool
    half_seeded: bool
    planned: dict[int, Planned] = field(default_factory=dict)
    damage: list[str] = field(default_factory=list)


def read_heads(files: CheckpointFiles) -> Heads:
    """Return which micro-batches there are. Commits come first: a driver writes offsets before, so none is missing."""
    commits = _numbers(files, "commits")
    return Heads(_numbers(files, "offsets"), commits)


def read_image(files: CheckpointFiles) -> Image:
    """Read a checkpoint, but for its log of files.

    :raises CheckpointUnreadableError: its storage fails.
    """
    damage: list[str] = []
    query_id = _query_id(files, damage)
    heads = read_heads(files)
    has_logs = bool(heads.offsets or heads.commits) or any(files.names(folder) for folder in _LOGS)
    half_seeded = query_id is None and _SEEDING in files.names()
    image = Image(query_id, heads, has_logs, half_seeded, damage=damage)
    for number in (number for number in heads.offsets if number >= heads.window[0]):
        _read_planned(files, number, image)
    # Spark reads the newest one only.
    for number in heads.commits[-1:]:
        _check(files, f"commits/{number}", damage)
    return image


class SourceLog:
    """The file source's log: which files were read, in which entry.

    :param first, last: the entries that are wanted, both included.
    """

    def __init__(self, files: CheckpointFiles, first: int, last: int) -> None:
        self._files = files
        self._first = first
        self._last = last

    def entries(self) -> Iterator[SourceEntry]:
        """Yield the files in any order; one line in memory at a time.

        :raises TornError: an entry is missing, or cannot be read.
        """
        names = self._files.names(_FILE_LOG)
        plain = {int(name) for name in names if name.isdigit()}
        compact = max((int(name[:-8]) for name in names if _is_compact(name)), default=-1)
        if compact >= self._first:
            yield from self._of(f"{_FILE_LOG}/{compact}.compact")
        for number in range(max(self._first, compact + 1), self._last + 1):
            if number not in plain:
                raise TornError(f"{_FILE_LOG}/{number} is missing")
            yield from (entry for entry in self._of(f"{_FILE_LOG}/{number}") if entry.number == number)

    def _of(self, name: str) -> Iterator[SourceEntry]:
        try:
            with self._files.open(name) as stream:
                for entry in source_entries(stream):
                    if self._first <= entry.number <= self._last:
                        yield entry
        except FileNotFoundError:
            raise TornError(f"{name} is missing") from None
        except TornError as error:
            raise TornError(f"{name}: {error}") from None


def log_offset(planned: Planned | None) -> int | None:
    """Return the entry of the file source's log that a micro-batch ends with; None for another source."""
    source = planned.sources[0] if planned and len(planned.sources) == 1 else None
    offset = source.get("logOffset") if isinstance(source, dict) and source.keys() == {"logOffset"} else None
    return offset if isinstance(offset, int) and not isinstance(offset, bool) else None


def sum_files(entries: Iterator[SourceEntry], ends: Sequence[tuple[int, int]]) -> dict[int, FileSum]:
    """Add up files by micro-batch.

    :param ends: each micro-batch with its last entry of the log, in order.
    """
    numbers, batches = [end for _, end in ends], [batch for batch, _ in ends]
    found = {batch: FileSum() for batch in batches}
    for entry in entries:
        found[batches[bisect_left(numbers, entry.number)]].add(entry.path)
    return found


def _query_id(files: CheckpointFiles, damage: list[str]) -> str | None:
    try:
        with files.open("metadata") as stream:
            return parse_metadata(read_text(stream))
    except FileNotFoundError:
        return None
    except TornError as error:
        damage.append(f"metadata: {error}")
        return None


def _read_planned(files: CheckpointFiles, number: int, image: Image) -> None:
    try:
        with files.open(f"offsets/{number}") as stream:
            image.planned[number] = parse_planned(read_text(stream))
    except FileNotFoundError:
        # Removed since it was listed, as Spark does with old ones.
        return
    except TornError as error:
        image.damage.append(f"offsets/{number}: {error}")


def _check(files: CheckpointFiles, name: str, damage: list[str]) -> None:
    try:
        with files.open(name) as stream:
            check_commit(read_text(stream))
    except FileNotFoundError:
        return
    except TornError as error:
        damage.append(f"{name}: {error}")


def _numbers(files: CheckpointFiles, folder: str) -> tuple[int, ...]:
    return tuple(sorted(int(name) for name in files.names(folder) if name.isdigit()))


def _is_compact(name: str) -> bool:
    return name.endswith(".compact") and name[:-8].isdigit()


def _missing(numbers: Sequence[int]) -> list[int]:
    """Return what is missing between the newest entries; of older ones Spark removes some after the other."""
    newest = numbers[-NEWEST:]
    if not newest:
        return []
    there = set(newest)
    return [number for number in range(max(newest[0], newest[-1] - NEWEST + 1), newest[-1]) if number not in there]


def _ranges(numbers: Sequence[int]) -> str:
    """Return numbers in order as people write them, such as ``1, 4-6``; only the first twenty ranges."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    shown = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges[:20])
    return f"{shown}, …" if len(ranges) > 20 else shown


def in_ranges(numbers: Sequence[int]) -> str:
    """Return micro-batches in words."""
    return _ranges(sorted(numbers))


def last_source(image: Image, batch_id: int | None) -> Any:
    """Return where the only source ends with a micro-batch; None where it is not known."""
    planned = image.planned.get(batch_id) if batch_id is not None else None
    return planned.sources[0] if planned and len(planned.sources) == 1 else None
