"""Which transforms and sources there are: those of this package, those planned, those that other packages register.

A package registers one through the entry-point groups below: a module with a pydantic model ``Parameters``.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points

from pydantic import BaseModel

from spark_jobs.contracts.config import extract
from spark_jobs.contracts.config.problems import fold
from spark_jobs.contracts.config.section import Section
from spark_jobs.contracts.config.transforms import (
    AggregationTransform,
    FilterTransform,
    PlannedTransform,
    RegisteredTransform,
    SelectTransform,
)
from spark_jobs.contracts.errors import ConfigError

TRANSFORM_GROUP = "airflow_etl_provider.transforms"
SOURCE_GROUP = "airflow_etl_provider.sources"
TRANSFORMS: dict[str, type[Section]] = {
    "select": SelectTransform,
    "filter": FilterTransform,
    "aggregation": AggregationTransform,
}
PLANNED_TRANSFORMS = (
    *(
        "json",
        "avro",
        "session_window",
        "time_window",
        "enrichment",
        "ml_enrichment",
        "anomaly_detection",
        "validation",
    ),
    *("data_quality", "deduplicate", "join", "template"),
)


def transform_model(name: str) -> type[Section] | None:
    """Return the model of a transform by its type's name, in any spelling; None when there is no such type."""
    by_folded = {fold(known): model for known, model in TRANSFORMS.items()}
    by_folded |= {fold(known): PlannedTransform for known in PLANNED_TRANSFORMS}
    if fold(name) in by_folded:
        return by_folded[fold(name)]
    return RegisteredTransform if name.strip() in _registered(TRANSFORM_GROUP) else None


def transform_names() -> list[str]:
    """Return all types of transforms, usable ones first."""
    return [*TRANSFORMS, *_registered(TRANSFORM_GROUP), *PLANNED_TRANSFORMS]


def usable_transform_names() -> list[str]:
    """Return the types of transforms that this installation has."""
    return [*TRANSFORMS, *_registered(TRANSFORM_GROUP)]


def source_names() -> list[str]:
    """Return the types of sources that this installation has."""
    return [*extract.SOURCES, *_registered(SOURCE_GROUP)]


def is_source(name: str) -> bool:
    """Say whether there is, or will be, a source of this type."""
    return name in extract.SOURCES or name in extract.PLANNED_SOURCES or name in _registered(SOURCE_GROUP)


def transform_parameters(name: str) -> type[BaseModel]:
    """Return the ``Parameters`` model of a registered transform.

    :raises ConfigError: the package cannot be imported, or has no such model.
    """
    return _parameters(_registered(TRANSFORM_GROUP)[name.strip()])


def source_parameters(name: str) -> type[BaseModel] | None:
    """Return the model for ``connectionParams`` of a registered source; None for the sources of this package.

    :raises ConfigError: the package cannot be imported, or has no such model.
    """
    if name in extract.SOURCES or name not in _registered(SOURCE_GROUP):
        return None
    return _parameters(_registered(SOURCE_GROUP)[name])


def _parameters(entry: EntryPoint) -> type[BaseModel]:
    what = f"The package that registers {entry.name!r} cannot be used"
    try:
        model = getattr(entry.load(), "Parameters", None)
    except Exception as error:
        found = f"importing {entry.value} failed: {type(error).__name__}: {error}"
        raise ConfigError(what, found=found, cure="install or repair that package") from error
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        expected = "a module with a pydantic model named Parameters"
        raise ConfigError(what, found=f"{entry.value} without that", expected=expected)
    return model


@cache
def _registered(group: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=group)}


def forget() -> None:
    """Look for registrations again: packages have come or gone."""
    _registered.cache_clear()
