"""The source compared with the checkpoint: is what comes next still there, and does it reach as far as was read?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from spark_jobs.contracts.audit.checkpoint import Image, last_source
from spark_jobs.contracts.audit.files import OpenFiles
from spark_jobs.contracts.audit.report import Finding, State
from spark_jobs.contracts.config import PipelineConfig
from spark_jobs.contracts.errors import CheckpointUnreadableError, EtlError
from spark_jobs.contracts.kafka_client import Partition
from spark_jobs.contracts.watch.condition import LedgerView
from spark_jobs.contracts.watch.kafka_position import KafkaPosition, position
from spark_jobs.contracts.watch.offsets import by_partition

_MOST_NAMED: Final = 20
_PATTERN: Final = frozenset("*?[{")
_NOT_THERE: Final = "UNKNOWN_TOPIC"


def source_findings(
    view: LedgerView, config: PipelineConfig, image: Image, start_offsets: Any, open_files: OpenFiles
) -> tuple[list[Finding], list[str]]:
    """Return what is wrong with the source, and what was not looked at.

    A source that does not answer is a finding ``unknown``.

    :param start_offsets: where the query began, if it was resumed from the ledger.
    """
    try:
        if config.extract.source_type == "kafka":
            return list(_kafka(view, config, image, start_offsets)), []
        if config.extract.source_type == "file":
            return _folder(config, open_files)
    except EtlError as error:
        return [_failed(error)], []
    return [], [f"the source: of {config.extract.source_type!r} nothing can be asked from here"]


def _kafka(view: LedgerView, config: PipelineConfig, image: Image, start_offsets: Any) -> Iterator[Finding]:
    nothing_yet = image.heads.committed is None
    begin = by_partition(start_offsets if nothing_yet else last_source(image, image.heads.committed))
    reach = by_partition(last_source(image, image.heads.planned)) or begin
    if reach is None:
        return
    place = position(view, config.pipeline_id)
    with place.client(view.credentials) as client:
        there = client.partitions(place.subscription)
        first, end = client.first_offsets(there), client.end_offsets(there)
    yield from _gone(reach, there)
    yield from _deleted(place, begin or {}, first)
    yield from _beyond(reach, end)


def _gone(reach: dict[Partition, int], there: set[Partition]) -> Iterator[Finding]:
    if gone := sorted(reach.keys() - there):
        yield Finding(
            state=State.SOURCE,
            found=f"partitions that were read and are not there, or not subscribed to, any more: {_names(gone)}",
            expected="every partition of the checkpoint's offsets",
            advice="bring the topic back, or subscribe to it again; to give up what is left there, set "
            "failOnDataLoss to false",
        )


def _deleted(place: KafkaPosition, begin: dict[Partition, int], first: dict[Partition, int]) -> Iterator[Finding]:
    lost = sorted(one for one in begin.keys() & first.keys() if 0 <= begin[one] < first[one])
    if lost:
        holes = ", ".join(f"{_name(one)} offsets {begin[one]} to {first[one]}" for one in lost[:_MOST_NAMED])
        goes_on = (place.option("failOnDataLoss") or "true").lower() == "false"
        yield Finding(
            state=State.SOURCE,
            found=f"deleted by the broker before they were read: {holes}, at most "
            f"{sum(first[one] - begin[one] for one in lost)} rows",
            expected="the first offset that the broker has to be no later than where the checkpoint goes on",
            advice="the next run goes on behind the hole and records it (source_gap): load what is missing from "
            "elsewhere"
            if goes_on
            else "raise the topic's retention or run more often; the next run stops there (exit code 6), unless "
            "failOnDataLoss is false: then it goes on behind the hole and records it",
        )


def _beyond(reach: dict[Partition, int], end: dict[Partition, int]) -> Iterator[Finding]:
    ahead = sorted(one for one in reach.keys() & end.keys() if reach[one] > end[one])
    if ahead:
        names = ", ".join(f"{_name(one)} ends at {end[one]}, read up to {reach[one]}" for one in ahead[:_MOST_NAMED])
        yield Finding(
            state=State.SOURCE,
            found=names,
            expected="a topic that only grows",
            advice="the topic was deleted and made anew, lost records, or is another cluster's: what it has now would "
            "be skipped. Bring the old one back; or give the pipeline a new checkpoint, as when it is lost",
        )


def _folder(config: PipelineConfig, open_files: OpenFiles) -> tuple[list[Finding], list[str]]:
    path = config.extract.path or config.extract.option("path") or ""
    # Of a pattern, the folder before it.
    parts = path.split("/")
    plain = next((i for i, part in enumerate(parts) if _PATTERN & set(part)), len(parts))
    folder = "/".join(parts[:plain]) or "/"
    try:
        files = open_files(folder)
        there, told = files.exists(), files.place_exists()
    except CheckpointUnreadableError as error:
        # Only Spark needs to read it.
        return [], [f"the source: {error.what} ({error.found})"]
    if there:
        return [], []
    if not told:
        return [], [
            f"the source: not even the folder that {folder} lies in is there, so it may be a disk of the driver's"
        ]
    missing = Finding(
        state=State.SOURCE,
        found=f"no {folder}",
        expected="the folder that extract.connectionParams.path names",
        advice="mount or restore it, or correct the path",
    )
    return [missing], []


def _failed(error: EtlError) -> Finding:
    gone = _NOT_THERE in error.found
    return Finding(
        state=State.SOURCE if gone else State.UNKNOWN,
        found=f"{error.what}: {error.found}" if error.found else error.what,
        expected=error.expected or "a source that answers",
        advice=error.cure or "look again",
        passing=error.retryable and not gone,
    )


def _names(places: list[Partition]) -> str:
    return ", ".join(map(_name, places[:_MOST_NAMED]))


def _name(place: Any) -> str:
    return f"{place[0]}[{place[1]}]"
