"""Servers end with what started them, also when that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from sandbox.errors import SandboxError
from sandbox.processes import ServerProcess

_PARENT = """
import sys, time
from pathlib import Path
from sandbox.processes import ServerProcess
server = ServerProcess("server", ["sh", "-c", "sleep 600 & sleep 600"], log=Path(sys.argv[1]))
print(server.pid, flush=True)
time.sleep(600)
"""


def _wait_for_the_end_of(group: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the group still runs")


def test_a_group_ends_when_its_parent_is_killed(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, tmp_path / "log"], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        group = int(parent.stdout.readline())
        os.killpg(group, 0)
        parent.send_signal(signal.SIGKILL)
    _wait_for_the_end_of(group)


def test_stop_ends_the_whole_group_and_may_be_said_twice(tmp_path):
    server = ServerProcess("server", ["sh", "-c", "sleep 600 & sleep 600"], log=tmp_path / "log")
    server.stop()
    server.stop()
    assert not server.is_running()
    _wait_for_the_end_of(server.pid)


def test_one_that_ends_at_once_is_told_with_its_output(tmp_path):
    server = ServerProcess("server", ["sh", "-c", "echo the reason >&2; exit 3"], log=tmp_path / "log")
    with pytest.raises(SandboxError, match=r"ended while it started.*the reason"):
        server.wait_until(lambda: False)
    server.stop()


def test_a_missing_program_is_named(tmp_path):
    with pytest.raises(SandboxError, match="could not be started"):
        ServerProcess("server", ["/nowhere/server"], log=tmp_path / "log")
