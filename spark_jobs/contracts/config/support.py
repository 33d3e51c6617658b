"""What a valid configuration asks for that this version does not have yet."""

from __future__ import annotations

from spark_jobs.contracts.config.pipeline import PipelineConfig
from spark_jobs.contracts.config.problems import Problem, UnsupportedConfigError


def unsupported(config: PipelineConfig) -> list[Problem]:
    """Return all of it."""
    return []


def require_supported(config: PipelineConfig) -> None:
    """Raise if any."""
    problems = unsupported(config)
    if problems:
        raise UnsupportedConfigError(problems)
