"""The provider, as Airflow's own command line shows it; ``UPDATE_DOCS=1`` writes the page anew."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "provider.md"


def test_the_page_is_what_airflow_shows(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "airflow", "providers", "get", "airflow-etl-provider", "--full", "-o", "yaml"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    environ |= {"AIRFLOW_HOME": str(tmp_path), "COLUMNS": "120"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    # Before it stands what Airflow logs.
    shown = done.stdout[done.stdout.index("- config:") :].strip()
    head, fence, rest = PAGE.read_text().partition("```yaml\n")
    if "UPDATE_DOCS" in os.environ:
        PAGE.write_text(f"{head}{fence}{shown}\n```\n")
    else:
        assert rest.partition("\n```")[0] == shown
