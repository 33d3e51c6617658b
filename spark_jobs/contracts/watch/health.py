"""How pipelines are, all in all: what the health DAG finds wrong with them.

Most of them have nothing wrong: many are screened at once, and only what did not pass is looked at closely.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from spark_jobs.contracts.config import PipelineConfig
from spark_jobs.contracts.errors import ConfigError, EtlError
from spark_jobs.contracts.from_values import from_values
from spark_jobs.contracts.tracker.run_state import SILENT_AFTER_SECONDS, NewestRun, RunLife, RunPhase, newest_runs
from spark_jobs.contracts.watch.balance import LedgerBalance
from spark_jobs.contracts.watch.batch_gaps import NOTHING_LOST, BatchGaps
from spark_jobs.contracts.watch.condition import NEVER_COMMITTED, Age, Condition, LedgerView, in_words
from spark_jobs.contracts.watch.freshness import Freshness
from spark_jobs.contracts.watch.retention_risk import RetentionRisk
from spark_jobs.contracts.watch.screening import Limits, screen
from spark_jobs.contracts.watch.source_lag import SourceLag

# Replays are not pipelines of their own, and what has never run cannot be ill.
_PIPELINES: Final = """
SELECT p.pipeline_id FROM {schema}.pipeline p WHERE p.pipeline_id !~ '/(replay|reprocess)/' ORDER BY p.pipeline_id"""
_NEW_LETTERS: Final = """
SELECT coalesce(sum(letters), 0)::bigint FROM (
    SELECT 1 AS letters FROM {schema}.dead_letter_single WHERE pipeline_id = %(pipeline)s
        AND status IN ('pending', 'parked') AND first_failed_at > clock_timestamp() - interval '1 day'
    UNION ALL
    SELECT letters FROM {schema}.dead_letter_bundle WHERE pipeline_id = %(pipeline)s
        AND status IN ('pending', 'parked') AND first_failed_at > clock_timestamp() - interval '1 day'
    LIMIT %(most)s + 1
) AS newest"""


# How long a driver may take to come up: a cluster's queue may be long, but somebody is to hear of it.
_NOT_UP_AFTER: Final = timedelta(hours=1)
# A micro-batch that is decided has a driver that finishes it, as long as that is not silent.
_FINISHING: Final = timedelta(seconds=SILENT_AFTER_SECONDS)
# Bounds what is in memory: as many configurations, and nothing that grows with the ledger.
_AT_ONCE: Final = 200
_Positive = Annotated[Age, Field(gt=timedelta())]


class Thresholds(BaseModel):
    """When a pipeline counts as ill. What is None is not looked at.

    :param max_age: of the last commit, or of the last run that found nothing new.
    :param gap_window: how far back micro-batches must join up.
    :param max_lag_rows, max_lag: how far behind its Kafka topics it may be.
    :param min_retention: how long the broker must still keep what was not read.
    :param max_lost_share: share of a day's rows that may be rejected, late or dead letters, 0 to 1.
    :param max_new_letters: how many dead letters of the last day may wait.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    max_age: _Positive | None = None
    gap_window: _Positive | None = None
    max_lag_rows: int | None = Field(None, ge=0)
    max_lag: Age | None = None
    min_retention: _Positive | None = None
    max_lost_share: float | None = Field(None, ge=0, le=1)
    max_new_letters: int | None = Field(None, ge=0)

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Return the thresholds; empty texts count as None.

        :raises ConfigError: naming every value that is not valid, and limits of the lag that contradict each other.
        """
        given = {name: None if value == "" else value for name, value in values.items()}
        made = from_values(cls, given, "The thresholds are not valid")
        if made.max_lag_rows == 0 and made.max_lag:
            raise ConfigError(
                "The thresholds contradict each other",
                found="max_lag_rows=0 (no row may be unread) and max_lag (a row may be unread for a while)",
                expected="one of them, or max_lag_rows of 1 or more",
            )
        return made

    def of_pipeline(self, config: PipelineConfig) -> Thresholds:
        """Return the same with what the pipeline's own ``healthConfig`` says instead."""
        if config.health is None:
            return self
        own = config.health.model_dump(exclude={"enabled"}, exclude_none=True, by_alias=False)
        return Thresholds.of(**{**self.model_dump(), **own})


