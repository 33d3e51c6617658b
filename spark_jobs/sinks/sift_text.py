"""The function that brings numbered rows of a table on, and tells which are refused. Driver side.

Rows that are likely to be refused have numbers below 0: the function tries each alone, at the end, and what the server
says of it alone is what its dead letter says. It inserts as many of the others as it can with one statement. Where that
fails, a sequence, which no rollback sets back, tells the row that was being written: those before it are inserted, and
it is tried alone. Where the sequence says nothing, for a foreign key or a trigger fails when all rows are written, the
numbers are halved. k refused rows in n cost about k, 3·k or k·log n statements.

Only errors that may be a row's fault are caught; all others end the transaction as they are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from psycopg import sql

from spark_jobs.contracts.tracker.connect import Connection
from spark_jobs.sinks.refused import DATA_CONDITIONS
from spark_jobs.sinks.sifting import SiftText

# So many refused rows are answered at once.
_MOST = 1000
# After a row that was found by halves, so many rows are tried together.
_SMALLEST = 64
_NOTHING = sql.SQL("NULL;")


@dataclass(frozen=True, slots=True)
class Numbered:
    """Rows that are to be brought on.

    :param table: where they are. :param line: the column with their numbers. :param function: what will bring them on.
    :param place: a sequence of the function's own.
    """

    table: sql.Identifier
    line: sql.Identifier
    function: sql.Identifier
    place: sql.Identifier

    def span(self, conn: Connection) -> sql.Composed:
        """Return the end of a query for the rows ``c`` between the numbers ``etl_first`` and ``etl_last``, in order."""
        # The filter tells the number before its row is inserted: one row after the other comes from the index.
        return sql.SQL(
            "FROM {table} AS c WHERE c.{line} BETWEEN etl_first AND etl_last "
            "AND pg_catalog.setval({place}, abs(c.{line})) > 0 ORDER BY c.{line}"
        ).format(table=self.table, line=self.line, place=sql.Literal(self.place.as_string(conn)))


def sift_text(conn: Connection, rows: Numbered, insert: sql.Composable, fit: sql.Composable = _NOTHING) -> SiftText:
    """Return the statements.

    :param insert: the statement that inserts a span (:meth:`Numbered.span`).
    :param fit: statements of PL/pgSQL before one row is tried alone.
    """
    body = sql.SQL(_BODY).format(
        insert=insert,
        fit=fit,
        conditions=sql.SQL(" OR ").join(map(sql.SQL, DATA_CONDITIONS)),
        sequence=rows.place,
        table=rows.table,
        line=rows.line,
        most=sql.Literal(_MOST),
        smallest=sql.Literal(_SMALLEST),
    )
    function = sql.SQL(_CREATE).format(function=rows.function, body=sql.Literal(body.as_string(conn)))
    return SiftText(
        create=(function.as_string(conn),),
        sift=sql.SQL(_SIFT).format(rows.function).as_string(conn),
        drop=(sql.SQL("DROP FUNCTION {} (bigint, bigint, bigint)").format(rows.function).as_string(conn),),
    )


_SIFT = "SELECT * FROM {}($1::text::bigint, $2::text::bigint, $3::text::bigint)"

_CREATE = """
CREATE FUNCTION {function}(etl_first bigint, etl_end bigint, etl_step bigint) RETURNS TABLE (
    etl_line bigint, etl_state text, etl_message text, etl_detail text, etl_column text, etl_constraint text
) LANGUAGE plpgsql AS {body}"""

_BODY = """
#variable_conflict use_variable
DECLARE
    etl_row record; etl_last bigint; etl_suspect bigint := 0; etl_place text; etl_reached bigint;
    etl_count bigint; etl_landed bigint := 0; etl_refused integer := 0; etl_blind boolean := false;
BEGIN
    WHILE etl_refused < {most} LOOP
        IF etl_first > etl_end THEN
            etl_first := 0;
        END IF;
        IF etl_first <= 0 THEN
            etl_first := (SELECT max(c.{line}) FROM {table} AS c WHERE c.{line} < etl_first);
            EXIT WHEN etl_first IS NULL;
            etl_last := etl_first;
        ELSIF etl_first = etl_suspect THEN
            etl_last := etl_first;
        ELSE
            etl_last := least(etl_first + etl_step - 1, etl_end);
            IF etl_first < etl_suspect THEN
                etl_last := least(etl_last, etl_suspect - 1);
            END IF;
        END IF;
        BEGIN
            etl_place := NULL;
            IF etl_first = etl_last THEN
                {fit}
            END IF;
            {insert};
            GET DIAGNOSTICS etl_count = ROW_COUNT;
            etl_landed := etl_landed + etl_count;
            IF etl_first > 0 THEN
                etl_first := etl_last + 1;
                etl_step := least(etl_step * 2, etl_end);
            END IF;
        EXCEPTION WHEN {conditions} THEN
            IF etl_first = etl_last THEN
                GET STACKED DIAGNOSTICS etl_state = RETURNED_SQLSTATE, etl_message = MESSAGE_TEXT,
                    etl_detail = PG_EXCEPTION_DETAIL, etl_column = COLUMN_NAME, etl_constraint = CONSTRAINT_NAME;
                etl_column := coalesce(nullif(etl_column, ''), etl_place);
                etl_line := abs(etl_first);
                -- A line that the COPY into this table has refused is not here, and has its letter.
                PERFORM FROM {table} AS c WHERE c.{line} = etl_first;
                IF FOUND THEN
                    RETURN NEXT;
                    etl_refused := etl_refused + 1;
                END IF;
                IF etl_first > 0 THEN
                    etl_first := etl_first + 1;
                END IF;
                etl_step := CASE WHEN etl_blind THEN {smallest} ELSE etl_end END;
            ELSE
                SELECT s.last_value INTO etl_reached FROM {sequence} AS s;
                etl_blind := etl_reached < etl_first OR etl_reached >= etl_last;
                IF etl_blind THEN
                    etl_step := (etl_last - etl_first + 1) / 2;
                ELSE
                    etl_suspect := etl_reached;
                END IF;
            END IF;
        END;
    END LOOP;
    etl_line := etl_first; etl_state := NULL; etl_message := etl_landed; etl_detail := etl_step;
    RETURN NEXT;
END"""

VARIABLES = frozenset(re.findall(r"\betl_\w+", _CREATE + _BODY))
"""What a column is called that ``insert`` may not name by its name alone."""
