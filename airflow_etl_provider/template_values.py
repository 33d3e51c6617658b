"""Parameters as templates give them: texts, or native objects where the DAG asks for those."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def names(given: Sequence[str] | str | None) -> tuple[str, ...]:
    """Return a list, or the names of a text with commas."""
    if not given:
        return ()
    return tuple(part.strip() for part in given.split(",") if part.strip()) if isinstance(given, str) else tuple(given)


def number_or_none(given: Any) -> Any:
    """Return the value as it is, None for what a template makes of a parameter without one."""
    return None if given in (None, "", "None") else given


def is_true(given: bool | str) -> bool:
    """Return whether the value means yes."""
    return given.strip().lower() in ("true", "1", "yes") if isinstance(given, str) else bool(given)
