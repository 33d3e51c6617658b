"""Options of the form ``name=value``."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.name_values import parse_name_values

NAMES = st.from_regex(r"[a-z][a-z_.]{0,8}", fullmatch=True)


@given(st.dictionaries(NAMES, st.text()))
def test_every_value_comes_back_whatever_it_holds(values: dict[str, str]) -> None:
    assert parse_name_values([f"{name}={value}" for name, value in values.items()], "--var") == values


@pytest.mark.parametrize("text", ["hunter2", "=hunter2", "  =hunter2"])
def test_what_has_no_name_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(ConfigError, match="An option --var cannot be read") as caught:
        parse_name_values([text], "--var")
    assert "hunter2" not in str(caught.value)


def test_a_name_that_comes_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="--conf a is given twice"):
        parse_name_values(["a=1", " a =2"], "--conf")
