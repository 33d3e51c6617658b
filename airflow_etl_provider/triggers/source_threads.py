"""Threads that ask sources: one a system, so that one that is dead keeps nobody else waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

from airflow_etl_provider.triggers.shared_failure import SharedFailure
from spark_jobs.contracts.errors import SourceUnreachableError
from spark_jobs.contracts.watch.condition import AtLedger, AtSource, Seen

SLOW_SECONDS: Final = 0.5
"""A failure that took as long is taken for the whole system's."""


@dataclass(slots=True)
class _System:
    """A source's thread, and when it last did not answer."""

    thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(max_workers=1, thread_name_prefix="etl-source-watch")
    )
    unanswered: SharedFailure = field(default_factory=SharedFailure)

    def ask(self, question: Callable[[], Seen | AtLedger], asked_at: float) -> Seen | AtLedger:
        self.unanswered.raise_for(asked_at)
        began = monotonic()
        try:
            return question()
        except SourceUnreachableError as error:
            # A quick one is about what was asked for, such as a topic that is not there.
            if error.retryable and monotonic() - began >= SLOW_SECONDS:
                self.unanswered.note(error)
            raise


class SourceThreads:
    """The threads of one event loop."""

    def __init__(self) -> None:
        self._systems: dict[str, _System] = {}

    async def ask(self, step: AtSource) -> Seen | AtLedger:
        """Go on at the source; raises as ``step.ask`` does."""
        system = self._systems.setdefault(step.system, _System())
        return await asyncio.get_running_loop().run_in_executor(system.thread, system.ask, step.ask, monotonic())

    def close(self) -> None:
        """Let the threads end with the questions that they are at."""
        for system in self._systems.values():
            system.thread.shutdown(wait=False, cancel_futures=True)
        self._systems.clear()
