"""A server as a child process: its own process group, its output in a file, never left behind.

A small watcher goes with each group. It waits on a pipe that only this process holds open; when this process ends in
any way, `kill -9` included, the pipe closes and the watcher ends the group.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from sandbox.errors import SandboxError

Command = list[str | Path]

_WATCHER = """
import os, signal, sys, time
group = int(sys.argv[1])
if os.read(0, 1):
    sys.exit()
for number, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 0)):
    try:
        os.killpg(group, number)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.1)
    except OSError:
        break
"""


class ServerProcess:
    """One running server and everything that it started.

    :param name: what messages call it.
    :param command: program and arguments.
    :param log: file that takes its output.
    :param environ: its whole environment; the caller's when None.
    :param user: unprivileged user to run as, where the caller is root.
    :raises SandboxError: the program cannot be started.
    """

    def __init__(
        self,
        name: str,
        command: Command,
        *,
        log: Path,
        environ: Mapping[str, str] | None = None,
        user: str | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self.log = log
        try:
            with log.open("ab") as output:
                self._child = subprocess.Popen(
                    [str(part) for part in command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=dict(environ) if environ is not None else None,
                    cwd=cwd,
                    start_new_session=True,
                    user=user if os.getuid() == 0 else None,
                    group=_group_of(user),
                    extra_groups=[] if user and os.getuid() == 0 else None,
                )
        except OSError as error:
            raise SandboxError(f"{name} could not be started", found=str(error)) from error
        self._watcher = _watch(self._child.pid)
        atexit.register(self.stop)

    @property
    def pid(self) -> int:
        """Return the process id, which is also the id of its group."""
        return self._child.pid

    def is_running(self) -> bool:
        """Tell whether the process itself (not a child of it) is alive."""
        return self._child.poll() is None

    def wait_until(self, ready: Callable[[], bool], *, seconds: float = 60) -> None:
        """Wait until ``ready()`` is true.

        :raises SandboxError: the process ended, or the time is up; with the end of its log.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            if not self.is_running():
                raise SandboxError(f"{self.name} ended while it started", found=self.log_end())
            if time.monotonic() > deadline:
                raise SandboxError(f"{self.name} was not ready after {seconds:.0f} s", found=self.log_end())
            time.sleep(0.1)

    def log_end(self, lines: int = 25) -> str:
        """Return the last lines of its output."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def stop(self, number: signal.Signals = signal.SIGTERM, *, seconds: float = 20) -> None:
        """Ask the group to end, then kill what is left of it. Doing it twice is fine."""
        atexit.unregister(self.stop)
        self._signal(number)
        deadline = time.monotonic() + seconds
        while self._group_lives() and time.monotonic() < deadline:
            time.sleep(0.05)
        self.kill()

    def kill(self) -> None:
        """End the whole group with SIGKILL and wait for it."""
        atexit.unregister(self.stop)
        self._signal(signal.SIGKILL)
        self._child.wait()
        if self._watcher.returncode is not None:
            return
        self._watcher.communicate(b".")

    def _signal(self, number: int) -> bool:
        try:
            os.killpg(self._child.pid, number)
        except ProcessLookupError:
            return False
        return True

    def _group_lives(self) -> bool:
        self._child.poll()
        return self._signal(0)


def run_as(user: str | None, command: Command) -> str:
    """Run a program to its end, as ``user`` where the caller is root, and return what it printed.

    :raises SandboxError: it cannot be started, or it fails.
    """
    try:
        done = subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            user=user if os.getuid() == 0 else None,
            group=_group_of(user),
            extra_groups=[] if user and os.getuid() == 0 else None,
        )
    except OSError as error:
        raise SandboxError(f"{command[0]} could not be started", found=str(error)) from error
    if done.returncode != 0:
        raise SandboxError(f"{command[0]} failed with exit code {done.returncode}", found=done.stdout + done.stderr)
    return done.stdout


def _group_of(user: str | None) -> int | None:
    if user is None or os.getuid() != 0:
        return None
    import pwd

    return pwd.getpwnam(user).pw_gid


def _watch(group: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WATCHER, str(group)], stdin=subprocess.PIPE, start_new_session=True
    )
