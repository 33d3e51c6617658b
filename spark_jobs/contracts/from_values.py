"""Values that a person gave, made into a model, or into an error which names each that does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from spark_jobs.contracts.errors import ConfigError

_M = TypeVar("_M", bound=BaseModel)


def from_values(model: type[_M], values: Mapping[str, Any], what: str) -> _M:
    """Return the model with these values.

    :param what: the error's first words, such as ``The cleanup is not valid``.
    :raises ConfigError: naming every value that is not valid, and never the value itself.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'they'}: {problem['msg']}"
            for problem in error.errors(include_input=False)
        )
        raise ConfigError(what, found=problems, cure="Correct the named values") from None
