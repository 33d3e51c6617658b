"""The ids that every line of a run carries: pipeline, run, epoch, query, batch. Standard library only.

They belong to the thread that does the run's work. Spark calls ``foreachBatch`` in a thread of its own, which is given
them anew with each micro-batch. Lines of threads that nobody gave any (py4j's, a library's) get those of the run under
way, if this process has just one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Final

Ids = Mapping[str, str | int]

NAMES: Final = ("pipeline", "run", "epoch", "query", "batch")
_NONE: Final[Ids] = MappingProxyType({})


class _Scope:
    """The ids of one run; replaced as a whole, so that other threads may read them at any time."""

    def __init__(self, ids: Ids) -> None:
        self.ids = ids


_scope: ContextVar[_Scope | None] = ContextVar("etl_log_ids", default=None)
_runs: list[_Scope] = []


@contextmanager
def run_scope() -> Iterator[None]:
    """Forget at the end what is said about a run within; within another scope, leave that to the outer one."""
    if _scope.get() is not None:
        yield
        return
    scope = _Scope(_NONE)
    token = _scope.set(scope)
    _runs.append(scope)
    try:
        yield
    finally:
        _runs[:] = [other for other in _runs if other is not scope]
        _scope.reset(token)


def begin(**ids: str | int) -> None:
    """Say which run this thread's scope is about from now on; what was said before is forgotten."""
    if (scope := _scope.get()) is not None:
        scope.ids = ids


def add(**ids: str | int) -> None:
    """Say more about the run of this thread's scope, as it becomes known."""
    if (scope := _scope.get()) is not None:
        scope.ids = {**scope.ids, **ids}


@contextmanager
def batch_scope(**ids: str | int) -> Iterator[None]:
    """Give the lines of this thread these ids and no others, until the end of the block."""
    token = _scope.set(_Scope(ids))
    try:
        yield
    finally:
        _scope.reset(token)


def current() -> Ids:
    """Return the ids for a line of this thread, those that are known; empty outside a run."""
    scope = _scope.get()
    if scope is not None:
        return scope.ids
    runs = tuple(_runs)
    return runs[0].ids if len(runs) == 1 else _NONE
