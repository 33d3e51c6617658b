"""How a pipeline is, all in all: what the health DAG finds wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from spark_jobs.contracts.config import PipelineConfig
from spark_jobs.contracts.errors import ConfigError, EtlError
from spark_jobs.contracts.from_values import from_values
from spark_jobs.contracts.tracker.run_state import RunPhase, newest_run_life
from spark_jobs.contracts.watch.balance import LedgerBalance
from spark_jobs.contracts.watch.batch_gaps import BatchGaps
from spark_jobs.contracts.watch.condition import Age, Condition, LedgerView, in_words
from spark_jobs.contracts.watch.freshness import Freshness
from spark_jobs.contracts.watch.retention_risk import RetentionRisk
from spark_jobs.contracts.watch.source_lag import SourceLag

# Replays are not pipelines of their own, and what has never run cannot be ill.
_PIPELINES: Final = """
SELECT p.pipeline_id FROM {schema}.pipeline p WHERE p.pipeline_id !~ '/(replay|reprocess)/' ORDER BY p.pipeline_id"""
_NEW_LETTERS: Final = """
SELECT count(*) FROM (
    SELECT FROM {schema}.dead_letter WHERE pipeline_id = %(pipeline)s AND status IN ('pending', 'parked')
        AND first_failed_at > clock_timestamp() - interval '1 day' LIMIT %(most)s + 1
) AS newest"""


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

    max_age: Age | None = None
    gap_window: Age | None = None
    max_lag_rows: int | None = Field(None, ge=0)
    max_lag: Age | None = None
    min_retention: Age | None = None
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


def examine(view: LedgerView, pipeline: str, thresholds: Thresholds) -> list[Finding]:
    """Return what is wrong with a pipeline; empty when nothing is, or when its ``healthConfig`` is switched off.

    What one check cannot find out does not keep the others from looking.

    :raises ConfigError: the ledger does not know the pipeline.
    """
    if not view.knows(pipeline):
        raise view.unknown(pipeline)
    try:
        config = view.config(pipeline)
    except ConfigError as error:
        # Of a version that read it otherwise, or never run.
        return [Finding(pipeline=pipeline, check="configuration", state="ill", message=str(error))]
    if config.health is not None and not config.health.enabled:
        return []
    try:
        own = thresholds.of_pipeline(config)
    except ConfigError as error:
        return [Finding(pipeline=pipeline, check="healthConfig", state="ill", message=str(error))]
    return list(_findings(view, pipeline, config, own))


def _findings(view: LedgerView, pipeline: str, config: PipelineConfig, own: Thresholds) -> Iterator[Finding]:
    checks: list[tuple[str, Callable[[], str | None]]] = [("run", partial(_run, view, pipeline))]
    checks += [(name, partial(_unmet, view, condition)) for name, condition in _conditions(pipeline, config, own)]
    if own.max_new_letters is not None:
        checks.append(("dead_letters", partial(_letters, view, pipeline, own.max_new_letters)))
    for name, check in checks:
        try:
            problem = check()
        except EtlError as error:
            state: Literal["ill", "unknown"] = "unknown" if error.retryable else "ill"
            yield Finding(pipeline=pipeline, check=name, state=state, message=str(error))
        else:
            if problem is not None:
                yield Finding(pipeline=pipeline, check=name, state="ill", message=problem)


def _conditions(pipeline: str, config: PipelineConfig, own: Thresholds) -> Iterator[tuple[str, Condition]]:
    if own.max_age is not None:
        yield "freshness", Freshness.of(pipeline=pipeline, younger_than=own.max_age, idle_runs_count=True)
    if own.gap_window is not None:
        yield "gaps", BatchGaps.of(pipeline=pipeline, last=own.gap_window)
    yield "balance", LedgerBalance.of(pipeline=pipeline, last="1 day", at_most_lost=own.max_lost_share)
    if config.extract.source_type != "kafka":
        return
    if own.max_lag_rows is not None or own.max_lag is not None:
        seconds = own.max_lag.total_seconds() if own.max_lag is not None else None
        yield "lag", SourceLag.of(pipeline=pipeline, at_most_rows=own.max_lag_rows, at_most_seconds=seconds)
    if own.min_retention is not None:
        yield "retention", RetentionRisk.of(pipeline=pipeline, at_least=own.min_retention)


def _unmet(view: LedgerView, condition: Condition) -> str | None:
    seen = condition.look(view)
    return None if seen.done else seen.message


def _run(view: LedgerView, pipeline: str) -> str | None:
    run = newest_run_life(view.conn, view.schema, pipeline)
    if run.phase is RunPhase.FAILED:
        return f"{pipeline}: run {run.run_id} has failed: {(run.error or {}).get('what', 'it did not say why')}"
    if run.phase is RunPhase.SILENT:
        return f"{pipeline}: run {run.run_id} is silent for {in_words(run.silent_seconds or 0)}: {run.advice}"
    return None


def _letters(view: LedgerView, pipeline: str, most: int) -> str | None:
    values = {"pipeline": pipeline, "most": most}
    found = view.rows(_NEW_LETTERS, values, "Counting new dead letters")[0][0]
    return f"{pipeline}: more than {most} dead letters of the last day wait" if found > most else None