class Finding(BaseModel):
    """Something that is wrong, or that could not be found out (``unknown``)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pipeline: str
    check: str
    state: Literal["ill", "unknown"]
    message: str


def pipelines(view: LedgerView) -> list[str]:
    """Return the ids of all pipelines that were ever started."""
    return [row[0] for row in view.rows(_PIPELINES, (), "Listing the pipelines")]


def examine(view: LedgerView, names: Sequence[str], thresholds: Thresholds) -> list[Finding]:
    """Return what is wrong with these pipelines; nothing of one whose ``healthConfig`` is switched off.

    What one check cannot find out does not keep the others from looking, and no pipeline keeps the next from it.

    :raises ConfigError: the ledger does not know one of the pipelines.
    :raises EtlError: the session with the ledger was lost.
    """
    chunks = (names[first : first + _AT_ONCE] for first in range(0, len(names), _AT_ONCE))
    return [finding for chunk in chunks for finding in _examine(view, chunk, thresholds)]


@dataclass(frozen=True, slots=True)
class _Watched:
    """A pipeline with a configuration that can be read. :param own: the limits that count for it."""

    pipeline: str
    run: RunLife
    config: PipelineConfig
    own: Thresholds


def _examine(view: LedgerView, names: Sequence[str], thresholds: Thresholds) -> Iterator[Finding]:
    runs = newest_runs(view.conn, view.schema, names)
    for name in names:
        if name not in runs:
            raise view.unknown(name)
    read = [_read(view, name, runs[name], thresholds) for name in names]
    passed = screen(view, _limits(one for one in read if isinstance(one, _Watched)))
    for one in read:
        if isinstance(one, Finding):
            yield one
        elif one is not None:
            yield from _findings(view, one, passed)


def _read(view: LedgerView, pipeline: str, run: NewestRun, thresholds: Thresholds) -> _Watched | Finding | None:
    """Return what is to be looked at, what is wrong with the configuration, or None where it is switched off."""
    try:
        if run.request is None:
            raise view.unknown(pipeline)
        config = PipelineConfig.from_json(run.request.get("config", {}))
    except ConfigError as error:
        # Of a version that read it otherwise, or never run.
        return Finding(pipeline=pipeline, check="configuration", state="ill", message=str(error))
    if config.health is not None and not config.health.enabled:
        return None
    try:
        return _Watched(pipeline, run.life, config, thresholds.of_pipeline(config))
    except ConfigError as error:
        return Finding(pipeline=pipeline, check="healthConfig", state="ill", message=str(error))


def _limits(watched: Iterable[_Watched]) -> Limits:
    limits: dict[Any, dict[str, Any]] = {"freshness": {}, "gaps": {}, "balance": {}, "dead_letters": {}}
    for one in watched:
        limits["balance"][one.pipeline] = one.own.max_lost_share
        given = {"freshness": one.own.max_age, "gaps": one.own.gap_window, "dead_letters": one.own.max_new_letters}
        for check, limit in given.items():
            if limit is not None:
                limits[check][one.pipeline] = limit
    return limits


def _findings(view: LedgerView, one: _Watched, passed: frozenset[tuple[str, str]]) -> Iterator[Finding]:
    for name, check in _checks(view, one):
        if (one.pipeline, name) in passed:
            continue
        try:
            problem = check()
        except EtlError as error:
            if view.conn.closed:
                raise
            state: Literal["ill", "unknown"] = "unknown" if error.retryable else "ill"
            yield Finding(pipeline=one.pipeline, check=name, state=state, message=str(error))
        else:
            if problem is not None:
                yield Finding(pipeline=one.pipeline, check=name, state="ill", message=problem)


def _checks(view: LedgerView, one: _Watched) -> Iterator[tuple[str, Callable[[], str | None]]]:
    yield "run", partial(_run, one.pipeline, one.run)
    for name, condition in _conditions(one.pipeline, one.config, one.own):
        yield name, partial(_unmet, view, condition)
    if one.own.max_new_letters is not None:
        yield "dead_letters", partial(_letters, view, one.pipeline, one.own.max_new_letters)


def _conditions(pipeline: str, config: PipelineConfig, own: Thresholds) -> Iterator[tuple[str, Condition]]:
    if own.max_age is not None:
        yield "freshness", Freshness.of(pipeline=pipeline, younger_than=own.max_age, idle_runs_count=True)
    if own.gap_window is not None:
        # A sensor excuses what nobody can read any more, and names it; here somebody is to hear of it.
        yield "gaps", BatchGaps.of(pipeline=pipeline, last=own.gap_window, finishing=_FINISHING, excuse=NOTHING_LOST)
    share = own.max_lost_share
    yield "balance", LedgerBalance.of(pipeline=pipeline, last="1 day", finishing=_FINISHING, at_most_lost=share)
    if config.extract.source_type != "kafka":
        return
    if own.max_lag_rows is not None or own.max_lag is not None:
        seconds = own.max_lag.total_seconds() if own.max_lag is not None else None
        yield "lag", SourceLag.of(pipeline=pipeline, at_most_rows=own.max_lag_rows, at_most_seconds=seconds)
    if own.min_retention is not None:
        yield "retention", RetentionRisk.of(pipeline=pipeline, at_least=own.min_retention)


def _unmet(view: LedgerView, condition: Condition) -> str | None:
    seen = condition.look(view)
    # A topic that is still empty is nobody's fault; that a run does not come so far, its own check and freshness tell.
    return None if seen.done or seen.value.get(NEVER_COMMITTED) else seen.message


def _run(pipeline: str, run: RunLife) -> str | None:
    if run.phase is RunPhase.FAILED:
        return f"{pipeline}: run {run.run_id} has failed: {(run.error or {}).get('what', 'it did not say why')}"
    if run.phase is RunPhase.SILENT:
        return f"{pipeline}: run {run.run_id} is silent for {in_words(run.silent_seconds or 0)}: {run.advice}"
    if run.phase is RunPhase.REGISTERED and (run.silent_seconds or 0) > _NOT_UP_AFTER.total_seconds():
        return f"{pipeline}: run {run.run_id} was started {in_words(run.silent_seconds or 0)} ago: {run.advice}"
    return None


def _letters(view: LedgerView, pipeline: str, most: int) -> str | None:
    values = {"pipeline": pipeline, "most": most}
    found = view.rows(_NEW_LETTERS, values, "Counting new dead letters")[0][0]
    return f"{pipeline}: more than {most} dead letters of the last day wait" if found > most else None
