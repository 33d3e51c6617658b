"""What a DAG processor, a triggerer and a worker load of this package: never Spark, and nothing that is as large."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys

import airflow_etl_provider

HEAVY = ("pyspark", "pandas", "pyarrow", "numpy")
LOADED = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
"""


def modules(*parts: str) -> list[str]:
    """Return the package's modules, or those of these parts."""
    found = pkgutil.walk_packages(airflow_etl_provider.__path__, "airflow_etl_provider.")
    names = [module.name for module in found]
    return [name for name in names if not parts or name.split(".")[1] in parts]


def loaded(*names: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", LOADED, *names], check=True, capture_output=True, text=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_no_module_of_the_provider_loads_spark_or_pandas() -> None:
    everything = modules()
    for part in ("operators", "sensors", "triggers", "hooks", "example_dags"):
        assert modules(part), part
    found = loaded(*everything)
    assert set(everything) <= found
    assert [name for name in HEAVY if name in found] == []


def test_what_a_dag_file_imports_loads_no_database_client() -> None:
    """It would be half of what importing an operator may take."""
    found = loaded(*modules("operators", "sensors", "dag_files", "late_runs", "links"))
    assert [name for name in ("psycopg", "airflow_etl_provider.triggers.ledger") if name in found] == []
