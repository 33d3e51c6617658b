"""Options of the form ``name=value``, as all commands read them."""

from __future__ import annotations

from collections.abc import Sequence

from spark_jobs.contracts.errors import ConfigError


def parse_name_values(given: Sequence[str], option: str) -> dict[str, str]:
    """Return names and values, in the order given.

    :param option: as errors call it: ``--var``.
    :raises ConfigError: one has no ``=`` or no name, or a name comes twice. No value is shown.
    """
    values: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise ConfigError(
                f"An option {option} cannot be read",
                found="a text without =" if not equals else "a value without a name",
                expected="name=value",
                cure=f'write {option} name=value, in quotes where the shell needs them: {option} "data=/my data"',
            )
        if name in values:
            raise ConfigError(f"{option} {name} is given twice", expected=f"each {option} once")
        values[name] = value
    return values
