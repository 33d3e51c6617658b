"""A small pooler in transaction mode, for tests: clients share server connections, one transaction at a time.

Every client is let in by the real server, through a connection of its own that then joins the pool or, when the pool
is full, is closed. From then on each of its transactions runs on the connection that has been idle for longest, so
whatever a client leaves behind in a session (SET, LISTEN, advisory locks, prepared statements) is gone or belongs to
somebody else in its next transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_ENCRYPTION_REQUESTS = (80877103, 80877104)
_CANCEL_REQUEST = 80877102
_OWN_KEY = b"K" + struct.pack("!III", 12, 1, 2)


@dataclass(eq=False)
class _Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    server: _Server | None = None


@dataclass(eq=False)
class _Server:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    client: _Client | None = None
    pending: int = 0
    """Answers (ReadyForQuery) that the server still owes."""
    last_request: bytes = b""


@dataclass
class TransactionPooler:
    """Listens on ``port`` of 127.0.0.1; ``transactions`` counts what it carried."""

    upstream_port: int
    size: int = 2
    port: int = 0
    transactions: int = 0
    _idle: asyncio.Queue[_Server] = field(default_factory=asyncio.Queue)
    _pooled: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        listener = await asyncio.start_server(self._client_came, "127.0.0.1", 0)
        self.port = listener.sockets[0].getsockname()[1]
        ready.set()
        await stop.wait()
        listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)

    async def _client_came(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._keep(asyncio.current_task())
        self._writers.add(writer)
        client = _Client(reader, writer)
        try:
            if await self._admit(client):
                await self._carry(client)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            # The client left, or the pooler stops.
            pass
        finally:
            if client.server is not None:
                self._drop(client.server)
            writer.close()

    async def _admit(self, client: _Client) -> bool:
        startup = await _startup(client)
        if startup is None:
            return False
        if b"\0options\0" in startup:
            client.writer.write(_refusal("unsupported startup parameter: options"))
            return False
        server = _Server(*await asyncio.open_connection("127.0.0.1", self.upstream_port))
        self._writers.add(server.writer)
        server.writer.write(startup)
        while True:
            kind, message = await _message(server.reader)
            # As PgBouncer does: the key to cancel with is the pooler's own.
            client.writer.write(_OWN_KEY if kind == b"K" else message)
            if kind == b"Z":
                break
            if kind == b"E":
                server.writer.close()
                return False
            if kind == b"R" and message[5:9] not in (struct.pack("!I", 0), struct.pack("!I", 12)):
                server.writer.write((await _message(client.reader))[1])
        if self._pooled < self.size:
            self._pooled += 1
            self._idle.put_nowait(server)
            self._keep(asyncio.create_task(self._answer(server)))
        else:
            server.writer.close()
        return True

    async def _carry(self, client: _Client) -> None:
        while True:
            kind, message = await _message(client.reader)
            if kind == b"X":
                return
            if client.server is None:
                client.server = await self._idle.get()
                client.server.client = client
                client.server.pending = 0
            server = client.server
            if kind in b"QSF":
                server.pending += 1
                server.last_request = kind
            server.writer.write(message)
            await server.writer.drain()

    async def _answer(self, server: _Server) -> None:
        try:
            while True:
                kind, message = await _message(server.reader)
                client = server.client
                if client is None:
                    continue
                client.writer.write(message)
                if kind == b"G" and server.last_request == b"S":
                    # Until the copy ends the server takes no notice of a Sync, so it owes nothing for this one.
                    server.pending -= 1
                if kind == b"Z":
                    server.pending -= 1
                    if server.pending == 0 and message[5:6] == b"I":
                        self._release(server, client)
                await client.writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            self._drop(server)

    def _release(self, server: _Server, client: _Client) -> None:
        self.transactions += 1
        client.server = server.client = None
        self._idle.put_nowait(server)

    def _drop(self, server: _Server) -> None:
        if server.client is not None:
            server.client.writer.close()
            server.client.server = None
            server.client = None
        if not server.writer.is_closing():
            self._pooled -= 1
            server.writer.close()

    def _keep(self, task: asyncio.Task[None] | None) -> None:
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


@contextmanager
def transaction_pooler(upstream_port: int, *, size: int = 2) -> Iterator[TransactionPooler]:
    """Run a pooler in front of the server on ``upstream_port`` while the block runs."""
    pooler = TransactionPooler(upstream_port, size)
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    def run() -> None:
        with contextlib.closing(loop):
            loop.run_until_complete(pooler.serve(ready, stop))

    thread = threading.Thread(target=run, name="transaction-pooler", daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield pooler
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        assert not thread.is_alive()


async def _startup(client: _Client) -> bytes | None:
    while True:
        head = await client.reader.readexactly(4)
        message = head + await client.reader.readexactly(struct.unpack("!I", head)[0] - 4)
        (code,) = struct.unpack("!I", message[4:8])
        if code == _CANCEL_REQUEST:
            return None
        if code not in _ENCRYPTION_REQUESTS:
            return message
        client.writer.write(b"N")


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(5)
    return head[:1], head + await reader.readexactly(struct.unpack("!I", head[1:])[0] - 4)


def _refusal(text: str) -> bytes:
    body = b"SFATAL\0VFATAL\0C08P01\0M" + text.encode() + b"\0\0"
    return b"E" + struct.pack("!I", len(body) + 4) + body
