"""Which write strategy a batch gets, and why: judged from offsets, file sizes and state, never by counting rows."""

from __future__ import annotations

from dataclasses import dataclass

from spark_jobs.contracts.config import OutputMode, WriteStrategy
from spark_jobs.contracts.errors import ConfigError
from spark_jobs.sources.base import BatchSize

# One task feeds one COPY at full speed; more than this is worth the second write that staging costs.
_STATELESS_ROWS = 2_000_000
_STATELESS_BYTES = 256 << 20
# What may pass through the driver's memory at once.
_HANDED_OVER_ROWS = 50_000


@dataclass(frozen=True, slots=True)
class Choice:
    """A strategy and its reason, as log and ledger show them."""

    strategy: WriteStrategy
    reason: str


def choose(
    forced: WriteStrategy,
    size: BatchSize,
    *,
    stateful: bool,
    output_mode: OutputMode,
    windows_per_row: int = 1,
    state_rows: int | None = None,
) -> Choice:
    """Choose ``single`` or ``staged``.

    :param state_rows: rows of Spark's state before the batch; None when nobody knows.
    :raises ConfigError: ``single`` was forced for a result that may not pass through the driver.
    """
    if not stateful:
        return _stateless(forced, size)
    return _stateful(forced, size, output_mode, windows_per_row, state_rows)


def _stateless(forced: WriteStrategy, size: BatchSize) -> Choice:
    if forced is not WriteStrategy.AUTO:
        return Choice(forced, "forced by writeStrategy")
    small = size.data_bytes <= _STATELESS_BYTES if size.data_bytes is not None else (size.rows or 0) <= _STATELESS_ROWS
    if small and size != BatchSize():
        return Choice(WriteStrategy.SINGLE, f"{_amount(size)}: one task writes it at once")
    return Choice(WriteStrategy.STAGED, f"{_amount(size)}: several tasks write it")


def _stateful(
    forced: WriteStrategy, size: BatchSize, output_mode: OutputMode, windows_per_row: int, state_rows: int | None
) -> Choice:
    bound = _result_bound(size, output_mode, windows_per_row, state_rows)
    fits = bound is not None and bound <= _HANDED_OVER_ROWS
    text = f"at most {bound} result rows" if bound is not None else "result of unknown size"
    if forced is WriteStrategy.SINGLE and not fits:
        raise ConfigError(
            "load.writeStrategy single would bring the aggregation's result through the driver",
            found=text,
            expected=f"at most {_HANDED_OVER_ROWS} result rows",
            cure="Use auto or staged",
        )
    if forced is not WriteStrategy.AUTO:
        return Choice(forced, "forced by writeStrategy")
    return Choice(WriteStrategy.SINGLE if fits else WriteStrategy.STAGED, text)


def _result_bound(size: BatchSize, output_mode: OutputMode, windows_per_row: int, state_rows: int | None) -> int | None:
    if size.rows is None:
        return None
    touched = size.rows * windows_per_row
    if output_mode is OutputMode.UPDATE:
        return touched
    return None if state_rows is None else state_rows + touched


def _amount(size: BatchSize) -> str:
    if size.data_bytes is not None:
        return f"{size.data_bytes} bytes of files"
    return "a batch of unknown size" if size.rows is None else f"at most {size.rows} rows"
