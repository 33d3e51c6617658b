"""Why source rows were missing when a micro-batch was read: the words of ``source_gap``, and their kinds."""

from __future__ import annotations

from typing import Final, Literal, get_args

GapKind = Literal["retention", "compaction", "partition_gone"]
"""Deleted by the broker before it was read; nothing at these offsets by nature; or a partition that went away."""

GAP_KINDS: Final[tuple[GapKind, ...]] = get_args(GapKind)

GAP_REASONS: Final[dict[GapKind, str]] = {
    "retention": "deleted by the broker before it was read (retention)",
    "compaction": "no records at these offsets (compaction or transaction markers)",
    "partition_gone": "the partition is not there any more: what came behind this offset was never read",
}


def gap_kind(reason: str) -> GapKind | None:
    """Return the kind of a recorded gap; None for one that another version has recorded."""
    # A reason may go on after these words.
    return next((kind for kind, words in GAP_REASONS.items() if reason.startswith(words)), None)
