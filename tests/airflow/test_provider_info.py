from __future__ import annotations

import importlib
import json
from importlib.metadata import distribution
from pathlib import Path

import airflow
import jsonschema

from airflow_etl_provider.get_provider_info import get_provider_info


def test_is_valid_against_airflows_schema() -> None:
    schema = json.loads((Path(airflow.__file__).parent / "provider_info.schema.json").read_text())
    jsonschema.validate(get_provider_info(), schema)


def test_names_the_distribution_that_declares_the_entry_point() -> None:
    entry_points = distribution(get_provider_info()["package-name"]).entry_points
    assert [(e.group, e.load()) for e in entry_points if e.group == "apache_airflow_provider"] == [
        ("apache_airflow_provider", get_provider_info)
    ]


def test_all_modules_that_it_names_are_there() -> None:
    info = get_provider_info()
    for group in ("operators", "hooks"):
        for entry in info[group]:
            for module in entry["python-modules"]:
                importlib.import_module(module)
