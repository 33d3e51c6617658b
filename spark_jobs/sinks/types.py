"""Spark types and PostgreSQL types: what a new table gets, and what an existing column may take.

Binary COPY sends each Arrow type as it is, so that every column is cast to its target's exact type before it leaves
Spark. Only widenings are allowed: a cast that could fail or lose something is the pipeline's to write down.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    BooleanType,
    ByteType,
    CharType,
    DataType,
    DateType,
    DecimalType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    MapType,
    NullType,
    ShortType,
    StringType,
    StructType,
    TimestampNTZType,
    TimestampType,
    VarcharType,
)

_SIMPLE: dict[type[DataType], str] = {
    BooleanType: "boolean",
    ByteType: "smallint",
    ShortType: "smallint",
    IntegerType: "integer",
    LongType: "bigint",
    FloatType: "real",
    DoubleType: "double precision",
    StringType: "text",
    BinaryType: "bytea",
    DateType: "date",
    TimestampType: "timestamp with time zone",
    TimestampNTZType: "timestamp without time zone",
    ArrayType: "jsonb",
    MapType: "jsonb",
    StructType: "jsonb",
    VarcharType: "text",
    CharType: "text",
}

# PostgreSQL type (without its modifier) -> the Spark type that COPY sends for it.
_SENT_AS: dict[str, DataType] = {
    "boolean": BooleanType(),
    "smallint": ShortType(),
    "integer": IntegerType(),
    "bigint": LongType(),
    "real": FloatType(),
    "double precision": DoubleType(),
    "text": StringType(),
    "character varying": StringType(),
    "bytea": BinaryType(),
    "date": DateType(),
    "timestamp with time zone": TimestampType(),
    "timestamp without time zone": TimestampNTZType(),
}

_INTEGERS = (ByteType, ShortType, IntegerType, LongType)
_DIGITS: dict[type[DataType], int] = {ByteType: 3, ShortType: 5, IntegerType: 10, LongType: 19}


@dataclass(frozen=True, slots=True)
class PostgresType:
    """A column's type as ``format_type`` writes it. :param base: without its modifier."""

    base: str
    precision: int | None = None
    scale: int | None = None

    @classmethod
    def parse(cls, text: str) -> PostgresType:
        """Read what ``format_type`` writes: ``numeric(12,4)``, ``timestamp(3) without time zone`` and so on."""
        if "(" not in text:
            return cls(text)
        head, _, rest = text.partition("(")
        modifier, _, tail = rest.partition(")")
        numbers = [int(number) for number in modifier.split(",") if number.strip().lstrip("-").isdigit()]
        precision = numbers[0] if numbers else None
        scale = numbers[1] if len(numbers) > 1 else (0 if head == "numeric" else None)
        return cls((head + tail).strip(), precision, scale)

    def __str__(self) -> str:
        if self.precision is None:
            return self.base
        return f"{self.base}({self.precision}{'' if self.scale is None else f',{self.scale}'})"


def column_type(data_type: DataType) -> str:
    """Return the type that a new table's column gets; empty for a type that PostgreSQL has no place for."""
    if isinstance(data_type, DecimalType):
        return f"numeric({data_type.precision},{data_type.scale})"
    if isinstance(data_type, NullType):
        return ""
    return next((name for kind, name in _SIMPLE.items() if isinstance(data_type, kind)), "")


def fits(source: DataType, target: PostgresType) -> bool:
    """Tell whether each value of ``source`` has its place in a column of type ``target``."""
    wanted = PostgresType.parse(column_type(source))
    if isinstance(source, DecimalType):
        return target.base == "numeric" and _decimal_fits(source.precision, source.scale, target)
    if isinstance(source, _INTEGERS):
        if target.base == "numeric":
            return _decimal_fits(_DIGITS[type(source)], 0, target)
        order = ("smallint", "integer", "bigint")
        return target.base in order and order.index(target.base) >= order.index(wanted.base)
    if isinstance(source, FloatType):
        return target.base in ("real", "double precision")
    if wanted.base == "text":
        # A value too long for varchar(n) is refused by the server, and shows itself.
        return target.base in ("text", "character varying")
    return bool(wanted.base) and target.base == wanted.base


def _decimal_fits(precision: int, scale: int, target: PostgresType) -> bool:
    if target.precision is None:
        return True
    target_scale = target.scale or 0
    return target_scale >= scale and target.precision - target_scale >= precision - scale


def to_sent(column: Column, source: DataType, target: PostgresType) -> Column:
    """Return ``column`` as COPY must send it into ``target``; only for types that :func:`fits`."""
    if target.base == "jsonb":
        # The binary form of jsonb is its text behind a version byte.
        return F.when(column.isNotNull(), F.concat(F.lit(bytearray(b"\x01")), F.encode(F.to_json(column), "UTF-8")))
    if target.base == "numeric":
        if isinstance(source, DecimalType):
            return column
        return column.cast(DecimalType(_DIGITS[type(source)], 0))
    sent = _SENT_AS[target.base]
    return column if sent == source else column.cast(sent)
