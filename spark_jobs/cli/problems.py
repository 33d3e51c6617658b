"""How a command ends that has done what it could for all pipelines but some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spark_jobs.contracts.errors import EtlError


def not_everything(done: str, problems: Mapping[str, dict[str, Any]]) -> EtlError:
    """Return the error that names each pipeline's problem (:meth:`EtlError.to_json`) and what to do about them."""
    named = "; ".join(f"{pipeline_id}: {error['what']}" for pipeline_id, error in problems.items())
    cures = dict.fromkeys(str(error["cure"]) for error in problems.values() if error["cure"])
    return EtlError(f"Not everything could be {done}", found=named, cure=" ".join(cures))
