"""``--var name=value``, as several commands have it."""

from __future__ import annotations

from collections.abc import Sequence

from spark_jobs.contracts.errors import ConfigError


def parse_variables(given: Sequence[str]) -> dict[str, str]:
    """Return the variables of ``--var name=value`` options.

    :raises ConfigError: one has no ``=`` or no name, or a name comes twice. The value is not shown.
    """
    variables: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            cure = 'write --var name=value, in quotes where the shell needs them: --var "data=/my data"'
            shown = repr(text) if not equals else "a value without a name"
            raise ConfigError("An option --var cannot be read", found=shown, expected="name=value", cure=cure)
        if name.strip() in variables:
            raise ConfigError(f"The variable {name.strip()} is given twice", expected="each --var once")
        variables[name.strip()] = value
    return variables
