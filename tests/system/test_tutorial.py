"""The tutorial's commands, files and queries, taken from the page and run one after the other; outputs compared.

``sh`` blocks run in bash, ``json file=NAME`` blocks are written, ``sql`` blocks are asked; the ``text`` block behind
one is what it must show, line by line, with ``…`` for anything. Blocks of another kind are for reading only.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sandbox.places import REPOSITORY

if TYPE_CHECKING:
    from tests.system.conftest import Site

PAGE = REPOSITORY / "docs" / "tutorial.md"
DATABASE = "postgres://etl:secret@localhost:5432/shop"
FOLDER = "/tmp/shop"
CLONE = "path/to/the/clone"
_BLOCK = re.compile(r"^```(\w+)[ ]?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMAND = """set -eo pipefail
source "$TUTORIAL_STATE"
{command}
{{ declare -px; printf 'cd %q\\n' "$PWD"; }} > "$TUTORIAL_STATE"
"""


@dataclass(frozen=True)
class Block:
    """One fenced block and, if a ``text`` block follows it, what it must show."""

    kind: str
    info: str
    text: str
    shows: str = ""

    @property
    def first_line(self) -> str:
        return next(iter(self.text.splitlines()), self.kind)


def blocks(page: str) -> Iterator[Block]:
    found = [Block(kind, info, text) for kind, info, text in _BLOCK.findall(page)]
    for block, following in zip(found, [*found[1:], Block("", "", "")], strict=True):
        if block.kind in ("sh", "json", "sql"):
            yield Block(block.kind, block.info, block.text, following.text if following.kind == "text" else "")


@dataclass
class Reader:
    """Somebody who types what the page says; only folder, clone and the database's address are their own."""

    site: Site
    folder: Path
    done: list[str] = field(default_factory=list)

    @property
    def state(self) -> Path:
        return self.folder.parent / "shell"

    def follow(self, block: Block) -> None:
        shown = {"sh": self.run, "json": self.save, "sql": self.ask}[block.kind](block)
        compare(self._own(block.shows), shown, block.first_line)
        self.done.append(block.first_line)

    def run(self, block: Block) -> str:
        expected = int(block.info.removeprefix("exit=") or 0)
        environ = {**self.site.airflow.environ, "TUTORIAL_STATE": str(self.state), "COLUMNS": "200"}
        environ["PATH"] = f"{Path(sys.executable).parent}:{environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", _COMMAND.format(command=self._own(block.text))],
            env=environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )
        assert done.returncode == expected, f"{block.text}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def save(self, block: Block) -> str:
        (self.folder / block.info.removeprefix("file=")).write_text(self._own(block.text))
        return ""

    def ask(self, block: Block) -> str:
        if dag := block.info.removeprefix("after="):
            self._wait_for_newest_run(dag)
        with self.site.server.connect("tutorial") as conn:
            rows = conn.execute(block.text.encode()).fetchall()
        return "\n".join(" | ".join(str(value) for value in row) for row in rows)

    def _wait_for_newest_run(self, dag: str) -> None:
        [run] = self.site.airflow.api("GET", f"/dags/{dag}/dagRuns")["dag_runs"]
        state = self.site.airflow.wait_run(dag, run["dag_run_id"], seconds=420)
        assert state == "success", self.site.log(dag, run["dag_run_id"])
        assert self.site.airflow.xcom(dag, run["dag_run_id"], "run_pipeline")["ledger"] == "balanced"
        assert "event=batch_committed" in self.site.log(dag, run["dag_run_id"])

    def _own(self, text: str) -> str:
        for theirs, ours in (
            (DATABASE, self.site.server.airflow_uri("tutorial")),
            (FOLDER, str(self.folder)),
            (CLONE, f"'{REPOSITORY}'"),
        ):
            text = text.replace(theirs, ours)
        return text


def compare(expected: str, shown: str, what: str) -> None:
    """Each expected line is in what was shown, in this order; ``…`` stands for anything."""
    position = 0
    for line in filter(None, map(str.strip, expected.splitlines())):
        pattern = re.compile(".*?".join(map(re.escape, line.split("…"))))
        found = pattern.search(shown, position)
        assert found, f"{what}: {line!r} is not shown, or not in its place, in:\n{shown}"
        position = found.end()


@pytest.fixture
def reader(site: Site, tmp_path: Path) -> Iterator[Reader]:
    site.server.create_database("tutorial")
    host = {"host": "127.0.0.1", "port": site.server.port, "schema": "tutorial"}
    login = {"login": site.server.user, "password": site.server.password}
    site.airflow.api("POST", "/connections", {"connection_id": "shop", "conn_type": "postgres", **host, **login})
    reader = Reader(site, tmp_path / "shop")
    reader.state.touch()
    yield reader
    (site.pipelines / "hourly_orders.json").unlink(missing_ok=True)
    site.airflow.api("DELETE", "/connections/shop")
    site.server.drop_database("tutorial")


@pytest.mark.timeout(1500)
def test_the_tutorial_does_what_it_says(site: Site, reader: Reader) -> None:
    for block in blocks(PAGE.read_text(encoding="utf-8")):
        if block.text.startswith("airflow dags unpause"):
            site.airflow.wait_dag("hourly-orders")
        reader.follow(block)
    assert len(reader.done) > 15
