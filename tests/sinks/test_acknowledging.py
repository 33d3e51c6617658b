"""Rows pass as they are, whatever sockets the worker has. What it is for is measured by ``make bench``."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pyarrow as pa
import pytest

from spark_jobs.sinks import acknowledging
from spark_jobs.sinks.acknowledging import acknowledged


@pytest.fixture
def tcp() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection to oneself, and no memory of the sockets that this process had before."""
    acknowledging._tcp_sockets.cache_clear()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as one:
        other, _ = server.accept()
        with other:
            yield one, other
    acknowledging._tcp_sockets.cache_clear()


def _batches(count: int) -> list[pa.RecordBatch]:
    return [pa.RecordBatch.from_pydict({"n": [number]}) for number in range(count)]


def test_rows_come_as_they_were_sent_and_no_earlier(tcp: tuple[socket.socket, socket.socket]) -> None:
    one, other = tcp
    asked: list[int] = []

    def received() -> Iterator[pa.RecordBatch]:
        for number in range(3):
            asked.append(number)
            one.sendall(b"row")
            assert other.recv(3) == b"row"
            yield _batches(3)[number]

    rows = acknowledged(received())
    assert asked == []
    assert next(rows) == _batches(3)[0]
    assert asked == [0]
    assert list(rows) == _batches(3)[1:]


def test_a_socket_that_is_gone_does_no_harm(tcp: tuple[socket.socket, socket.socket]) -> None:
    rows = acknowledged(_batches(2))
    first = next(rows)
    for one in tcp:
        one.close()
    assert [first, *rows] == _batches(2)


def test_where_the_system_has_no_such_thing_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    acknowledging._tcp_sockets.cache_clear()
    monkeypatch.setattr(acknowledging, "_DESCRIPTORS", "/no/such/folder")
    assert list(acknowledged(_batches(2))) == _batches(2)
    acknowledging._tcp_sockets.cache_clear()
