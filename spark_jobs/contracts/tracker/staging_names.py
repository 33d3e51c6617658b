"""The names of staging tables, in the tracker's schema: whose one is, and of which of its drivers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from spark_jobs.contracts.tracker.statements import tag

_NAME = re.compile(r"(stage_[0-9a-f]{16}_)(\d{1,18})_\d+_(?:rows|letters)")


@dataclass(frozen=True, slots=True)
class StagingName:
    """What a staging table's name says."""

    name: str
    pipeline_id: str
    epoch: int


def staging_prefix(pipeline_id: str, schema: str) -> str:
    """Return what the names of a pipeline's staging tables begin with; the epoch follows."""
    return f"stage_{tag(pipeline_id, schema).split(':')[1][:16]}_"


def staging_of(names: Iterable[str], pipelines: Iterable[str], schema: str) -> list[StagingName]:
    """Return those of the names that are staging tables of the pipelines."""
    owners = {staging_prefix(pipeline_id, schema): pipeline_id for pipeline_id in pipelines}
    matches = ((name, _NAME.fullmatch(name)) for name in names)
    return [
        StagingName(name, owners[match[1]], int(match[2]))
        for name, match in matches
        if match is not None and match[1] in owners
    ]
