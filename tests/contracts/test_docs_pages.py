"""The pages agree with the code: links lead somewhere, queries run, exit codes and options are those that there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from spark_jobs.cli import COMMANDS
from spark_jobs.contracts.config import PipelineConfig, unsupported
from spark_jobs.contracts.exit_codes import ExitCode
from spark_jobs.contracts.tracker.migrate import migrate

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md")])
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_SQL = re.compile(r"^```sql\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CODE_ROW = re.compile(r"^\| (\d+) \| `(\w+)` \|", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    broken = []
    for link in _LINK.findall(text):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_every_page_can_be_reached_from_the_index() -> None:
    seen, waiting = set(), [DOCS / "index.md"]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        links = (link.partition("#")[0] for link in _LINK.findall(page.read_text()) if "://" not in link)
        waiting += [(page.parent / link).resolve() for link in links if link]
    assert set(DOCS.rglob("*.md")) <= seen


@pytest.mark.parametrize("page", ["guides/operating.md", "reference/ledger.md"])
def test_the_queries_run(page: str, database: Any) -> None:
    queries = [
        query for block in _SQL.findall((DOCS / page).read_text()) for query in block.split(";") if query.strip()
    ]
    assert queries
    with database.connect() as conn:
        migrate(conn, "etl")
        conn.execute("SET search_path = etl")
        for query in queries:
            conn.execute(query.encode())


def test_every_exit_code_is_explained() -> None:
    rows = _CODE_ROW.findall((DOCS / "guides" / "operating.md").read_text())
    assert [(int(code), name) for code, name in rows] == [(code.value, code.name) for code in ExitCode]
    assert [int(code) for code in re.findall(r"\| (\d+) [a-z]", (ROOT / "README.md").read_text())] == list(ExitCode)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_command_is_explained(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    from spark_jobs.cli import main

    with pytest.raises(SystemExit):
        main([command, "--help"])
    options = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)) - {"--help"}
    page = (DOCS / "reference" / "cli.md").read_text()
    section = page.partition(f"## `etl-pipeline {command}")[2].partition("\n## ")[0]
    assert options <= set(re.findall(r"--[a-z][a-z-]+", section))


def test_the_readmes_pipeline_is_valid() -> None:
    [text] = re.findall(r"^```json\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert unsupported(PipelineConfig.from_json(text)) == []
