"""Why source rows were missing when a micro-batch was read: the words of ``source_gap``, and their kinds."""

from __future__ import annotations

from typing import Final, Literal

GapKind = Literal["retention", "compaction", "partition_gone", "rolled_back"]
"""Deleted by the broker before it was read; nothing at these offsets by nature; a partition that went away; a part of a
decided micro-batch that somebody rolled back by hand, and somebody accepted."""

GAP_REASONS: Final[dict[GapKind, str]] = {
    "retention": "deleted by the broker before it was read (retention)",
    "compaction": "no records at these offsets (compaction or transaction markers)",
    "partition_gone": "the partition is not there any more: what came behind this offset was never read",
    "rolled_back": "a prepared transaction of this batch was rolled back by hand",
}
