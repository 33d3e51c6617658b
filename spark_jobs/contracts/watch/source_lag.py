"""How far behind its Kafka topics a pipeline is, in rows and in seconds, without a consumer group."""

from __future__ import annotations

from typing import Any, ClassVar, Final

from pydantic import Field

from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.watch.condition import AtSource, Condition, Credentials, LedgerView, Seen, in_words
from spark_jobs.contracts.watch.kafka_position import KafkaPosition, position
from spark_jobs.contracts.watch.unread import Unread, left_behind, oldest, require_past, unread, without_time

_MOST_NAMED: Final = 20


class SourceLag(Condition):
    """Holds when the pipeline has caught up as far as is asked for; of two limits, when both are kept.

    Rows are counted by offsets, so there are at most as many. Seconds are the age of the oldest of the partitions'
    first unread records, by the record's own time and the clock of the ledger's server; 0 when nothing is unread.

    :param at_most_rows: how many rows it may be behind. :param at_most_seconds: how long.
    """

    title: ClassVar[str] = "Lag"

    at_most_rows: int | None = Field(None, ge=0)
    at_most_seconds: float | None = Field(None, ge=0, allow_inf_nan=False)

    def check(self) -> None:
        """Raise :class:`ConfigError` where there is no limit, or one says nothing beside the other."""
        if self.at_most_rows is None and self.at_most_seconds is None:
            raise ConfigError(
                "Nothing is waited for", found="neither at_most_rows nor at_most_seconds", expected="one of them"
            )
        if self.at_most_rows == 0 and self.at_most_seconds:
            raise ConfigError(
                "The limits of the lag contradict each other",
                found=f"at_most_rows=0 and at_most_seconds={self.at_most_seconds:g}: a row may be unread for a while, "
                "and none may be unread",
                expected="at_most_rows of 1 or more beside at_most_seconds, or one of them",
            )

    def _look(self, view: LedgerView) -> AtSource:
        place, credentials = position(view, self.pipeline), view.credentials
        return AtSource(place.system, lambda: self._ask(place, credentials))

    def _ask(self, place: KafkaPosition, credentials: Credentials) -> Seen:
        with place.client(credentials) as client:
            found = unread(place, client)
        if found is None:
            text = (
                f"{self.pipeline}: {place.says}, and it begins with what comes after its first start (startingOffsets "
            )
            return Seen(done=False, message=f"{text}latest): how far behind it is can be told from its first commit on")
        if self.at_most_seconds is not None:
            require_past(place, found)
            self._require_times(found)
        return self._seen(place, found)

    def _seen(self, place: KafkaPosition, found: list[Unread]) -> Seen:
        rows, old = sum(one.rows for one in found), oldest(found, place.now)
        seconds = max(old[1], 0.0) if old else 0.0
        done = (self.at_most_rows is None or rows <= self.at_most_rows) and (
            self.at_most_seconds is None or seconds <= self.at_most_seconds
        )
        said = [f"{place.says}, {self._behind(found, rows)}"]
        if old:
            said.append(f"the oldest is {in_words(seconds)} old ({old[0].says})")
        if lost := [one for one in found if one.lost]:
            said.append(f"deleted by the broker before they were read: {_lost(lost)}")
        said += left_behind(place, found)
        value: dict[str, Any] = {"rows": rows, "seconds": round(seconds, 3), "batch_id": place.batch_id}
        behind = sorted((one for one in found if one.rows), key=lambda one: -one.rows)
        value["partitions"] = {one.name: one.rows for one in behind[:_MOST_NAMED]}
        return Seen(done=done, message=f"{self.pipeline}: {'; '.join(said)}", value=value)

    def _behind(self, found: list[Unread], rows: int) -> str:
        if not rows:
            return f"and nothing is unread in {len(found)} partitions"
        behind = sum(one.rows > 0 for one in found)
        return f"at most {rows} rows behind in {behind} of {len(found)} partitions"

    def _require_times(self, found: list[Unread]) -> None:
        if one := without_time(found):
            raise ConfigError(
                f"The lag of {self.pipeline!r} in seconds cannot be told",
                found=f"{one.says}: its record has no time",
                expected="records with a time, as Kafka has had them since version 0.10",
                cure="use at_most_rows",
            )


def _lost(partitions: list[Unread]) -> str:
    return ", ".join(f"{one.name} offsets {one.begin} to {one.first}" for one in partitions[:_MOST_NAMED])
