"""The transforms, in the order in which they are applied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PlainSerializer,
    SerializeAsAny,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from spark_jobs.contracts.config.enumerations import AggregationFunction, AggregationFunctionText
from spark_jobs.contracts.config.problems import any_of, fold, nearest
from spark_jobs.contracts.config.section import Duration, Names, Section, Text, mismatch

_FUNCTIONS = [function.value for function in AggregationFunction]
_AGGREGATION = '"column:function" or "column:function:output"'


def _columns(value: Any) -> dict[str, str]:
    expected = "an object: column name → SQL expression"
    if not isinstance(value, dict) or not value:
        raise mismatch(expected, "write the names as keys" if isinstance(value, list | str) and value else "")
    by_folded: dict[str, str] = {}
    for name, expression in value.items():
        if not name.strip():
            raise mismatch(expected, found="a column without a name")
        if not isinstance(expression, str) or not expression.strip():
            hint = "write the expression as a text" if isinstance(expression, int | float) else ""
            raise mismatch("a SQL expression for each column", hint, found=f"no SQL expression for {name}")
        other = by_folded.setdefault(name.casefold(), name)
        if other != name:
            raise mismatch("each column once; case makes no difference", found=f"both {other} and {name}")
    return dict(value)


Columns = Annotated[
    dict[str, str],
    BeforeValidator(_columns),
    WithJsonSchema({"type": "object", "minProperties": 1, "additionalProperties": {"type": "string", "minLength": 1}}),
]


class SelectParameters(Section):
    """Which columns go on."""

    columns: Columns = Field(description="Name → SQL expression; exactly these columns go on.")


class FilterParameters(Section):
    """Which rows go on."""

    condition: Text = Field(description="SQL condition; rows for which it is true go on, the others are counted.")


class Aggregation(Section):
    """One aggregated column. Where no such column exists, ``count`` counts rows."""

    column: Text = Field(description="The column that goes into the function; `*` counts rows.")
    function: AggregationFunctionText = Field(description="`sum`, `avg`, `count`, `min`, `max`, `first` or `last`.")
    output: Text = Field("", validate_default=False, description="Name of the result; `column` unless given.")

    @model_validator(mode="after")
    def _named_after_its_column(self) -> Self:
        return self if self.output else self.derive(output=self.column)


def _aggregations(value: Any) -> tuple[Any, ...]:
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list | tuple) or not value:
        raise mismatch(f"{_AGGREGATION}, several with commas between them, or a list of objects")
    return tuple(_aggregation(item) if isinstance(item, str) else item for item in value)


def _aggregation(text: str) -> dict[str, str]:
    parts = [part.strip() for part in text.split(":")]
    if len(parts) not in (2, 3) or not all(parts):
        hint = "a comma too many?" if not text.strip() else 'odd names: {"column": "a:b", "function": "sum"} in a list'
        raise mismatch(_AGGREGATION, hint, found=f'"{text.strip()}"')
    if fold(parts[1]) not in _FUNCTIONS:
        found = f'the function "{parts[1]}" in "{text.strip()}"'
        raise mismatch(any_of(_FUNCTIONS), nearest(parts[1], _FUNCTIONS), found)
    return dict(zip(("column", "function", "output"), parts, strict=False))


def _written(aggregations: tuple[Aggregation, ...]) -> str | list[dict[str, Any]]:
    names = [item.model_dump(mode="json", by_alias=True, exclude_unset=True) for item in aggregations]
    plain = all(not set(str(name)) & set(",:") for item in names for name in item.values())
    return ",".join(":".join(item.values()) for item in names) if plain else names


Aggregations = Annotated[
    tuple[Aggregation, ...],
    BeforeValidator(_aggregations),
    PlainSerializer(_written),
]


class AggregationParameters(Section):
    """Groups, an optional time window, and what is computed for each."""

    group_by: Names = Field(default=(), alias="groupByColumns", description="Group columns.")
    window_column: Text | None = Field(
        None, description="Event-time column of the window; the watermark's column unless given."
    )
    window_duration: Duration | None = Field(None, description="Length of a window; without it there is no window.")
    slide_duration: Duration | None = Field(
        None, description="Distance between the starts of windows; the window's own length unless given."
    )
    aggregations: Aggregations = Field(description=f"{_AGGREGATION}, with commas between; or a list of objects.")


class Transform(Section):
    """A step between source and sink; ``transform_type`` says which."""

    transform_type: str = Field(description="Which transform.")

    @classmethod
    def model_for(cls, value: Mapping[str, Any]) -> type[Section] | None:
        """Return the model of the type that the object names; None when there is no such type."""
        from spark_jobs.contracts.config import registry  # noqa: PLC0415 - the registry knows the models of this file

        name = value.get("transformType", value.get("transform_type"))
        return registry.transform_model(name) if isinstance(name, str) else None


def _type(name: str) -> BeforeValidator:
    return BeforeValidator(lambda value: name if isinstance(value, str) and fold(value) == fold(name) else value)


class SelectTransform(Transform):
    """Exactly the named columns, each from an SQL expression: select, rename, cast, compute."""

    transform_type: Annotated[Literal["select"], _type("select")] = Field(description="`select`")
    parameters: SelectParameters = Field(description="See `SelectParameters`.")

    @property
    def columns(self) -> dict[str, str]:
        """Output name → SQL expression."""
        return self.parameters.columns


class FilterTransform(Transform):
    """Only the rows for which a condition is true."""

    transform_type: Annotated[Literal["filter"], _type("filter")] = Field(description="`filter`")
    parameters: FilterParameters = Field(description="See `FilterParameters`.")

    @property
    def condition(self) -> str:
        """The SQL condition."""
        return self.parameters.condition


class AggregationTransform(Transform):
    """Groups, tumbling or sliding windows, seven functions."""

    transform_type: Annotated[Literal["aggregation"], _type("aggregation")] = Field(description="`aggregation`")
    parameters: AggregationParameters = Field(description="See `AggregationParameters`.")

    @property
    def group_by(self) -> tuple[str, ...]:
        """The group columns, without the window."""
        return self.parameters.group_by

    @property
    def window_column(self) -> str | None:
        """The event-time column of the window; None without a window."""
        return self.parameters.window_column

    @property
    def window_duration(self) -> str | None:
        """The window's length; None without a window."""
        return self.parameters.window_duration

    @property
    def slide_duration(self) -> str | None:
        """The distance between windows; None for tumbling windows."""
        return self.parameters.slide_duration

    @property
    def aggregations(self) -> tuple[Aggregation, ...]:
        """What is computed for each group."""
        return self.parameters.aggregations

    @property
    def output_columns(self) -> tuple[str, ...]:
        """The result's columns in order: window, groups, aggregates."""
        window = ("window_start", "window_end") if self.window_duration else ()
        return (*window, *self.group_by, *(item.output for item in self.aggregations))


class PlannedTransform(Transform):
    """A transform of the references that this version does not have; refused before anything runs."""

    parameters: dict[str, Any] = Field(default_factory=dict, description="Not looked at.")


class RegisteredTransform(Transform):
    """A transform that an installed package registers; its ``Parameters`` model has checked the parameters."""

    parameters: SerializeAsAny[BaseModel] = Field(description="As the package documents them.")


def _dispatched(value: Any) -> Any:
    if isinstance(value, Transform):
        return value
    model = Transform.model_for(value) if isinstance(value, dict) else None
    if model is None:
        raise PydanticCustomError(
            "mismatch", "no known transform", {"expected": "a transform", "hint": "", "found": ""}
        )
    return model.model_validate(value)


AnyTransform = Annotated[SerializeAsAny[Transform], BeforeValidator(_dispatched)]
