"""A failure that everybody hears who waited while it happened, instead of waiting for it once more."""

from __future__ import annotations

from time import monotonic

from spark_jobs.contracts.errors import EtlError


class SharedFailure:
    """The last failure of something that many ask one after the other. For one thread."""

    def __init__(self) -> None:
        self._at = 0.0
        self._error: EtlError | None = None

    def note(self, error: EtlError) -> None:
        """Let those hear of it who wait now."""
        self._error, self._at = error, monotonic()

    def raise_for(self, asked_at: float) -> None:
        """Raise the failure where it happened since.

        :param asked_at: when the question was asked, by :func:`time.monotonic`.
        """
        if self._error is not None and self._at >= asked_at:
            raise self._error.with_traceback(None)
