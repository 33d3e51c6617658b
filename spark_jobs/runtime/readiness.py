"""Before the first batch: checkpoint and ledger must agree on what was already done.

A lost checkpoint would read everything again under new batch ids; a checkpoint that is ahead of the ledger would skip
what the ledger's database does not have. Both stop the run, and say what to do.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any, NoReturn
from uuid import uuid4

from spark_jobs.contracts.errors import CheckpointMismatchError
from spark_jobs.contracts.run_request import Resume
from spark_jobs.contracts.tracker.known_queries import KnownQuery, since_start, used_since
from spark_jobs.logs.events import log_event
from spark_jobs.runtime.checkpoint import Checkpoint
from spark_jobs.runtime.flow import Flow
from spark_jobs.sinks.ledger import Ledger
from spark_jobs.sources.files import FileSource
from spark_jobs.sources.kafka import KafkaSource

log = logging.getLogger("etl.run")

_RESUME = (
    "To go on where the ledger stopped, start once with --resume-from-ledger (operator: resume='from_ledger'); to "
    "start over knowingly, with --accept-new-checkpoint (resume='accept_new_checkpoint')"
)


@dataclass(frozen=True, slots=True)
class ReadyQuery:
    """The query that the run is to start.

    :param flow: what it runs, beginning where the ledger says.
    :param first_batch: its first micro-batch with rows; the one before is the seed of a checkpoint that was resumed.
    """

    query_id: str
    flow: Flow
    first_batch: int = 0


def ready_query(ledger: Ledger, checkpoint: Checkpoint, flow: Flow, resume: Resume) -> ReadyQuery:
    """Compare checkpoint and ledger; make a new checkpoint where there is none and none is missed.

    :raises CheckpointMismatchError: lost, foreign, replaced by another one since, ahead of the ledger, or written
        under another configuration.
    """
    known = {query.query_id: query for query in ledger.queries()}
    query_id = checkpoint.query_id()
    if query_id is None:
        return _new_query(ledger, checkpoint, flow, list(known.values()), resume)
    if query_id not in known:
        _refuse_unknown(ledger, checkpoint, query_id, list(known.values()))
    checkpoint.end_seed()
    query = known[query_id]
    _check_used_last(ledger, checkpoint, query, list(known.values()))
    _check_configuration(checkpoint, flow, query)
    _check_not_ahead(ledger, checkpoint, query)
    if query.start_offsets is not None and not checkpoint.has_offsets():
        flow = _starting_at(flow, query.start_offsets)
    return ReadyQuery(query_id, flow, first_batch=1 if query.is_seeded else 0)


def fingerprint(flow: Flow) -> dict[str, Any]:
    """Return what Spark cannot change under an existing checkpoint."""
    aggregation = flow.aggregation
    return {
        **flow.source.identity(),
        "outputMode": flow.streaming.output_mode.value,
        "aggregation": None
        if aggregation is None
        else {
            "groups": list(aggregation.config.group_by),
            "window": aggregation.window_column,
            "windowDuration": aggregation.config.window_duration,
            "slideDuration": aggregation.config.slide_duration,
            "aggregations": [f"{a.column}:{a.function}" for a in aggregation.config.aggregations],
            "watermark": aggregation.event_time,
        },
    }


def _new_query(
    ledger: Ledger, checkpoint: Checkpoint, flow: Flow, known: list[KnownQuery], resume: Resume
) -> ReadyQuery:
    checkpoint.clear_half_seed()
    if checkpoint.has_logs():
        raise CheckpointMismatchError(
            f"The checkpoint of pipeline {ledger.pipeline_id!r} has lost its file metadata",
            found=f"logs of a query at {checkpoint.location}, and nothing that says whose they are",
            expected="a whole checkpoint, or none: a new query would go on where these logs end, whoever wrote them",
            cure="Restore the file metadata; or move the whole checkpoint away, and go on as when it is lost",
        )
    done = [query for query in known if query.batches]
    query_id = str(uuid4())
    if not done:
        ledger.add_query(query_id, checkpoint.location, "fresh", fingerprint(flow))
        checkpoint.write_metadata(query_id)
        return ReadyQuery(query_id, flow)
    chain = since_start(known)
    if resume == "from_ledger":
        return _resumed(ledger, checkpoint, flow, query_id, chain)
    if resume == "accept_new_checkpoint":
        log_event(log, logging.WARNING, "new_checkpoint_accepted", query=query_id, before=chain[0].query_id)
        return _started_over(ledger, checkpoint, flow, query_id, chain[0])
    nothing_since = "" if _any_batch(chain) else f"; {_nothing_since(chain)}, so that resuming reads from the beginning"
    raise CheckpointMismatchError(
        f"The checkpoint of pipeline {ledger.pipeline_id!r} is lost",
        found=f"nothing at {checkpoint.location}, but {sum(q.batches for q in done)} micro-batches in the ledger, the "
        f"last one from {done[-1].checkpoint_location}{nothing_since}",
        expected="the checkpoint that those micro-batches were read with: a new one would load everything again",
        cure=f"Restore the checkpoint, or correct checkpointLocation. {_RESUME}",
    )


def _any_batch(chain: list[KnownQuery]) -> bool:
    return any(query.batches for query in chain)


def _nothing_since(chain: list[KnownQuery]) -> str:
    return f"none of them since the pipeline was started over (query {chain[-1].query_id})"


def _started_over(ledger: Ledger, checkpoint: Checkpoint, flow: Flow, query_id: str, last: KnownQuery) -> ReadyQuery:
    ledger.add_query(query_id, checkpoint.location, "accepted", fingerprint(flow), seeded_from=last.query_id)
    checkpoint.write_metadata(query_id)
    return ReadyQuery(query_id, flow)


def _resumed(ledger: Ledger, checkpoint: Checkpoint, flow: Flow, query_id: str, chain: list[KnownQuery]) -> ReadyQuery:
    _check_resumable(ledger, flow)
    last = chain[0]
    if not _any_batch(chain):
        _check_beginning_known(flow, chain)
        log_event(log, logging.WARNING, "resumed_at_the_beginning", query=query_id, reason=_nothing_since(chain))
        return _started_over(ledger, checkpoint, flow, query_id, last)
    if isinstance(flow.source, KafkaSource):
        offsets = ledger.end_offsets(last.query_id) if last.batches else last.start_offsets
        # Before the new query is recorded: what is refused here may be set right, and resumed again.
        flow = _starting_at(flow, offsets)
        ledger.add_query(
            query_id,
            checkpoint.location,
            "resumed",
            fingerprint(flow),
            seeded_from=last.query_id,
            start_offsets=offsets,
        )
        checkpoint.write_metadata(query_id)
        log_event(log, logging.WARNING, "resumed_from_ledger", query=query_id, offsets=offsets)
    else:
        _check_files_known(ledger, chain)
        files = ledger.files([query.query_id for query in chain])
        ledger.add_query(query_id, checkpoint.location, "resumed", fingerprint(flow), seeded_from=last.query_id)
        checkpoint.seed_files(query_id, files)
        log_event(log, logging.WARNING, "resumed_from_ledger", query=query_id, files_already_read=len(files))
        return ReadyQuery(query_id, flow, first_batch=1)
    return ReadyQuery(query_id, flow)


def _check_resumable(ledger: Ledger, flow: Flow) -> None:
    if flow.stateful:
        raise CheckpointMismatchError(
            f"Pipeline {ledger.pipeline_id!r} aggregates: it cannot be resumed from the ledger",
            found="--resume-from-ledger, and a checkpoint whose state is gone",
            expected="the checkpoint: it alone holds the running totals, which would restart from nothing",
            cure="Restore the checkpoint; or empty the target and start over with --accept-new-checkpoint",
        )
    if not isinstance(flow.source, FileSource | KafkaSource):
        raise CheckpointMismatchError(
            f"The source {flow.config.extract.source_type} cannot be resumed from the ledger",
            expected="a kafka or file source",
            cure="Start over with --accept-new-checkpoint",
        )


def _check_beginning_known(flow: Flow, chain: list[KnownQuery]) -> None:
    begin = {name: v for name, v in flow.config.reader_options.items() if name.lower().startswith("starting")}
    # Other offsets than the earliest may lie behind the place where the lost query began.
    earliest = [(name.lower(), value.lower()) for name, value in begin.items()] == [("startingoffsets", "earliest")]
    if earliest or not isinstance(flow.source, KafkaSource):
        return
    options = ", ".join(f"{name}={value}" for name, value in begin.items()) or "startingOffsets=latest"
    raise CheckpointMismatchError(
        "The ledger does not say where to resume",
        found=f"micro-batches, but {_nothing_since(chain)}; {options}, and the offsets that this query began at were "
        "in its checkpoint",
        expected="startingOffsets=earliest, with which nothing is skipped",
        cure="Restore the checkpoint; or set extract.connectionParams.startingOffsets to what the target lacks "
        "(earliest, or the offsets) and start over with --accept-new-checkpoint",
    )


def _check_files_known(ledger: Ledger, chain: list[KnownQuery]) -> None:
    # Only of a query that was out of use when a cleanup came, and whose old checkpoint was brought back afterwards.
    removed = sum(query.removed_files for query in chain)
    if removed:
        raise CheckpointMismatchError(
            f"The ledger of pipeline {ledger.pipeline_id!r} does not know all files that were read",
            found=f"{removed} files whose names a cleanup has removed, of queries that another one had followed",
            expected="the name of every file that the target's rows came from: the others would be read again",
            cure="Restore the checkpoint; or empty the target and start over with --accept-new-checkpoint",
        )


def _starting_at(flow: Flow, offsets: Any) -> Flow:
    return replace(flow, source=flow.source.starting_at(offsets)) if isinstance(flow.source, KafkaSource) else flow


def _refuse_unknown(ledger: Ledger, checkpoint: Checkpoint, query_id: str, known: list[KnownQuery]) -> NoReturn:
    owner = ledger.owner_of(query_id)
    if owner is not None:
        raise CheckpointMismatchError(
            f"The checkpoint {checkpoint.location} belongs to another pipeline",
            found=f"query {query_id} of pipeline {owner!r}",
            expected=f"a checkpoint of pipeline {ledger.pipeline_id!r}",
            cure="Give each pipeline a checkpointLocation of its own",
        )
    done = sum(query.batches for query in known)
    raise CheckpointMismatchError(
        f"The ledger does not know the checkpoint {checkpoint.location}",
        found=f"query {query_id} with last committed micro-batch {checkpoint.last_commit()}; the ledger of pipeline "
        f"{ledger.pipeline_id!r} holds {done} micro-batches of other queries",
        expected="a checkpoint that this pipeline's runs made with this database",
        cure="Check load.credentialId (is it the database that this checkpoint wrote to?) and checkpointLocation. If "
        f"the database is the right one, move the checkpoint away. {_RESUME}",
    )


def _check_used_last(ledger: Ledger, checkpoint: Checkpoint, query: KnownQuery, known: list[KnownQuery]) -> None:
    """Raise where another checkpoint has read on since: this one would read the same rows again."""
    later = used_since(known, query)
    if not later:
        return
    raise CheckpointMismatchError(
        f"The checkpoint {checkpoint.location} of pipeline {ledger.pipeline_id!r} was replaced by another one",
        found=f"query {query.query_id}, and {sum(one.batches for one in later)} micro-batches that the ledger has of "
        f"later ones, the last one from {later[-1].checkpoint_location} (query {later[-1].query_id})",
        expected="the checkpoint that was used last: what was read since would be loaded again with an older one",
        cure=f"Restore the checkpoint of query {later[-1].query_id}; or move this one away. {_RESUME}",
    )


def _check_configuration(checkpoint: Checkpoint, flow: Flow, query: KnownQuery) -> None:
    now = fingerprint(flow)
    before = query.fingerprint or {}
    changed = [name for name in sorted(now.keys() | before.keys()) if now.get(name) != before.get(name)]
    if changed:
        raise CheckpointMismatchError(
            f"The pipeline was changed in a way that the checkpoint {checkpoint.location} cannot follow",
            found="; ".join(f"{name}: {now.get(name)}" for name in changed),
            expected="; ".join(f"{name}: {before.get(name)}" for name in changed),
            cure="Change it back; or give the changed pipeline a new pipelineId, checkpointLocation and table",
        )


def _check_not_ahead(ledger: Ledger, checkpoint: Checkpoint, query: KnownQuery) -> None:
    last = checkpoint.last_commit()
    if last is None or (last == 0 and query.is_seeded) or ledger.has_batch(query.query_id, last):
        return
    raise CheckpointMismatchError(
        f"The checkpoint {checkpoint.location} is ahead of the ledger",
        found=f"micro-batch {last} committed in the checkpoint; the ledger's last one is {query.last_batch}",
        expected="each micro-batch of the checkpoint in the ledger: its rows would be missing in the target",
        cure="Was the database restored, or is it another one? If its rows are really gone, move the checkpoint away. "
        f"{_RESUME}",
    )
