"""Who leaves rows unread reads nothing for a while, and then all, until the other side has closed."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from threading import Thread

import pytest

from spark_jobs.sinks.unread import leave_unread

MANY = b"r" * (16 << 20)


@pytest.fixture(params=[socket.AF_INET, socket.AF_UNIX])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Spark's end of a connection, and the worker's."""
    if request.param == socket.AF_UNIX:
        spark, worker = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            spark = socket.create_connection(server.getsockname())
            worker, _ = server.accept()
    with spark, worker:
        yield spark, worker


def _send(spark: socket.socket) -> None:
    with spark:
        spark.sendall(MANY)


def test_the_result_comes_though_nothing_more_is_read(ends: tuple[socket.socket, socket.socket]) -> None:
    spark, worker = ends
    with closing(os.fdopen(os.dup(worker.fileno()), "wb")) as outfile:
        leave_unread(worker, 3600)
        outfile.write(b"result")
    spark.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            spark.send(MANY)
    spark.setblocking(True)
    assert spark.recv(100) == b"result"


def test_the_worker_ends_with_the_connection(ends: tuple[socket.socket, socket.socket]) -> None:
    spark, worker = ends
    sender = Thread(target=_send, args=(spark,))
    sender.start()
    leave_unread(worker, 0)
    assert worker.recv(1024) == b""
    sender.join()
