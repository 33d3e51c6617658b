"""The statements that bring staged rows into the target, and dead letters into their table. Rendered on the driver."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import sql

from spark_jobs.sinks.target import Target

PART = "_part"
ATTEMPT = "_attempt"
SEQUENCE = "_seq"
_MARKS = (PART, ATTEMPT, SEQUENCE)


def create_staging(name: sql.Composable, target: Target, *, kind: str) -> sql.Composed:
    """Return the DDL of a staging table: the target's columns by type, and each row's part, attempt and number.

    :param kind: ``TEMP`` (dropped at the end of the transaction) or ``UNLOGGED``.
    """
    columns = [
        sql.SQL("{} {}").format(sql.Identifier(column.name), sql.SQL(str(column.type))) for column in target.columns
    ]
    marks = [
        sql.SQL("{} {}").format(sql.Identifier(mark), sql.SQL("integer" if mark == PART else "bigint"))
        for mark in _MARKS
    ]
    ending = " ON COMMIT DROP" if kind == "TEMP" else ""
    return sql.SQL("CREATE {} TABLE {} ({}){}").format(
        sql.SQL(kind), name, sql.SQL(", ").join([*columns, *marks]), sql.SQL(ending)
    )


def insert_from(target: Target, source: sql.Composable) -> sql.Composed:
    """Return the statement that appends the rows of ``source`` (a table or a subquery with an alias)."""
    columns = _names(target)
    return sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {}").format(target.identifier(), columns, columns, source)


def upsert_from(target: Target, source: sql.Composable, keys: Sequence[str]) -> sql.Composed:
    """Return the statement that inserts or updates by ``keys``.

    Of rows with the same key the last wins: the highest part, and in it the last row. Keys are taken in order, so that
    pipelines that upsert the same table do not deadlock.
    """
    key_names = sql.SQL(", ").join(map(sql.Identifier, keys))
    values = [column.name for column in target.columns if column.name not in keys] or list(keys[:1])
    updates = sql.SQL(", ").join(sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(name)) for name in values)
    return sql.SQL(
        "INSERT INTO {target} ({columns}) SELECT {columns} FROM ("
        "SELECT DISTINCT ON ({keys}) {columns} FROM {source} ORDER BY {keys}, {part} DESC, {seq} DESC"
        ") AS latest ON CONFLICT ({keys}) DO UPDATE SET {updates}"
    ).format(
        target=target.identifier(),
        columns=_names(target),
        keys=key_names,
        source=source,
        part=sql.Identifier(PART),
        seq=sql.Identifier(SEQUENCE),
        updates=updates,
    )


def empty(target: Target) -> sql.Composed:
    """Return the statement that removes every row; readers keep seeing the old rows until the commit."""
    # TRUNCATE would be quicker, but it blocks readers and shows older snapshots an empty table.
    return sql.SQL("DELETE FROM {}").format(target.identifier())


def counted(statement: sql.Composable) -> sql.Composed:
    """Return ``statement`` so that its answer is the number of rows it wrote (ADBC does not tell)."""
    return sql.SQL("WITH written AS ({} RETURNING 1) SELECT count(*) FROM written").format(statement)


def counted_text(statement: str) -> str:
    """Return the same for a statement that is rendered already."""
    return f"WITH written AS ({statement} RETURNING 1) SELECT count(*) FROM written"  # noqa: S608


def winners(staging: sql.Composable) -> sql.Composed:
    """Return the subquery of the rows of the winning attempts. Parameters: parts, attempts (arrays of one length)."""
    return sql.SQL(
        "(SELECT s.* FROM {staging} s JOIN unnest(%(parts)s::int[], %(attempts)s::bigint[]) AS w(part, attempt) "
        "ON s.{part} = w.part AND s.{attempt} = w.attempt) AS staged"
    ).format(staging=staging, part=sql.Identifier(PART), attempt=sql.Identifier(ATTEMPT))


def _names(target: Target) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(column.name) for column in target.columns)


_LETTER_COLUMNS = """
    stage text, error_class text, sqlstate text, message text, raw_key text, raw_value text, raw_headers text,
    parsed_row text, source text, event_time text"""


def insert_letters(schema: str, letters: str, pipeline: str, query: str, batch: str) -> str:
    """Return the statement that stores dead letters.

    :param schema: the tracker's schema, quoted. :param letters: SQL of a set of rows ``letter(envelope)``.
    :param pipeline: SQL of the pipeline's id; likewise ``query`` and ``batch``.
    """
    # The commit point of a dead letter is its batch's: this runs in the same transaction.
    return (
        f"INSERT INTO {schema}.dead_letter (pipeline_id, query_id, batch_id, stage, error_class, sqlstate, message, "  # noqa: S608
        "raw_key, raw_value, raw_headers, parsed_row, source, event_time) "
        f"SELECT {pipeline}, {query}, {batch}, l.stage, l.error_class, l.sqlstate, l.message, "
        "decode(l.raw_key, 'base64'), decode(l.raw_value, 'base64'), l.raw_headers::jsonb, l.parsed_row::jsonb, "
        "l.source::jsonb, l.event_time::timestamptz "
        f"FROM {letters}, json_to_record(letter.envelope::json) AS l({_LETTER_COLUMNS})"
    )


def insert_letters_from_json(schema: str) -> str:
    """Return the statement for a JSON array of envelopes. Parameters: pipeline, query, batch id, array; all text."""
    letters = "json_array_elements_text($4::json) AS letter(envelope)"
    return insert_letters(schema, letters, "$1::text", "$2::text", "$3::bigint")
