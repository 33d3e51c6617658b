"""A micro-batch as the runtime sees it: identity, source range, and how far event time had come."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

from spark_jobs.contracts.errors import CheckpointMismatchError
from spark_jobs.contracts.tracker.records import BatchIdentity
from spark_jobs.runtime.checkpoint import Checkpoint
from spark_jobs.sinks.sorting import moment
from spark_jobs.sources.base import OffsetRange


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One micro-batch.

    :param watermark_ms: at the batch's start; 0 without a watermark.
    :param late_watermark_ms: what rows of this batch are compared with: the watermark of the batch before.
    :param planned_at: when Spark planned it; the same when it is done again.
    """

    identity: BatchIdentity
    offsets: OffsetRange
    watermark_ms: int
    late_watermark_ms: int
    planned_at: datetime

    @property
    def watermark(self) -> datetime | None:
        """The watermark as an instant; None before there is one."""
        return moment(self.watermark_ms * 1000) if self.watermark_ms > 0 else None


def identify(checkpoint: Checkpoint, pipeline_id: str, query_id: str, batch_id: int) -> MicroBatch:
    """Read from the checkpoint what a micro-batch is.

    Two batches are the same only if they read the same: for files an offset is only a number, so a digest of the
    source log's entries belongs to the identity.
    """
    entry = checkpoint.offsets(batch_id)
    if entry is None:
        raise CheckpointMismatchError(
            f"The checkpoint {checkpoint.location} has no offsets for micro-batch {batch_id}",
            expected=f"offsets/{batch_id}, which Spark writes before the batch",
            cure="Something removes files of the checkpoint while the query runs; find it and stop it",
        )
    before = checkpoint.offsets(batch_id - 1) if batch_id else None
    start = before.source if before else checkpoint.initial_offset()
    in_files = isinstance(entry.source, dict) and "logOffset" in entry.source
    files = checkpoint.source_files(start, entry.source) if in_files else ()
    digest = (
        sha256("\n".join(f"{f.path} {f.modified_at.isoformat()}" for f in files).encode()).hexdigest()
        if files
        else None
    )
    identity = BatchIdentity(
        pipeline_id=pipeline_id,
        query_id=query_id,
        batch_id=batch_id,
        start_offsets=start,
        end_offsets=entry.source,
        source_digest=digest,
    )
    return MicroBatch(
        identity=identity,
        offsets=OffsetRange(start, entry.source, files),
        watermark_ms=entry.watermark_ms,
        late_watermark_ms=before.watermark_ms if before else 0,
        planned_at=datetime.fromtimestamp(entry.planned_ms / 1000, UTC),
    )


def describe(offsets: OffsetRange) -> str:
    """Return a source range as a log line has it."""
    if offsets.files:
        return f"{len(offsets.files)} files"
    return f"{json.dumps(offsets.start, separators=(',', ':'))}..{json.dumps(offsets.end, separators=(',', ':'))}"
