"""The files that micro-batches have read: the checkpoint's source log and the ledger compared."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from spark_jobs.contracts.audit.checkpoint import FileSum, Image, SourceLog, log_offset, sum_files
from spark_jobs.contracts.audit.compare import RESUME
from spark_jobs.contracts.audit.files import CheckpointFiles
from spark_jobs.contracts.audit.ledger import OLDER, LedgerSide, read_file_sums, read_paths
from spark_jobs.contracts.audit.logs import TornError
from spark_jobs.contracts.audit.report import Finding, State
from spark_jobs.contracts.watch.condition import LedgerView

_MOST_PATHS: Final = 100_000
"""Of one micro-batch: of more files no differing one is named."""


@dataclass(frozen=True, slots=True)
class ReadFiles:
    """What the comparison gave. :param compared: how many files were compared."""

    compared: int = 0
    finding: Finding | None = None
    not_judged: str | None = None


@dataclass(frozen=True, slots=True)
class _Span:
    """The micro-batches that are compared: each with its last entry of the source log, in order."""

    ends: list[tuple[int, int]]

    def first_entry(self, batch: int) -> int:
        """Return a micro-batch's first entry of the log."""
        place = next(i for i, (number, _) in enumerate(self.ends) if number == batch)
        return self.ends[place - 1][1] + 1 if place else 0


def compare_files(
    files: CheckpointFiles, view: LedgerView, pipeline: str, image: Image, ledger: LedgerSide
) -> ReadFiles:
    """Compare all files of committed micro-batches; of those that the checkpoint's offset log still has, one by one.

    A pipeline that reads no files has nothing to compare.
    """
    span = _span(image, ledger)
    if not span.ends or image.query_id is None:
        return ReadFiles()
    windowed = [batch for batch, _ in span.ends if batch != OLDER]
    log = SourceLog(files, 0, span.ends[-1][1])
    try:
        here = sum_files(log.entries(), span.ends)
    except TornError as error:
        return ReadFiles(finding=_torn(error))
    there = read_file_sums(view, pipeline, image.query_id, windowed[0], windowed[-1])
    skipped = _not_comparable(span, ledger)
    compared = sum(one.files for batch, one in here.items() if batch not in skipped)
    differing = [batch for batch in here if batch not in skipped and here[batch] != there.get(batch, FileSum())]
    why = "; ".join(dict.fromkeys(skipped.values())) or None
    if not differing:
        return ReadFiles(compared, not_judged=why)
    finding = _different(differing, here, there, _named(files, view, pipeline, image.query_id, differing, span))
    return ReadFiles(compared, finding, why)


def _span(image: Image, ledger: LedgerSide) -> _Span:
    """Leave out what the ledger lacks: that is told already."""
    last = image.heads.committed
    ends = [
        (number, end)
        for number in sorted(image.planned)
        if last is not None and number <= last and (end := log_offset(image.planned[number])) is not None
    ]
    while ends and ends[-1][0] not in ledger.batches and not (ends[-1][0] == 0 and ledger.is_seeded):
        ends.pop()
    if ends and ends[0][0] > 0:
        # The first one only says where the second begins.
        ends[0] = (OLDER, ends[0][1])
    if any(earlier[1] > later[1] for earlier, later in pairwise(ends)):
        # Offsets that go backwards: what is read by them is not told by the log.
        return _Span([])
    return _Span(ends if any(batch != OLDER for batch, _ in ends) else [])


def _not_comparable(span: _Span, ledger: LedgerSide) -> dict[int, str]:
    """Return which sums say nothing, and why."""
    skipped: dict[int, str] = {}
    for batch, _ in span.ends:
        if batch == OLDER and ledger.removed_files:
            skipped[batch] = f"files of older micro-batches: a cleanup has removed {ledger.removed_files} names"
        elif ledger.is_seeded and batch in (0, OLDER):
            skipped[batch] = "files from before this checkpoint: it was resumed from the ledger"
        elif batch != OLDER and batch not in ledger.batches:
            skipped[batch] = "files of micro-batches that are not in the ledger"
    return skipped


def _named(
    files: CheckpointFiles, view: LedgerView, pipeline: str, query_id: str, differing: list[int], span: _Span
) -> str:
    """Return the first file that only one side has, where it can be told."""
    batch = next((one for one in differing if one != OLDER), None)
    if batch is None:
        return ""
    there = read_paths(view, pipeline, query_id, batch, _MOST_PATHS + 1)
    here: set[str] = set()
    last = dict(span.ends)[batch]
    for entry in SourceLog(files, span.first_entry(batch), last).entries():
        here.add(entry.path)
        if len(here) > _MOST_PATHS:
            break
    if max(len(there), len(here)) > _MOST_PATHS:
        return ""
    path = min(here ^ there, default="")
    side = "checkpoint" if path in here else "ledger"
    return f"; only in the {side}, of micro-batch {batch}: {path}" if path else ""


def _different(differing: list[int], here: dict[int, FileSum], there: dict[int, FileSum], named: str) -> Finding:
    batch = differing[0]
    which = "older micro-batches together" if batch == OLDER else f"micro-batch {batch}"
    ours, theirs = here[batch], there.get(batch, FileSum())
    more = f" ({len(differing) - 1} more differ)" if len(differing) > 1 else ""
    return Finding(
        state=State.DIFFERENT,
        found=f"{which}: {ours.files} files in the checkpoint's source log, {theirs.files} in the ledger"
        f"{'' if ours.files != theirs.files else ', and not the same'}{more}{named}",
        expected="the same files: one that only the ledger has is read again, one that only the checkpoint has is "
        "never read",
        advice=f"restore the newest whole copy of the checkpoint; or {RESUME}",
    )


def _torn(error: TornError) -> Finding:
    return Finding(
        state=State.DAMAGED,
        found=str(error),
        expected="the log of all files that were read: those that it lacks would be read again",
        advice=f"restore the newest whole copy of the checkpoint; or {RESUME}",
    )
