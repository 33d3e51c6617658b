"""What is left of a section that has problems of its own, so that rules can still judge the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ParamSpec

from pydantic import TypeAdapter

from spark_jobs.contracts.config.section import Section

P = ParamSpec("P")


class UnknowableError(Exception):
    """A rule asked for a setting that is wrong, which has been noted; there is nothing more to say."""


def salvage(model: type[Section], values: Mapping[str, Any], bad: set[str]) -> Section:
    """Return the section with its valid fields; asking for one of the bad ones raises ``UnknowableError``.

    :param bad: names or aliases of the fields that are missing or wrong.
    """
    good, unknowable = dict[str, Any](), set[str]()
    for name, field in model.model_fields.items():
        alias = field.alias or name
        if alias in bad or name in bad:
            unknowable.add(name)
        elif alias in values:
            kind: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
            good[name] = TypeAdapter[Any](kind).validate_python(values[alias])

    def get(self: Section, name: str) -> Any:
        if name in unknowable:
            raise UnknowableError(name)
        return object.__getattribute__(self, name)

    partial: type[Section] = type(model.__name__, (model,), {"__getattribute__": get, "__module__": model.__module__})
    return partial.model_construct(**{model.model_fields[name].alias or name: value for name, value in good.items()})


def attempt(rule: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
    """Apply a rule; one that needs a wrong setting is passed over, because that setting's own problem is noted."""
    try:
        rule(*args, **kwargs)
    except UnknowableError:
        return
