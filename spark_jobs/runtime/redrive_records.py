"""The records that a redrive sends, and what a broker says of them."""

from __future__ import annotations

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import Column
from pyspark.sql import functions as F

from spark_jobs.contracts.errors import EtlError, RecordsNotSentError, RecordsUnwelcomeError
from spark_jobs.rows import LETTER_ID
from spark_jobs.runtime.redrive_checks import repaired
from spark_jobs.sinks.java_reasons import is_unwelcome, root_reason

HEADER = "etl.dead-letter."
"""What the headers of a record that was sent again begin with: ``id``, ``attempt``, ``topic``, ``partition``,
``offset``, ``stage`` and ``error-class``."""
_PLACE = "topic STRING, partition INT, offset BIGINT"
_HEADERS = "ARRAY<STRUCT<key: STRING, value: BINARY>>"


def message(patch: str | None) -> list[Column]:
    """Return a record's columns for Spark's writer: as it came, with headers that say where from.

    :param patch: the repair of its value; see :func:`~spark_jobs.runtime.redrive_checks.repaired`.
    """
    place = F.from_json("source", _PLACE)
    value = repaired(patch) if patch else F.col("raw_value")
    own = {
        "id": F.col(LETTER_ID),
        "attempt": F.col("attempt").cast("string"),
        "topic": place["topic"],
        "partition": place["partition"].cast("string"),
        "offset": place["offset"].cast("string"),
        "stage": F.col("stage"),
        "error-class": F.col("error_class"),
    }
    # A record that was sent again before bears headers of that time: the new ones take their place.
    came = F.coalesce(F.from_json("raw_headers", _HEADERS), F.array().cast(_HEADERS))
    kept = F.filter(came, lambda header: ~F.startswith(header["key"], F.lit(HEADER)))
    ours = F.array(
        *(F.struct(F.lit(HEADER + name).alias("key"), v.cast("binary").alias("value")) for name, v in own.items())
    )
    return [
        place["topic"].alias("topic"),
        place["partition"].alias("partition"),
        F.col("raw_key").alias("key"),
        value.alias("value"),
        F.concat(kept, ours).alias("headers"),
    ]


def not_sent(error: PySparkException | Py4JJavaError) -> EtlError:
    """Return the error of records that could not be sent."""
    reason = root_reason(error)
    what = "Records of dead letters could not be sent to their topic"
    if is_unwelcome(reason):
        cure = "Repair the records, raise the limit or grant the right; or choose other letters: they wait again"
        return RecordsUnwelcomeError(what, found=reason, cure=cure)
    cure = "Check the brokers; the letters wait again, and those that were sent will not be sent twice"
    return RecordsNotSentError(what, found=reason, cure=cure)
