"""What can go wrong with the sandbox itself."""

from __future__ import annotations

from spark_jobs.contracts.errors import EtlError


class SandboxError(EtlError):
    """A server of the sandbox is missing, did not start, or did not answer in time."""
