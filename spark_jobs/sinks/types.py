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
    DayTimeIntervalType,
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
    TimeType,
    VarcharType,
    VariantType,
    YearMonthIntervalType,
)

from spark_jobs.rows import json_text

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
    VariantType: "jsonb",
    TimeType: "time without time zone",
    DayTimeIntervalType: "interval",
    YearMonthIntervalType: "interval",
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
    "character": StringType(),
    "citext": StringType(),
    "json": StringType(),
    "enum": StringType(),
    "bytea": BinaryType(),
    "date": DateType(),
    "timestamp with time zone": TimestampType(),
    "timestamp without time zone": TimestampNTZType(),
}
_DOCUMENTS = (ArrayType, MapType, StructType, VariantType)
_TEXTS = (StringType, VarcharType, CharType)
# What a text may go into beside text: the server reads it, and refuses what is no such value.
_READ_BY_SERVER = ("json", "jsonb", "uuid", "enum", "citext", "character", "inet", "cidr", "macaddr", "macaddr8")
# Types whose binary form nobody sends: the text is staged, and cast by the merge.
_STAGED_AS_TEXT = ("inet", "cidr", "macaddr", "macaddr8")
_UUID_BYTES = 16

# What lies below these lands beside them, on days and instants that the server refuses: ADBC subtracts the 30 years
# between both epochs, and of what does not fit into 64 bits it says nothing that names the row; the smallest numbers
# that do fit are PostgreSQL's infinities.
_EARLIEST: dict[type[DataType], str] = {
    DateType: "date_from_unix_date(-2147472690)",
    TimestampType: "timestamp_micros(-9222425352054775807)",
    TimestampNTZType: "CAST(timestamp_micros(-9222425000000000000) AS TIMESTAMP_NTZ)",
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
    """Tell whether each value of ``source`` has its place in a column of type ``target``, or the server refuses it."""
    if target.base == "numeric":
        return _fits_numeric(source, target)
    return target.base in _places(source)


def _fits_numeric(source: DataType, target: PostgresType) -> bool:
    if isinstance(source, DecimalType):
        return _decimal_fits(source.precision, source.scale, target)
    return isinstance(source, _INTEGERS) and _decimal_fits(_DIGITS[type(source)], 0, target)


def _places(source: DataType) -> tuple[str, ...]:
    own = PostgresType.parse(column_type(source)).base
    if isinstance(source, _INTEGERS):
        order = ("smallint", "integer", "bigint")
        return order[order.index(own) :]
    if isinstance(source, _TEXTS):
        # A value too long for varchar(n) is refused by the server, and shows itself.
        return ("text", "character varying", *_READ_BY_SERVER)
    if isinstance(source, _DOCUMENTS):
        return ("json", "jsonb")
    return ("real", "double precision") if isinstance(source, FloatType) else (own,) if own else ()


def travels_as_text(source: DataType, target: PostgresType) -> bool:
    """Tell whether the value must be staged as text, to be cast by the merge: COPY cannot send it in binary form."""
    return target.base in _STAGED_AS_TEXT or isinstance(source, YearMonthIntervalType)


def _decimal_fits(precision: int, scale: int, target: PostgresType) -> bool:
    if target.precision is None:
        return True
    target_scale = target.scale or 0
    return target_scale >= scale and target.precision - target_scale >= precision - scale


def to_sent(column: Column, source: DataType, target: PostgresType) -> Column:
    """Return ``column`` as COPY must send it into ``target``, or as text for the staging table; see :func:`fits`."""
    if travels_as_text(source, target):
        return _months(column) if isinstance(source, YearMonthIntervalType) else column.cast("string")
    if isinstance(source, _DOCUMENTS):
        column, source = json_text(column), StringType()
    if target.base == "uuid":
        return _uuid(column)
    if target.base == "jsonb":
        # The binary form of jsonb is its text behind a version byte.
        return F.when(column.isNotNull(), F.concat(F.lit(bytearray(b"\x01")), F.encode(column, "UTF-8")))
    sent = _SENT_AS.get(target.base, source)
    if target.base == "numeric" and isinstance(source, _INTEGERS):
        sent = DecimalType(_DIGITS[type(source)], 0)
    if type(source) in _EARLIEST:
        earliest = F.expr(_EARLIEST[type(source)])
        return F.when(column < earliest, earliest).otherwise(column)
    return column if sent == source else column.cast(sent)


def _uuid(column: Column) -> Column:
    # As PostgreSQL reads them: any case, braces around, hyphens anywhere between groups of four digits.
    digits = F.regexp_replace(F.lower(F.regexp_replace(F.trim(column), r"^\{(.*)\}$", "$1")), "-", "")
    # What is no UUID is sent with a length that the server refuses; never as NULL, nor as other bytes.
    refused = F.concat(F.lit(bytearray(_UUID_BYTES)), F.encode(column, "UTF-8"), F.lit(bytearray(1)))
    return F.when(digits.rlike("^[0-9a-f]{32}$"), F.unhex(digits)).when(column.isNotNull(), refused)


def _months(column: Column) -> Column:
    years, months = (F.extract(F.lit(part), column).cast("bigint") for part in ("YEAR", "MONTH"))
    return F.concat((years * 12 + months).cast("string"), F.lit(" months"))
