"""The real spark-submit, stopped: with a Python driver below the JVM that takes its time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from airflow.exceptions import AirflowException
from airflow.providers.apache.spark.hooks.spark_submit import SparkSubmitHook

from airflow_etl_provider.hooks.spark_driver import PipelineSubmitHook
from sandbox.spark_cluster import spark_environ

DRIVER = """
import signal, sys, time
from pathlib import Path
here, seconds = Path(sys.argv[1]), float(sys.argv[2])
def stop(*_):
    time.sleep(seconds)
    (here / "stopped").touch()
    sys.exit(30)
signal.signal(signal.SIGTERM, stop)
(here / "ready").touch()
time.sleep(120)
"""


@pytest.fixture
def submitted(
    tmp_path: Path, connections: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[float], PipelineSubmitHook]]:
    """Start a driver that needs so many seconds to stop; it is ready when this returns."""
    # Without SPARK_HOME pyspark's script looks for itself, and finds nothing in a folder with a space in its name.
    for name in ("JAVA_HOME", "SPARK_HOME"):
        monkeypatch.setenv(name, spark_environ()[name])
    connections(spark_default="spark://local[1]")
    hooks: list[PipelineSubmitHook] = []
    threads: list[threading.Thread] = []

    def start(seconds: float) -> PipelineSubmitHook:
        application = tmp_path / "run_pipeline.py"
        application.write_text(DRIVER)
        base = SparkSubmitHook(conn_id="spark_default", application_args=[str(tmp_path), str(seconds)])
        base._connection["master"] = "local[1]"
        hook = PipelineSubmitHook.taking_over(base, application=application, environment={})
        hooks.append(hook)
        threads.append(threading.Thread(target=_submit, args=(hook, application)))
        threads[-1].start()
        wait_for((tmp_path / "ready").exists, "the driver")
        return hook

    yield start
    for hook in hooks:
        hook.kill_driver()
    for thread in threads:
        thread.join(timeout=30)
    for hook in hooks:
        if hook.guard is not None:
            hook.guard.wait(timeout=30)


def _submit(hook: PipelineSubmitHook, application: Path) -> None:
    with pytest.raises(AirflowException, match="Error code is"):
        hook.submit(str(application))


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not in {seconds} s"
        time.sleep(0.05)


def group_is_gone(group: int) -> bool:
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return False
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return True


def test_the_driver_may_end_its_batch(submitted: Callable[[float], PipelineSubmitHook], tmp_path: Path) -> None:
    hook = submitted(0.5)
    assert hook.stop_driver(20)
    assert (tmp_path / "stopped").exists()
    wait_for(lambda: group_is_gone(hook._submit_sp.pid), "the end of the group")


def test_a_driver_that_does_not_end_is_killed(submitted: Callable[[float], PipelineSubmitHook], tmp_path: Path) -> None:
    hook = submitted(60)
    assert not hook.stop_driver(0.5)
    hook.kill_driver()
    wait_for(lambda: group_is_gone(hook._submit_sp.pid), "the end of the group", 10)
    assert not (tmp_path / "stopped").exists()


def test_the_guard_kills_what_the_task_could_not(submitted: Callable[[float], PipelineSubmitHook]) -> None:
    """Airflow SIGKILLs the task five seconds after its SIGTERM: nobody calls ``kill_driver`` then."""
    hook = submitted(60)
    assert not hook.stop_driver(0.1)
    wait_for(lambda: group_is_gone(hook._submit_sp.pid), "the end of the group", 15)


def test_it_is_not_in_the_tasks_process_group(submitted: Callable[[float], PipelineSubmitHook]) -> None:
    hook = submitted(0)
    assert os.getpgid(hook._submit_sp.pid) == hook._submit_sp.pid != os.getpgid(0)


def test_a_driver_that_is_not_there_yet_has_not_ended(connections: Callable[..., None]) -> None:
    connections(spark_default="spark://local[1]")
    hook = PipelineSubmitHook.taking_over(
        SparkSubmitHook(conn_id="spark_default"), application=Path("run_pipeline.py"), environment={}
    )
    assert not hook.stop_driver(1)
