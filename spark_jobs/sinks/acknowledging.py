"""Acknowledge at once what Spark sends to a Python worker. Executor side; does nothing where Linux is not beneath.

Spark's executor writes what a task is, and then its first rows, to a TCP socket without TCP_NODELAY: the rows wait for
the acknowledgement of what was before them (RFC 896), which the worker's kernel delays by 40 ms in the hope of something
to send back (RFC 1122, 4.2.3.2). A micro-batch of few rows would spend more time in that wait than in its COPY.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache

import pyarrow as pa

_DESCRIPTORS = "/proc/self/fd"


def acknowledged(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Return the batches as they are; what has come is acknowledged before more is waited for."""
    sockets = _tcp_sockets(os.getpid())
    _acknowledge(sockets)
    for batch in batches:
        yield batch
        _acknowledge(sockets)


def _acknowledge(sockets: Iterable[socket.socket]) -> None:
    for one in sockets:
        # Not a setting: it is about what is waiting now, and the kernel goes back to delaying.
        with suppress(OSError):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


@lru_cache(maxsize=1)
def _tcp_sockets(_process: int) -> tuple[socket.socket, ...]:
    # A worker has its socket from the start, and keeps it from task to task; Spark does not hand it out.
    if not hasattr(socket, "TCP_QUICKACK") or not os.path.isdir(_DESCRIPTORS):  # noqa: PTH112 - no Path in a hot task
        return ()
    found = []
    for name in os.listdir(_DESCRIPTORS):  # noqa: PTH208
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                one = socket.socket(fileno=os.dup(int(name)))
                if one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM:
                    found.append(one)
                    continue
                one.close()
    return tuple(found)
