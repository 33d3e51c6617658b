"""One pipeline's checkpoint, ledger and source compared. Nothing is changed; a run may go on meanwhile.

Order makes it safe beside a run: a driver writes ``offsets/N``, then the ledger, then ``commits/N``. Commits are read
before the ledger, and offsets once more after it, so that neither can seem ahead of the other by what comes in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from spark_jobs.contracts.audit import compare
from spark_jobs.contracts.audit.checkpoint import Heads, Image, read_heads, read_image
from spark_jobs.contracts.audit.files import CheckpointFiles, OpenFiles
from spark_jobs.contracts.audit.ledger import LedgerSide, read_ledger
from spark_jobs.contracts.audit.read_files import ReadFiles, compare_files
from spark_jobs.contracts.audit.report import AuditReport, Finding, State, worst_first
from spark_jobs.contracts.audit.source import source_findings
from spark_jobs.contracts.config import PipelineConfig
from spark_jobs.contracts.errors import CheckpointUnreadableError, ConfigError
from spark_jobs.contracts.tracker.known_queries import known_queries
from spark_jobs.contracts.tracker.run_state import RunLife, RunPhase, newest_run_life
from spark_jobs.contracts.watch.condition import LedgerView, snapshot

_SETTLED: Final = (State.AHEAD, State.FOREIGN, State.REPLACED, State.DIFFERENT)
"""What a run that goes on cannot cause, nor end."""


@dataclass(frozen=True, slots=True)
class _Looks:
    """All that was read."""

    location: str
    image: Image
    ledger: LedgerSide
    after: Heads
    files: CheckpointFiles


def audit(view: LedgerView, pipeline: str, open_files: OpenFiles, *, checkpoint: str | None = None) -> AuditReport:
    """Compare a pipeline's checkpoint with its ledger and its source.

    :param open_files: finds the checkpoint's storage, and that of a source of files.
    :param checkpoint: where it is as seen from here; None: where the query that was used last had it.
    :raises ConfigError: the ledger does not know the pipeline.
    :raises EtlError: the ledger cannot be read. A checkpoint that cannot be read is a finding.
    """
    with snapshot(view.conn):
        if not view.knows(pipeline):
            raise view.unknown(pipeline)
        queries = known_queries(view.conn, view.schema, pipeline)
        life = newest_run_life(view.conn, view.schema, pipeline)
        config = _config(view, pipeline)
    location = checkpoint or (queries[-1].checkpoint_location if queries else _location(config))
    if location is None:
        return _never_run(pipeline)
    try:
        looks = _look(view, pipeline, location, open_files(location))
        return _judge(view, pipeline, config, looks, life, open_files, given=checkpoint is not None)
    except CheckpointUnreadableError as error:
        return _unreadable(pipeline, location, error)


def _look(view: LedgerView, pipeline: str, location: str, files: CheckpointFiles) -> _Looks:
    _require_place(files)
    image = read_image(files)
    first, last = image.heads.window
    with snapshot(view.conn):
        ledger = read_ledger(view, pipeline, image.query_id, first, last)
    return _Looks(location, image, ledger, read_heads(files), files)


def _judge(
    view: LedgerView,
    pipeline: str,
    config: PipelineConfig | None,
    looks: _Looks,
    life: RunLife,
    open_files: OpenFiles,
    *,
    given: bool,
) -> AuditReport:
    image, ledger, read, notes = looks.image, looks.ledger, ReadFiles(), []
    found = list(_of_checkpoint(pipeline, looks))
    if not given and (location := _location(config)) and not _same(location, looks.location):
        found.append(_moved(looks.location, location))
    if ledger.query is not None:
        # No transaction is open meanwhile: a log of millions of files takes its time.
        read = compare_files(looks.files, view, pipeline, image, ledger)
        found += [read.finding] if read.finding else []
        notes += [read.not_judged] if read.not_judged else []
    if config is None:
        notes.append("the source: the configuration of the newest run cannot be read any more")
    elif ledger.query is not None:
        findings, not_looked = source_findings(view, config, image, ledger.query.start_offsets, open_files)
        found, notes = [*found, *findings], [*notes, *not_looked]
    if run := _going_on(life, newest_run_life(view.conn, view.schema, pipeline)):
        found = [_running(run), *(one for one in found if one.state in _SETTLED and one is not read.finding)]
        notes.append("what the run that is going on changes: the end of the logs, files, and the source")
    return AuditReport(
        pipeline=pipeline,
        checkpoint=looks.location,
        query_id=image.query_id,
        last_planned=image.heads.planned,
        last_committed=image.heads.committed,
        last_in_ledger=ledger.query.last_batch if ledger.query else None,
        compared_batches=len(image.planned.keys() & ledger.batches.keys()),
        compared_files=read.compared,
        findings=worst_first(found),
        not_judged=tuple(notes),
    )


def _of_checkpoint(pipeline: str, looks: _Looks) -> Iterator[Finding]:
    image, ledger = looks.image, looks.ledger
    if image.query_id is None:
        yield compare.without_checkpoint(image, ledger, looks.location)
        return
    yield from compare.identity(image, ledger, pipeline)
    yield from compare.damage(image)
    if ledger.query is None:
        return
    yield from compare.ahead(image, ledger)
    yield from compare.behind(ledger, looks.after)
    yield from compare.planned(image, ledger)
    yield from compare.offsets(image, ledger)


def _require_place(files: CheckpointFiles) -> None:
    """Raise where the folder that the checkpoint would lie in is not there: nothing is known then, not even a loss."""
    if files.exists() or files.place_exists():
        return
    raise CheckpointUnreadableError(
        f"{files.location} cannot be seen from here",
        found="not even the folder (or the bucket) that it lies in",
        expected="the storage that the driver writes to",
        cure="audit it where that is mounted, or say where it is seen from here (`checkpoint`, --checkpoint). Where "
        "the driver does not see it either, it is lost: see the guide on operating",
    )


def _going_on(before: RunLife, after: RunLife) -> RunLife | None:
    """Return the run that went on while the checkpoint was read."""
    if RunPhase.RUNNING in (before.phase, after.phase):
        return after
    # It came and went meanwhile.
    return after if after.run_id != before.run_id and after.started_at is not None else None


def _running(run: RunLife) -> Finding:
    return Finding(
        state=State.RUNNING,
        found=f"run {run.run_id} is going on",
        expected="a pipeline at rest, to judge all of it",
        advice="look again when the run has ended",
    )


def _moved(location: str, configured: str) -> Finding:
    return Finding(
        state=State.MOVED,
        found=f"the newest run's configuration names {configured}, and the ledger's last query is at {location}",
        expected="the same place: at another one a run finds its checkpoint lost",
        advice="correct checkpointLocation, or move the checkpoint there; to look at the new place, audit it by "
        "`checkpoint` (--checkpoint)",
    )


def _never_run(pipeline: str) -> AuditReport:
    new = Finding(
        state=State.NEW,
        found="a pipeline that was registered and has never begun a query",
        expected="a checkpoint, once it has run",
        advice="run the pipeline",
    )
    return AuditReport(pipeline=pipeline, findings=(new,))


def _unreadable(pipeline: str, location: str, error: CheckpointUnreadableError) -> AuditReport:
    finding = Finding(
        state=State.UNREADABLE,
        found=f"{error.what}: {error.found}",
        expected=error.expected,
        advice=error.cure,
    )
    return AuditReport(pipeline=pipeline, checkpoint=location, findings=(finding,), not_judged=("the checkpoint",))


def _same(one: str, other: str) -> bool:
    return one.rstrip("/") == other.rstrip("/")


def _config(view: LedgerView, pipeline: str) -> PipelineConfig | None:
    try:
        return view.config(pipeline)
    except ConfigError:
        # Of a version that read it otherwise; all else can be compared without.
        return None


def _location(config: PipelineConfig | None) -> str | None:
    return config.streaming.checkpoint_location if config is not None and config.streaming else None
