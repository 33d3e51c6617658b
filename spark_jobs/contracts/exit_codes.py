"""Exit codes of ``run_pipeline.py`` and ``etl-pipeline``: one for each kind of end, so that nobody has to read text."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """How a run ended. Part of the contract: numbers are never reused."""

    FINISHED = 0
    UNEXPECTED = 1
    CONFIG_INVALID = 2
    NOT_SUPPORTED = 3
    CONNECTION_MISSING = 4
    DATABASE_UNREACHABLE = 5
    SOURCE_UNREACHABLE = 6
    TARGET_MISMATCH = 7
    CHECKPOINT_MISMATCH = 8
    FENCED = 9
    EXECUTORS_NOT_READY = 10
    DATA_ERROR = 11
    BOOKS_DO_NOT_BALANCE = 12
    LEDGER_VERSION = 13
    LEDGER_CONFLICT = 14
    TRANSIENT = 15
    BREAKER_OPEN = 16
    """A system that kept failing is left alone until the time that the error names."""
    LETTERS_NOT_PUBLISHED = 17
    REPROCESS_REFUSED = 18
    """Micro-batches cannot be done again without losing rows or having some twice; nothing of them was written."""
    STOPPED_COMMITTED = 30
    """Stopped on request; the micro-batch under way was committed (or none was under way)."""
    STOPPED_ROLLED_BACK = 31
    """Stopped on request; the micro-batch under way was rolled back, the next run does it again."""
