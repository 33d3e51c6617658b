"""The provider, as Airflow's own command line shows it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_airflow_knows_the_provider(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "airflow", "providers", "get", "airflow-etl-provider", "--full", "-o", "json"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    done = subprocess.run(
        command, env={**environ, "AIRFLOW_HOME": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert "airflow_etl_provider.operators.streaming_pipeline" in done.stdout
