"""What a dead letter is called when a copy of it goes elsewhere: the same when its micro-batch is done again.

An id is a digest of pipeline, query, batch, the letter's stage, where its row lies in the source, and what the row
holds; equal ones are numbered. Which of two identical lines of a file gets which number makes no difference, as they
are identical; so the number needs no order of tasks, and the server counts, whose memory is bounded. A file's
``block_start`` is left out: another number of executors cuts files otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg import sql

from spark_jobs.contracts.tracker.connect import Connection
from spark_jobs.contracts.tracker.records import BatchIdentity
from spark_jobs.sinks.merging import of_attempts

_PARTS = ("stage", "raw_key", "raw_value", "raw_headers", "parsed_row")
_COLUMNS = ", ".join(f"{name} text" for name in (*_PARTS, "source"))
# Version 8 of RFC 9562: a digest of one's own making.
_UUID = "overlay(overlay({hex} PLACING '8' FROM 13 FOR 1) PLACING 'a' FROM 17 FOR 1)::uuid"


@dataclass(frozen=True, slots=True)
class LetterSet:
    """Dead letters of one batch in one staging table.

    :param table: the staging table. :param attempts: Spark's attempts that won.
    :param origin: what staged them; two sets of a batch have different ones, and a repeated batch the same.
    :param count: how many there are.
    """

    table: sql.Identifier
    attempts: tuple[int, ...]
    origin: int
    count: int


def identified(
    conn: Connection,
    letters: Sequence[LetterSet],
    identity: BatchIdentity,
    failed_at: datetime,
    share: tuple[int, int] | None = None,
) -> str:
    """Return a query for rows ``(id, failed_at, envelope)``.

    :param failed_at: when the letters failed, for all of them.
    :param share: ``(number, of)``, to read one of at most 256 shares; equal letters are in the same one.
    """
    each = [_keyed(one, identity) for one in letters]
    only: sql.Composable = sql.SQL("")
    if share is not None:
        only = sql.SQL("WHERE get_byte(k, 0) % {} = {}").format(sql.Literal(share[1]), sql.Literal(share[0]))
    digest = "encode(substring(sha256(k || int8send(n)) FROM 1 FOR 16), 'hex')"
    query = sql.SQL(
        "SELECT {id} AS id, {failed_at}::timestamptz AS failed_at, envelope FROM (SELECT k, envelope, "
        'row_number() OVER (PARTITION BY k ORDER BY envelope COLLATE "C") AS n FROM ({keyed}) AS keyed {only}) '
        "AS numbered"
    ).format(
        id=sql.SQL(_UUID.format(hex=digest)),
        failed_at=sql.Literal(failed_at.isoformat()),
        keyed=sql.SQL(" UNION ALL ").join(each),
        only=only,
    )
    return query.as_string(conn)


def _keyed(letters: LetterSet, identity: BatchIdentity) -> sql.Composed:
    whose = [sql.Literal(value) for value in (*identity.key, str(letters.origin))]
    row = sql.SQL(", ").join(sql.Identifier("l", name) for name in _PARTS)
    return sql.SQL(
        "SELECT sha256(convert_to(json_build_array({whose}, (l.source::jsonb - 'block_start')::text, {row})::text, "
        "'UTF8')) AS k, envelope FROM {table}, json_to_record(envelope::json) AS l({columns}) "
        "WHERE envelope IS NOT NULL AND {attempts}"
    ).format(
        whose=sql.SQL(", ").join(sql.SQL("{}::text").format(value) for value in whose),
        row=row,
        table=letters.table,
        columns=sql.SQL(_COLUMNS),
        attempts=sql.SQL(of_attempts(letters.attempts)),
    )
