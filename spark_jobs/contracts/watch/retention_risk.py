"""How long the broker still keeps what a pipeline has not read: the time to act before rows are lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, Final

from pydantic import Field

from spark_jobs.contracts.errors import ConfigError, SourceRowsLostError
from spark_jobs.contracts.watch.condition import (
    Age,
    AtLedger,
    AtSource,
    Condition,
    Credentials,
    LedgerView,
    Seen,
    in_words,
)
from spark_jobs.contracts.watch.kafka_position import KafkaPosition, position
from spark_jobs.contracts.watch.unread import Unread, left_behind, require_past, unread, without_time

_MOST_NAMED: Final = 20


@dataclass(frozen=True, slots=True)
class _Keeping:
    """How a topic loses its records.

    :param seconds: None when time deletes none. :param size: ``retention.bytes``, None when size deletes none.
    """

    seconds: float | None
    size: int | None
    compacted: bool

    @classmethod
    def of(cls, settings: Mapping[str, str]) -> _Keeping:
        policies = {policy.strip() for policy in settings.get("cleanup.policy", "delete").split(",")}
        time, size = int(settings.get("retention.ms", -1)), int(settings.get("retention.bytes", -1))
        deletes = "delete" in policies
        return cls(
            seconds=time / 1000 if deletes and time >= 0 else None,
            size=size if deletes and size >= 0 else None,
            compacted="compact" in policies,
        )


class RetentionRisk(Condition):
    """Holds when what was not read yet is kept long enough, or for ever.

    The broker deletes whole segments, each after its youngest record's time: the time that is left is the shortest
    possible. Size and compaction delete by no clock: they are named, and do not fail.

    :param at_least: how long the first unread record of each partition must be kept still.
    """

    title: ClassVar[str] = "The risk of retention"

    at_least: Age = Field(gt=timedelta())

    def _look(self, view: LedgerView) -> AtSource:
        place, credentials = position(view, self.pipeline), view.credentials
        return AtSource(place.system, lambda: self._ask(place, credentials))

    def _ask(self, place: KafkaPosition, credentials: Credentials) -> Seen | AtLedger:
        with place.client(credentials) as client:
            found = unread(place, client)
            if found is None:
                text = f"{self.pipeline}: {place.says}, and it begins with what comes after its first start"
                return Seen(done=False, message=f"{text} (startingOffsets latest): nothing is waiting to be read yet")
            if lost := [one for one in found if one.lost]:
                return AtLedger(lambda view: self._lost(view, lost))
            settings = client.topic_settings(topics) if (topics := {one.topic for one in found if one.record}) else {}
        return self._seen(place, found, {topic: _Keeping.of(values) for topic, values in settings.items()})

    def _lost(self, view: LedgerView, lost: list[Unread]) -> Seen:
        # Rows that were read and committed while the broker was asked may be deleted: nothing is lost by that.
        place = position(view, self.pipeline)
        now = place.offsets or {}
        left = [one for one in lost if now.get((one.topic, one.partition), one.begin) < one.first]
        if not left:
            return Seen(done=False, message=f"{self.pipeline}: {place.says} meanwhile; looking again")
        raise SourceRowsLostError(
            f"The broker has deleted what pipeline {self.pipeline!r} had not read: those rows are lost",
            found="; ".join(f"{_hole(one, now)}" for one in left[:_MOST_NAMED]),
            expected=f"the first offset that is left to be no later than the ledger's ({place.says})",
            cure="raise the topic's retention or run the pipeline more often; with failOnDataLoss=false the next run "
            "goes on behind the hole and records it (source_gap), else it stops there",
        )

    def _seen(self, place: KafkaPosition, found: list[Unread], keeping: Mapping[str, _Keeping]) -> Seen:
        waiting = [one for one in found if one.record]
        timed = [one for one in waiting if keeping[one.topic].seconds is not None]
        require_past(place, timed)
        self._require_times(timed)
        left = min((_left(one, keeping[one.topic], place.now) for one in timed), key=lambda item: item[0], default=None)
        value: dict[str, Any] = {
            "hours_left": round(left[0] / 3600, 3) if left else None,
            "rows": sum(one.rows for one in waiting),
            "size_limited": _by_size(waiting, keeping),
            "compacted": sorted({one.topic for one in waiting if keeping[one.topic].compacted}),
        }
        done = left is None or left[0] >= self.at_least.total_seconds()
        said = [_kept(waiting, left), *_by_no_clock(value, keeping), *left_behind(place, found)]
        return Seen(done=done, message=f"{self.pipeline}: {place.says}; {'; '.join(said)}", value=value)

    def _require_times(self, timed: list[Unread]) -> None:
        if one := without_time(timed):
            raise ConfigError(
                f"How long what {self.pipeline!r} has not read is kept cannot be told",
                found=f"{one.says}: its record has no time",
                expected="records with a time, as Kafka has had them since version 0.10",
            )


def _left(one: Unread, keeping: _Keeping, now: float) -> tuple[float, Unread]:
    age, seconds = one.age(now), keeping.seconds
    assert age is not None and seconds is not None  # noqa: S101, PT018 - looked at by the caller
    return seconds - age, one


def _kept(waiting: list[Unread], left: tuple[float, Unread] | None) -> str:
    if not waiting:
        return "nothing is unread"
    if left is None:
        return f"at most {sum(one.rows for one in waiting)} unread rows, and no time after which they are deleted"
    seconds, one = left
    when = f"in {in_words(seconds)} at the earliest" if seconds > 0 else "from now on, with the next clean-up"
    return f"unread rows may be deleted {when} (retention.ms; {one.says})"


def _by_size(waiting: list[Unread], keeping: Mapping[str, _Keeping]) -> dict[str, float]:
    """Return which part of what the broker keeps is unread, where size limits it; the most first."""
    shares = {
        one.name: round(one.rows / (one.end - one.first), 3) for one in waiting if keeping[one.topic].size is not None
    }
    return dict(sorted(shares.items(), key=lambda item: -item[1])[:_MOST_NAMED])


def _by_no_clock(value: Mapping[str, Any], keeping: Mapping[str, _Keeping]) -> list[str]:
    said = []
    if shares := value["size_limited"]:
        name, share = next(iter(shares.items()))
        size = keeping[name.rpartition("[")[0]].size
        said.append(f"retention.bytes={size} deletes by no clock: of what {name} keeps, {share:.0%} are unread")
    if topics := value["compacted"]:
        said.append(f"compacted: of {', '.join(topics)}, older values of a key may go before they are read")
    return said


def _hole(one: Unread, now: Mapping[tuple[str, int], int]) -> str:
    begin = now.get((one.topic, one.partition), one.begin)
    return f"{one.name} offsets {begin} to {one.first}, at most {one.first - begin} rows"
