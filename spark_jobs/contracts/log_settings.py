"""How a run logs: the choices of the command line, the driver, the operator and the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final, Literal, cast, get_args

from spark_jobs.contracts.errors import ConfigError

LogFormat = Literal["plain", "json"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]

FORMAT_VARIABLE: Final = "ETL_LOG_FORMAT"
LEVEL_VARIABLE: Final = "ETL_LOG_LEVEL"


def log_format(given: str | None, option: str, environ: Mapping[str, str] | None = None) -> LogFormat:
    """Return the format that was given, else the environment's ``ETL_LOG_FORMAT``, else ``plain``.

    :param option: as errors call it: ``--log-format``.
    :raises ConfigError: there is no such format.
    """
    return cast("LogFormat", _chosen(given, option, FORMAT_VARIABLE, get_args(LogFormat), "plain", environ))


def log_level(given: str | None, option: str, environ: Mapping[str, str] | None = None) -> LogLevel:
    """Return the level that was given, in any case, else the environment's ``ETL_LOG_LEVEL``, else ``INFO``.

    :raises ConfigError: there is no such level.
    """
    return cast("LogLevel", _chosen(given, option, LEVEL_VARIABLE, get_args(LogLevel), "INFO", environ))


def _chosen(
    given: str | None,
    option: str,
    variable: str,
    known: tuple[str, ...],
    default: str,
    environ: Mapping[str, str] | None,
) -> str:
    environ = os.environ if environ is None else environ
    word, origin = (given, option) if given else (environ.get(variable) or default, variable)
    for name in known:
        if word.lower() == name.lower():
            return name
    raise ConfigError(
        f"{origin} names nothing that there is",
        found=repr(word),
        expected=f"one of {', '.join(known)}",
        cure=f"correct {origin}, or leave it out: {default}",
    )
