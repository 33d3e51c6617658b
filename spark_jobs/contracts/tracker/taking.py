"""Taking letters for a replay, in one transaction: bundles whole where all of each is meant, and apart elsewhere.

A letter belongs to at most one replay: taking it is an update of its own row, or of its bundle's. Each gets a place in
the replay's order, a bundle a range of places.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg.types.json import Jsonb

from spark_jobs.contracts.replay import ClassOutcome, ReplayMode, ReplayRequest
from spark_jobs.contracts.tracker.bundles import of_bundles, single_out, take_apart
from spark_jobs.contracts.tracker.connect import Connection, query
from spark_jobs.contracts.tracker.fence import check_fence
from spark_jobs.contracts.tracker.letter_filters import conditions
from spark_jobs.contracts.tracker.taking_statements import (
    APART,
    BATCHES,
    LEFT,
    LOOK,
    NUMBER,
    OPEN,
    PARK,
    PERHAPS_SENT,
    SENDABLE,
    TAKE,
    TOO_LARGE,
    WITHIN_LIMIT,
    WORN_OUT,
    WOULD_PARK,
)


@dataclass(frozen=True, slots=True)
class Taken:
    """What an attempt at a replay took.

    :param letters: how many. :param first: their positions are above this one, without holes.
    :param batches: how many micro-batches earlier attempts have committed.
    :param released: how many letters it had to free from replays whose drivers are gone.
    :param parked: those that had failed as often as they may; a dry run tells what would be parked.
    :param ends: the last positions of the micro-batches to come.
    :param unsendable: how many a redrive left where they are, for they hold no record that could be sent.
    :param perhaps_sent: how many a reprocess left, for a redrive that died may have sent them.
    """

    letters: int
    first: int
    batches: int
    released: int
    parked: tuple[ClassOutcome, ...]
    ends: tuple[int, ...]
    unsendable: int
    perhaps_sent: int

    @property
    def last(self) -> int:
        """The last letter's position."""
        return self.first + self.letters


@dataclass(frozen=True, slots=True)
class Taking:
    """One transaction that takes letters for a request.

    :param run_id: the replay's run, with ``epoch``. :param released: how many letters were freed for it before.
    """

    conn: Connection
    schema: str
    request: ReplayRequest
    run_id: str
    epoch: int
    released: int

    def run(self) -> Taken:
        """Take them; in the caller's transaction.

        :raises FencedError: a newer run of the replay exists.
        """
        request, values = self.request, self._values()
        # What a redrive has perhaps sent is looked up in memory only where the planner believes that it fits.
        self._query("SET LOCAL work_mem = '256MB'")
        opened = self._query(OPEN, values).fetchone()
        values["first"] = first = int(opened[0]) if opened else 0
        batches = self._query(BATCHES, (request.own_pipeline_id, str(request.replay_id))).fetchone()
        if not request.dry_run:
            self._prepare(values)
        parked = self._query(self._of(WOULD_PARK if request.dry_run else PARK), values).fetchall()
        taken = self._query(self._of(LOOK if request.dry_run else TAKE) + NUMBER, values).fetchone()
        letters, bundles = (int(taken[0]), list(taken[1])) if taken else (0, [])
        values["letters"] = first + letters
        self._query(
            "UPDATE {schema}.dead_letter_replay SET letters = %(letters)s WHERE replay_id = %(replay_id)s", values
        )
        check_fence(self.conn, self.schema, request.own_pipeline_id, self.run_id, self.epoch, lock=True)
        return Taken(
            letters,
            first,
            int(batches[0]) if batches else 0,
            self.released,
            tuple(ClassOutcome(stage=stage, error_class=kind, parked=letters) for stage, kind, letters in parked),
            _ends(first, first + letters, request.letters_per_batch, bundles),
            self._count(f"NOT ({SENDABLE})", values) if self._leaves_unsendable else 0,
            self._count_perhaps_sent(values) if self._leaves_perhaps_sent else 0,
        )

    def _prepare(self, values: dict[str, Any]) -> None:
        """Take bundles apart of which not all letters go the same way."""
        single_out(self.conn, self.schema, self.request.letters)
        which = "true"
        if self._whole:
            which = TOO_LARGE
        elif self.request.limit is not None:
            which = WITHIN_LIMIT
        if self._whole or not self.request.letters.ids:
            take_apart(self.conn, self.schema, self._of(APART.replace("WHICH", which)), values)

    @property
    def _whole(self) -> bool:
        # A redrive remembers of each letter whether it was perhaps sent.
        request = self.request
        return request.mode is ReplayMode.REPROCESS and request.limit is None and not request.letters.ids

    @property
    def _leaves_unsendable(self) -> bool:
        # Who names letters by their ids means these.
        return self.request.mode is ReplayMode.REDRIVE and not self.request.letters.ids

    @property
    def _leaves_perhaps_sent(self) -> bool:
        return self.request.mode is ReplayMode.REPROCESS and not self.request.not_sent

    def _count_perhaps_sent(self, values: dict[str, Any]) -> int:
        # There is hardly ever such a redrive, and often there are many letters.
        marks = self._query("SELECT EXISTS (SELECT FROM {schema}.dead_letter_redrive)").fetchone()
        return self._count(PERHAPS_SENT, values) if marks and marks[0] else 0

    def _count(self, left_out: str, values: dict[str, Any]) -> int:
        question = LEFT.replace("SINGLES", conditions(self.request.letters)[0]).replace("LEFT_OUT", left_out)
        row = self._query(question, values).fetchone()
        return int(row[0]) if row else 0

    def _of(self, statement: str) -> str:
        singles, bundles = conditions(self.request.letters)[0], of_bundles(self.request.letters)[0]
        if self._leaves_perhaps_sent:
            singles += f" AND NOT {PERHAPS_SENT}"
        elif self._leaves_unsendable:
            singles += f" AND {SENDABLE}"
            bundles += " AND has_raw_value"
        for name, condition in (("SINGLES", singles), ("BUNDLES", bundles), ("WORN_OUT", WORN_OUT)):
            statement = statement.replace(name, condition)
        return statement

    def _values(self) -> dict[str, Any]:
        request = self.request
        return {
            **conditions(request.letters)[1],
            "replay_id": request.replay_id,
            "pipeline_id": request.letters.pipeline_id,
            "mode": request.mode.value,
            "dry_run": request.dry_run,
            "request": Jsonb(request.model_dump(mode="json")),
            "by": self.run_id,
            "limit": request.limit,
            "per_batch": request.letters_per_batch,
            "most": request.max_attempts,
            "waiting": list(request.letters.statuses),
            "whole": self._whole,
        }

    def _query(self, statement: str, values: Any = None) -> Any:
        return query(self.conn, self.schema, statement, values)


def _ends(first: int, last: int, most: int, bundles: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return the last positions of the micro-batches: as many letters as may be, and no bundle in two of them.

    :param bundles: the positions before each one's first letter, and of its last, in their order; none has more letters
        than ``most``.
    """
    starts = [start for start, _ in bundles]
    ends: list[int] = []
    while first < last:
        end = min(first + most, last)
        across = bisect_left(starts, end) - 1
        if across >= 0 and bundles[across][1] > end:
            end = starts[across]
        ends.append(end)
        first = end
    return tuple(ends)
