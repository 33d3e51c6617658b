"""The last word of a process about the error that ended it, in the form of its log."""

from __future__ import annotations

import logging
import sys

from spark_jobs.contracts.errors import EtlError
from spark_jobs.contracts.log_settings import LogFormat
from spark_jobs.contracts.redaction import mask
from spark_jobs.logs.events import log_event


def tell_error(log: logging.Logger, error: EtlError, form: LogFormat, hint: str = "") -> None:
    """Say on standard error what failed, what was found and expected, and the cure.

    :param hint: a further line for people.
    """
    if form == "json":
        log_event(log, logging.ERROR, "error", **error.to_json())
        return
    sys.stderr.write(mask(f"Error: {error}") + "\n" + (f"{hint}\n" if hint else ""))
    sys.stderr.flush()
