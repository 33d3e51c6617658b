"""Free TCP ports on loopback."""

from __future__ import annotations

import random
import socket

# Below the range that the kernel hands to outgoing connections, so that none takes the port before its server does.
_RANGE = range(15_000, 32_000)
_chooser = random.SystemRandom()
_given: set[int] = set()


def free_port() -> int:
    """Return a port on 127.0.0.1 that nothing listens on and that this process was not given before."""
    while True:
        port = _chooser.choice(_RANGE)
        if port not in _given and _is_free(port):
            _given.add(port)
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def is_listening(port: int) -> bool:
    """Tell whether something accepts connections on the port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
