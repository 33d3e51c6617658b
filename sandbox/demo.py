"""``make demo``: a web shop's orders through Airflow, Spark and PostgreSQL, and the books beside them.

Everything is real and of the demo's own: servers on loopback and free ports, state in ``.sandbox``, gone at the next
start.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from sandbox import demo_books
from sandbox.airflow import Airflow
from sandbox.demo_pipelines import from_files, from_kafka, write_pipelines
from sandbox.demo_screen import Screen
from sandbox.errors import SandboxError
from sandbox.jars import Group, is_cached, jars
from sandbox.java import java_version
from sandbox.kafka import KafkaBroker
from sandbox.orders import OrderDay, order_day
from sandbox.places import REPOSITORY, state_dir
from sandbox.postgres import PostgresServer
from sandbox.postgres_binaries import postgres_version
from spark_jobs.contracts.errors import EtlError
from spark_jobs.contracts.tracker.migrate import migrate

_DATABASE = "shop"
_TOPIC = "orders"
_KAFKA_JARS: tuple[Group, ...] = ("broker", "spark-kafka")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return the exit code: 0 when every line is where the books say."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kafka", action="store_true", help="through a real Kafka broker instead of files")
    parser.add_argument("--exit", action="store_true", help="end instead of leaving the UI running")
    parser.add_argument("--orders", type=int, default=20_000, help="orders of the day (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    # What ends the demo from outside takes the servers down in the orderly way too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    screen = Screen()
    try:
        with ExitStack() as servers:
            return _demo(servers, screen, chosen)
    except KeyboardInterrupt:
        screen.say("stopped")
        return 130
    except EtlError as error:
        print(error, file=sys.stderr)
        return int(error.exit_code)


def _demo(servers: ExitStack, screen: Screen, chosen: argparse.Namespace) -> int:
    home = servers.enter_context(_fresh_home())
    screen.say(f"Java {java_version()}, PostgreSQL {postgres_version()}; state in {home}")
    with screen.step("starting PostgreSQL"):
        postgres = servers.enter_context(PostgresServer(home / "postgres"))
        postgres.create_database(_DATABASE)
        with postgres.connect(_DATABASE) as connection:
            migrate(connection, "etl")
    with screen.step(f"generating {chosen.orders:,} orders of one day"):
        day = order_day(orders=chosen.orders)
    screen.say(f"  {day.counts}")
    extract = _offer(servers, screen, day, home, kafka=chosen.kafka)
    names = _install_pipelines(home, extract)
    with screen.step("starting Airflow (half a minute or so)"):
        airflow = servers.enter_context(_airflow(home, postgres, kafka=chosen.kafka))
    watcher = servers.enter_context(postgres.connect(_DATABASE, autocommit=True))
    if not _run(airflow, demo_books.Watch(watcher, screen), names):
        return 1
    demo_books.show(watcher, screen)
    holds = demo_books.check(watcher, screen, day)
    if not chosen.exit:
        _stay(airflow, postgres, screen)
    return 0 if holds else 1


@contextmanager
def _fresh_home() -> Iterator[Path]:
    """Give the demo's folder, emptied; only one demo may have it."""
    folder = state_dir()
    with (folder / "demo.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SandboxError("A demo is running already", cure="stop it with Ctrl-C in its terminal") from error
        home = folder / "demo"
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(mode=0o755)
        yield home


def _offer(servers: ExitStack, screen: Screen, day: OrderDay, home: Path, *, kafka: bool) -> dict[str, Any]:
    """Bring the orders to where the pipelines read them, and return the pipelines' ``extract``."""
    if not kafka:
        with screen.step("writing the orders as JSON-lines files"):
            day.write_files(home / "orders")
        return from_files(home / "orders")
    for group in _KAFKA_JARS:
        if not is_cached(group):
            with screen.step(f"fetching the jars of {group} (only once, up to two minutes)"):
                jars(group)
    with screen.step("starting Kafka"):
        broker = servers.enter_context(KafkaBroker(home / "kafka"))
        broker.create_topic(_TOPIC, partitions=2)
    with screen.step("producing the orders to Kafka"):
        broker.produce(_TOPIC, day.records())
    return from_kafka(broker.bootstrap_servers, _TOPIC)


def _install_pipelines(home: Path, extract: dict[str, Any]) -> list[str]:
    """Drop the DAG file and the pipelines' JSON into the DAG folder, as a user would; return the DAGs' ids."""
    dags = home / "airflow" / "dags"
    dags.mkdir(parents=True)
    shutil.copy(REPOSITORY / "dags" / "etl_pipelines.py", dags)
    files = write_pipelines(dags / "pipelines", extract, home / "checkpoints")
    return [json.loads(file.read_text())["pipelineId"] for file in files]


def _airflow(home: Path, postgres: PostgresServer, *, kafka: bool) -> Airflow:
    settings = home / "spark"
    settings.mkdir()
    (settings / "spark-defaults.conf").write_text(_spark_defaults(kafka=kafka))
    connections = {
        "warehouse": postgres.airflow_uri(_DATABASE),
        "spark_default": json.dumps({"conn_type": "spark", "host": "local[2]"}),
    }
    return Airflow(home / "airflow", connections=connections, environ={"SPARK_CONF_DIR": str(settings)})


def _spark_defaults(*, kafka: bool) -> str:
    settings = {
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        # A small day on a small machine.
        "spark.sql.shuffle.partitions": "2",
        "spark.sql.session.timeZone": "UTC",
    }
    if kafka:
        settings["spark.jars"] = ",".join(jar.as_uri() for jar in jars("spark-kafka"))
    return "".join(f"{name} {value}\n" for name, value in settings.items())


def _run(airflow: Airflow, watch: demo_books.Watch, names: list[str]) -> bool:
    """Trigger each DAG through the REST API, tell what they commit, and say whether all succeed."""
    screen = watch.screen
    with screen.step("waiting for Airflow to find the pipelines"):
        for name in names:
            airflow.wait_dag(name)
            airflow.unpause(name)
    runs = {name: airflow.trigger(name) for name in names}
    with screen.step(f"running {' and '.join(runs)}, triggered through the REST API"):
        states = {name: airflow.wait_run(name, run, watch=lambda _: watch.look()) for name, run in runs.items()}
        watch.look()
    for name, state in states.items():
        if state != "success":
            screen.say(f"[red]✗[/] {name}: {state}; the end of its task's log:")
            print(airflow.task_log(name, runs[name], "run_pipeline", with_fields=False)[-6000:])
    return all(state == "success" for state in states.values())


def _stay(airflow: Airflow, postgres: PostgresServer, screen: Screen) -> None:
    screen.say("")
    screen.say(f"Airflow:    {airflow.url}  user {airflow.user}, password {airflow.password}")
    screen.say(f"PostgreSQL: psql '{postgres.uri(_DATABASE)}'")
    screen.say("Ctrl-C ends everything.")
    with suppress(KeyboardInterrupt):
        threading.Event().wait()
    screen.say("stopping")


if __name__ == "__main__":
    sys.exit(main())
