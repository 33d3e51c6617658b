"""JSON text to columns, strictly: one value, one object, every field of the schema's type.

Spark's ``from_json`` alone would let three kinds of damage pass as good rows: text after the first object is ignored
(a second record is lost), invalid UTF-8 is replaced, and an empty value is a row of nulls. Each is a dead letter here.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

_CORRUPT = "__corrupt"
_PARSED = "__parsed"
_TEXT = "__text"
# No value can close the object around it and open another that ends in the same way.
_FIRST, _LAST = "value", secrets.token_hex(8)


@dataclass(frozen=True, slots=True)
class ParsedJson:
    """What parsing gave.

    :param frame: the input with the schema's columns added. :param error: STRING, why the value was refused, or NULL.
    """

    frame: DataFrame
    error: Column


def parse_json(df: DataFrame, value: str, schema: StructType, options: Mapping[str, str]) -> ParsedJson:
    """Add the columns of ``schema``, parsed from the BINARY or STRING column ``value``, to ``df``.

    :param options: Spark's JSON options (``timestampFormat``, …).
    """
    with_corrupt = StructType([*schema.fields, StructField(_CORRUPT, StringType())])
    reader = {**options, "mode": "PERMISSIVE", "columnNameOfCorruptRecord": _CORRUPT}
    text = F.col(value).cast("string")
    parsed = df.withColumn(_TEXT, text).withColumn(_PARSED, F.from_json(F.col(_TEXT), with_corrupt, reader))
    fields = [F.col(_PARSED)[field.name].alias(field.name) for field in schema.fields]
    return ParsedJson(parsed.select("*", *fields), _error(options))


def drop_working_columns(df: DataFrame) -> DataFrame:
    """Remove what :func:`parse_json` needed on the way."""
    return df.drop(_TEXT, _PARSED)


def _error(options: Mapping[str, str]) -> Column:
    text = F.col(_TEXT)
    return (
        F.when(text.isNull(), F.lit("NULL_VALUE: the value is null (a tombstone?)"))
        .when(~F.is_valid_utf8(text), F.lit("INVALID_UTF8: the value is not valid UTF-8"))
        .when(F.col(_PARSED).isNull(), F.lit("EMPTY_VALUE: the value is empty"))
        .when(
            F.col(_PARSED)[_CORRUPT].isNotNull(),
            F.lit("MALFORMED_JSON: the value is no JSON object of the schema's types"),
        )
        .when(~_one_object(text, options), F.lit("TRAILING_CONTENT: more follows the first JSON object"))
    )


def _one_object(text: Column, options: Mapping[str, str]) -> Column:
    # Of a flat object the only closing brace is the last byte: true of nearly every record, and found at the speed of
    # memory (positions and lengths in characters cost a quarter of the parsing). Only the others are tokenised again,
    # as a member of an object that must then have exactly the members it was given.
    head = F.substring(text.cast("binary"), 1, F.octet_length(text) - 1).cast("string")
    wrapped = F.concat(F.lit(f'{{"{_FIRST}":'), text, F.lit(f',"{_LAST}":0}}'))
    members = F.array(F.lit(_FIRST), F.lit(_LAST))
    alone = F.coalesce(F.json_object_keys(wrapped) == members, F.lit(False))
    # That function knows plain JSON only; what the options allow beyond it, NaN by default, is read again as they say.
    as_read = F.from_json(wrapped, "MAP<STRING, STRING>", {**options, "mode": "PERMISSIVE"})
    slowly = F.coalesce(F.map_keys(as_read) == members, F.lit(False))
    return F.when(~F.contains(head, F.lit("}")) | alone, F.lit(True)).otherwise(slowly)


def error_class(error: Column) -> Column:
    """Return the part of an error text before its colon."""
    return F.substring_index(error, ":", 1)
