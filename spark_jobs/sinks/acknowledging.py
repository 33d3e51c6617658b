"""Acknowledge at once what Spark sends to a Python worker. Executor side; does nothing where Linux is not beneath.

Spark's executor writes what a task is, and then its first rows, to a TCP socket without TCP_NODELAY: the rows wait for
the acknowledgement of what was before them (RFC 896), which the worker's kernel delays by 40 ms, in the hope of
something to send back (RFC 1122, 4.2.3.2). A micro-batch of few rows would wait longer than its COPY takes.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

T = TypeVar("T")

_DESCRIPTORS = "/proc/self/fd"
# Where more batches come than these, 40 ms are nothing beside the time that they take.
_BATCHES = 40


def acknowledged(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Return the batches as they are; what has come is acknowledged before more is waited for, while they are few."""
    descriptors = _tcp_sockets(os.getpid())
    _acknowledge(descriptors)
    iterator = iter(batches)
    for batch in islice(iterator, _BATCHES):
        yield batch
        _acknowledge(descriptors)
    yield from iterator


def _acknowledge(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        # Not a setting: it is about what is waiting now, and the kernel goes back to delaying.
        _as_socket(descriptor, lambda one: one.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1))


@lru_cache(maxsize=1)
def _tcp_sockets(_process: int) -> tuple[int, ...]:
    # A worker has its socket from the start, and keeps it from task to task; Spark does not hand it out.
    folder = Path(_DESCRIPTORS)
    if not hasattr(socket, "TCP_QUICKACK") or not folder.is_dir():
        return ()
    every = [int(entry.name) for entry in folder.iterdir()]
    return tuple(descriptor for descriptor in every if _as_socket(descriptor, _is_tcp))


def _is_tcp(one: socket.socket) -> bool:
    return one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM


def _as_socket(descriptor: int, act: Callable[[socket.socket], T]) -> T | None:
    """Do something with somebody else's descriptor as a socket; nothing where it is none, or none any more."""
    with suppress(OSError):
        one = socket.socket(fileno=descriptor)
        try:
            return act(one)
        finally:
            one.detach()
    return None
