"""Which write strategy a batch gets, and why: judged from offsets, file sizes and state, never by counting rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

from spark_jobs.contracts.config import OutputMode, WriteMode, WriteStrategy
from spark_jobs.contracts.errors import ConfigError, TwoPhaseUnavailableError
from spark_jobs.sinks.ability import TwoPhase
from spark_jobs.sources.base import BatchSize

# One task feeds one COPY at full speed, but it parses on one core: JSON takes more time than all that comes after it.
_STATELESS_ROWS = 200_000
_STATELESS_BYTES = 64 << 20
# What may pass through the driver's memory at once.
_HANDED_OVER_ROWS = 50_000


@dataclass(frozen=True, slots=True)
class Choice:
    """A strategy and its reason, as log and ledger show them.

    :param parts: most parts of the batch, for ``two_phase``.
    :param several_read: for ``single``: whether the task that writes takes its rows from tasks that read and parse them
        side by side. To read one partition of a topic after the other takes a quarter of a second for each, however few
        rows it has.
    """

    strategy: WriteStrategy
    reason: str
    parts: int = 1
    several_read: bool = False


@dataclass(frozen=True, slots=True)
class Means:
    """What a sink has to write with.

    :param parallelism: most tasks that write at once. :param asked: ``load.writeParallelism``, None when not set.
    """

    write_mode: WriteMode
    two_phase: TwoPhase
    parallelism: int
    asked: int | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What bounds the rows that an aggregation gives.

    :param state_rows: rows of Spark's state before the batch; None when nobody knows.
    """

    output_mode: OutputMode
    windows_per_row: int = 1
    state_rows: int | None = None


def choose(
    forced: WriteStrategy, size: BatchSize, means: Means, *, result: Result | None = None, gaps_possible: bool = False
) -> Choice:
    """Choose ``single``, ``two_phase`` or ``staged``.

    :param result: None for a stateless pipeline.
    :param gaps_possible: what the source lost is known once all rows were read, and must be in the same commit: then
        the driver commits, not a task.
    :raises ConfigError: ``single`` was forced for a result that may not pass through the driver, or where gaps are
        possible.
    :raises TwoPhaseUnavailableError: ``two_phase`` was forced, and server or table do not allow it.
    """
    if result is not None:
        means = replace(means, two_phase=means.two_phase.with_letters())
    elif size.partitions is not None:
        means = replace(means, parallelism=min(means.parallelism, size.partitions))
    if forced is WriteStrategy.TWO_PHASE:
        return _forced_two_phase(means)
    small, reason = _stateless(size, means) if result is None else _stateful(forced, size, result)
    if forced is WriteStrategy.SINGLE and gaps_possible:
        raise ConfigError(
            "load.writeStrategy single could not record what the source has lost",
            found="failOnDataLoss=false",
            expected="a driver's commit: gaps are known once all rows were read, and belong into the same transaction",
            cure="Use auto or staged, or leave failOnDataLoss at true",
        )
    if forced is not WriteStrategy.AUTO:
        return Choice(forced, "forced by writeStrategy")
    if small and not gaps_possible:
        several = result is None and _several_read(size, means)
        return Choice(WriteStrategy.SINGLE, f"{reason}, and several read it" if several else reason, 1, several)
    if small:
        return Choice(WriteStrategy.STAGED, "failOnDataLoss=false: gaps are looked for before the commit")
    return _large(reason, means)


def _forced_two_phase(means: Means) -> Choice:
    if means.write_mode is not WriteMode.APPEND:
        raise TwoPhaseUnavailableError(
            "load.writeStrategy two_phase cannot be carried out",
            found=f"writeMode {means.write_mode.value}",
            expected="writeMode append: parts that become visible one after the other cannot merge or replace rows",
            cure="Use auto, single or staged",
        )
    means.two_phase.require(means.asked)
    return Choice(WriteStrategy.TWO_PHASE, f"forced by writeStrategy, in {_parts_text(means)}", _parts(means))


def _large(reason: str, means: Means) -> Choice:
    ability = means.two_phase
    why_not = ability.obstacle or ability.doubt
    if means.write_mode is not WriteMode.APPEND:
        why_not = f"writeMode {means.write_mode.value}"
    elif not why_not and ability.room < min(2, means.parallelism):
        why_not = f"room for {ability.room} prepared transactions only"
    if why_not:
        return Choice(WriteStrategy.STAGED, f"{reason}; not two_phase: {why_not}")
    return Choice(WriteStrategy.TWO_PHASE, f"{reason}, in {_parts_text(means)}", _parts(means))


def _several_read(size: BatchSize, means: Means) -> bool:
    # Where rows replace one another their order counts, which is the partitions' as long as one task reads them.
    return means.write_mode is WriteMode.APPEND and (size.partitions or 1) > 1 and means.parallelism > 1


def _parts(means: Means) -> int:
    return max(min(means.parallelism, means.two_phase.room), 1)


def _parts_text(means: Means) -> str:
    parts, room = _parts(means), means.two_phase.room
    text = "one part" if parts == 1 else f"at most {parts} parts"
    return f"{text}: no more prepared transactions are free" if room < means.parallelism else text


def _stateless(size: BatchSize, means: Means) -> tuple[bool, str]:
    by_bytes = size.data_bytes is not None and size.data_bytes <= _STATELESS_BYTES
    by_rows = size.data_bytes is None and size.rows is not None and size.rows <= _STATELESS_ROWS
    if by_bytes or by_rows:
        return True, f"{_amount(size)}: one task writes it at once"
    if means.parallelism == 1:
        why = "the source has one partition" if size.partitions == 1 else "one task runs at a time"
        return True, f"{_amount(size)}: one task writes it, as {why}"
    return False, f"{_amount(size)}: several tasks write it"


def _stateful(forced: WriteStrategy, size: BatchSize, result: Result) -> tuple[bool, str]:
    bound = _result_bound(size, result)
    fits = bound is not None and bound <= _HANDED_OVER_ROWS
    text = f"at most {bound} result rows" if bound is not None else "result of unknown size"
    if forced is WriteStrategy.SINGLE and not fits:
        raise ConfigError(
            "load.writeStrategy single would bring the aggregation's result through the driver",
            found=text,
            expected=f"at most {_HANDED_OVER_ROWS} result rows",
            cure="Use auto or staged",
        )
    return fits, text


def _result_bound(size: BatchSize, result: Result) -> int | None:
    if size.rows is None:
        return None
    touched = size.rows * result.windows_per_row
    if result.output_mode is OutputMode.UPDATE:
        return touched
    return None if result.state_rows is None else result.state_rows + touched


def _amount(size: BatchSize) -> str:
    if size.data_bytes is not None:
        return f"{size.data_bytes} bytes of files"
    return "a batch of unknown size" if size.rows is None else f"at most {size.rows} rows"
