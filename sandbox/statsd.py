"""A StatsD server on loopback that keeps what it gets: with tags, as Airflow writes them for InfluxDB."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from threading import Condition, Thread
from types import TracebackType
from typing import Self

from sandbox.errors import SandboxError

_LONGEST = 65_535


@dataclass(frozen=True)
class Metric:
    """One line: ``name,tag=value:number|kind``; ``kind`` is ``c``, ``g`` or ``ms``."""

    name: str
    tags: dict[str, str]
    value: float
    kind: str

    @classmethod
    def of(cls, line: str) -> Self:
        """Read a line."""
        stat, _, rest = line.rpartition(":")
        value, kind = rest.split("|")[:2]
        name, *tags = stat.split(",")
        return cls(name, dict(tag.split("=", 1) for tag in tags), float(value), kind)


class StatsdServer:
    """Listens on a free UDP port; a context manager.

    :param prefix: only metrics of names that begin so are kept.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._kept: list[Metric] = []
        self._more = Condition()
        self._thread = Thread(target=self._listen, name="statsd", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An empty packet is the end: closing a socket does not wake who waits for it.
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    @property
    def port(self) -> int:
        """Return the port that it listens on."""
        return int(self._socket.getsockname()[1])

    def values(self, name: str, **tags: str) -> list[float]:
        """Return what came under a name with at least these tags, in the order in which it came."""
        with self._more:
            return [one.value for one in self._kept if one.name == name and tags.items() <= one.tags.items()]

    def wait(self, name: str, *, times: int = 1, seconds: float = 30, **tags: str) -> list[float]:
        """Wait until a metric has come; return its values.

        :raises SandboxError: it does not come within ``seconds``.
        """
        deadline = time.monotonic() + seconds
        with self._more:
            while len(found := self.values(name, **tags)) < times:
                if not self._more.wait(deadline - time.monotonic()):
                    raise SandboxError(f"No {times} × {name} {tags} in {seconds:.0f} s", found=str(self._kept))
        return found

    def _listen(self) -> None:
        while packet := self._socket.recv(_LONGEST):
            came = [Metric.of(line) for line in packet.decode().splitlines() if line.startswith(self._prefix)]
            with self._more:
                self._kept += came
                self._more.notify_all()
