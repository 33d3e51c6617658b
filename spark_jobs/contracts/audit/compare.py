"""Checkpoint and ledger compared: who is it, how far is it, and has it read the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from spark_jobs.contracts.audit.checkpoint import Heads, Image, in_ranges, last_source
from spark_jobs.contracts.audit.ledger import LedgerSide
from spark_jobs.contracts.audit.report import Finding, State
from spark_jobs.contracts.tracker.known_queries import KnownQuery

RESUME: Final = (
    "move the checkpoint away and go on once with --resume-from-ledger (`resume` = `from_ledger`), which starts where "
    "the ledger ends; or empty the target and start over with --accept-new-checkpoint"
)
_MOST_NAMED: Final = 5


def without_checkpoint(image: Image, ledger: LedgerSide, location: str) -> Finding:
    """Return what a checkpoint without a query id is: new, lost, or damaged."""
    broken = [text for text in image.damage if text.startswith("metadata")]
    if broken or (image.has_logs and not image.half_seeded):
        return Finding(
            state=State.DAMAGED,
            found="; ".join(broken) or f"logs of a query at {location}, and no file metadata that says whose they are",
            expected='a file metadata with {"id": the query\'s id}',
            advice=f"restore the file; or {RESUME}",
        )
    batches = _batches(ledger.queries)
    if not batches:
        return Finding(
            state=State.NEW,
            found=f"no checkpoint at {location}, and no micro-batch in the ledger",
            expected="both, once the pipeline has run",
            advice="run the pipeline",
        )
    return Finding(
        state=State.LOST,
        found=f"nothing at {location}, and {batches} micro-batches in the ledger",
        expected="the checkpoint that those micro-batches were read with: a new one would load everything again",
        advice="restore it, mount its disk or correct checkpointLocation (and audit it where the driver sees it); or, "
        "when it is gone, go on once with --resume-from-ledger (`resume` = `from_ledger`)",
    )


def identity(image: Image, ledger: LedgerSide, pipeline: str) -> Iterator[Finding]:
    """Yield whose checkpoint it is, where it is not the one that was used last."""
    if ledger.owner is not None:
        yield Finding(
            state=State.FOREIGN,
            found=f"query {image.query_id} of pipeline {ledger.owner!r}",
            expected=f"a query of pipeline {pipeline!r}",
            advice="give each pipeline a checkpointLocation of its own; where pipelineId was changed, change it back",
        )
    elif ledger.query is None:
        done = _batches(ledger.queries)
        yield Finding(
            state=State.FOREIGN,
            found=f"query {image.query_id}, last committed micro-batch {image.heads.committed}, which the ledger does "
            f"not know; it holds {done} micro-batches of others",
            expected="a query that this pipeline's runs made with this database",
            advice=f"is this the database that the checkpoint wrote to (load.credentialId)? If it is, {RESUME}",
        )
    elif ledger.later:
        last = ledger.later[-1]
        yield Finding(
            state=State.REPLACED,
            found=f"query {image.query_id}, and {_batches(ledger.later)} micro-batches of later ones, "
            f"the last one from {last.checkpoint_location} (query {last.query_id})",
            expected="the checkpoint that was used last: an older one would read again what was read since",
            advice=f"restore the checkpoint of query {last.query_id}; or {RESUME}",
        )


def damage(image: Image) -> Iterator[Finding]:
    """Yield what is cut off or missing."""
    found = [*image.damage, *image.heads.holes()]
    if found:
        yield Finding(
            state=State.DAMAGED,
            found="; ".join(found[:_MOST_NAMED]) + (f"; {len(found) - _MOST_NAMED} more" * (len(found) > _MOST_NAMED)),
            expected="offset and commit log without holes, each entry whole",
            advice=f"restore the newest whole copy of the checkpoint; or {RESUME}",
        )


def ahead(image: Image, ledger: LedgerSide) -> Iterator[Finding]:
    """Yield the micro-batches that Spark holds for committed and the ledger lacks."""
    missing = [
        number
        for number in image.heads.commits
        if number >= image.heads.window[0]
        and number not in ledger.batches
        and number > ledger.removed_through
        and not (number == 0 and ledger.is_seeded)
    ]
    if missing and ledger.query is not None:
        yield Finding(
            state=State.AHEAD,
            found=f"micro-batches {in_ranges(missing)} committed in the checkpoint and not in the ledger, whose last "
            f"one is {ledger.query.last_batch}",
            expected="each micro-batch of the checkpoint in the ledger: the rows of the others would be missing",
            advice="was the database restored, or is it another one? Bring the rows back; if they are really gone, "
            f"{RESUME}",
        )


def behind(ledger: LedgerSide, heads: Heads) -> Iterator[Finding]:
    """Yield what the ledger has of the query and the checkpoint has not even planned.

    :param heads: read after the ledger, so that a commit in between is no finding.
    """
    last = ledger.query.last_batch if ledger.query else None
    planned = -1 if heads.planned is None else heads.planned
    if last is None or planned >= last:
        return
    advice = (
        "restore the newest copy. With this one a run skips what comes again with the same offsets and files; where "
        f"Spark plans other ones it stops (exit code 14), and nothing is loaded twice. Without a newer copy, {RESUME}"
    )
    if planned < ledger.removed_through:
        advice = (
            "restore a newer copy: a cleanup has removed rows of micro-batches that this one would bring again, and a "
            f"run stops there (exit code 8); or {RESUME}"
        )
    yield Finding(
        state=State.BEHIND,
        found=f"micro-batch {last} in the ledger, and {'none' if heads.planned is None else planned} planned last in "
        "the checkpoint: an older copy was brought back",
        expected=f"offsets/{last}",
        advice=advice,
    )


def planned(image: Image, ledger: LedgerSide) -> Iterator[Finding]:
    """Yield the micro-batch that is planned and not committed."""
    number, committed = image.heads.planned, image.heads.committed
    if number is None or number == committed:
        return
    then = "does it again, from the same offsets"
    if number in ledger.batches:
        then = "finds it in the ledger, and skips it"
    elif number in ledger.decided:
        then = "finishes it, as it was decided"
    yield Finding(
        state=State.PLANNED,
        found=f"offsets/{number} without commits/{number}: its driver was killed, or stopped, before the end of it",
        expected="that, after a driver was killed",
        advice=f"run the pipeline: it {then}",
    )


def offsets(image: Image, ledger: LedgerSide) -> Iterator[Finding]:
    """Yield where the same micro-batch ends elsewhere in the source."""
    differing = [
        (number, there, here)
        for number, there in sorted(ledger.batches.items())
        if number in image.planned and there != (here := last_source(image, number))
    ]
    if differing:
        number, there, here = differing[0]
        yield Finding(
            state=State.DIFFERENT,
            found=f"micro-batches {in_ranges([one[0] for one in differing])} end elsewhere; {number} at {_short(here)} "
            f"in the checkpoint, at {_short(there)} in the ledger",
            expected="the same offsets: rows in between would be missing, or loaded twice",
            advice="was the checkpoint edited, or put together from two copies? Restore the newest whole copy; or "
            f"{RESUME}",
        )


def _batches(queries: Iterable[KnownQuery]) -> int:
    return sum(query.batches for query in queries)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
