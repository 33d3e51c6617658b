"""What a table is like when the run looks at it; see :mod:`spark_jobs.sinks.unaltered`. Driver side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql

from spark_jobs.sinks.unaltered import TableState

# Columns that the query does not fill matter only when they demand something. Checks do not: their rows are refused.
# The unique keys decide what a merge takes for the same row; rebuilt (REINDEX CONCURRENTLY) they are the same.
# Partitions come and go; what matters is one that keeps rows out, or that does not live and die with the ledger's rows.
_STATE = """
SELECT encode(sha256(convert_to(coalesce(string_agg(part, '|' ORDER BY part), ''), 'UTF8')), 'hex') FROM (
    SELECT concat_ws(',', 'table', c.oid, c.relrowsecurity, c.relforcerowsecurity, c.relhasrules) AS part
    FROM pg_class c WHERE c.oid = to_regclass({table})
    UNION ALL
    SELECT concat_ws(',', 'column', a.attnum, a.attname, a.atttypid, a.atttypmod, a.attcollation, a.attnotnull,
        a.attgenerated, a.attidentity)
    FROM pg_attribute a WHERE a.attrelid = to_regclass({table}) AND a.attnum > 0 AND NOT a.attisdropped
        AND (a.attname = ANY (ARRAY[{columns}]::text[]) OR (a.attnotnull AND NOT a.atthasdef))
    UNION ALL
    SELECT concat_ws(',', 'trigger', t.oid, t.tgtype, t.tgenabled, t.tgfoid)
    FROM pg_trigger t WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND t.tgtype & 66 > 0 AND t.tgrelid IN (
        SELECT to_regclass({table}) UNION ALL SELECT relid FROM pg_partition_tree(to_regclass({table})))
    UNION ALL
    SELECT DISTINCT concat_ws(',', 'unique', i.indkey, i.indcollation, i.indimmediate,
        to_jsonb(i)->>'indnullsnotdistinct', pg_get_expr(i.indpred, i.indrelid))
    FROM pg_index i WHERE {merges} AND i.indisunique AND i.indisvalid AND i.indrelid = to_regclass({table})
    UNION ALL
    SELECT concat_ws(',', 'elsewhere', c.oid) FROM pg_class c
    WHERE (c.relkind = 'f' OR c.relpersistence = 'u') AND c.oid IN (
        SELECT relid FROM pg_partition_tree(to_regclass({table})))
) AS parts
"""


def table_state(
    conn: psycopg.Connection[Any], table: sql.Identifier, columns: Sequence[str], *, merges: bool
) -> TableState:
    """Return what the table is like now.

    :param columns: those that the query fills. :param merges: whether rows are merged by a unique key.
    """
    name = table.as_string(conn)
    question = sql.SQL(_STATE).format(
        table=sql.Literal(name),
        columns=sql.SQL(", ").join(map(sql.Literal, columns)),
        merges=sql.Literal(merges),
    )
    row = conn.execute(question).fetchone()
    return TableState(name, question.as_string(conn), str(row[0]) if row else "")
