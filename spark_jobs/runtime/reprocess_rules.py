"""Which pipelines and which micro-batches may be done again, and why the others may not."""

from __future__ import annotations

from typing import Final

from spark_jobs.contracts.config import OnConflict, WriteMode
from spark_jobs.contracts.config.load import Load
from spark_jobs.contracts.errors import ReprocessRefusedError
from spark_jobs.contracts.reprocess_batches import ReprocessRequest
from spark_jobs.contracts.tracker.connect import classified
from spark_jobs.contracts.tracker.reprocess_batches import Chosen
from spark_jobs.contracts.tracker.reprocess_choice import batches_after
from spark_jobs.runtime.flow import Flow
from spark_jobs.sinks.ledger import Ledger
from spark_jobs.sinks.target import Target


def require_reprocessable(flow: Flow) -> None:
    """Return if the pipeline's micro-batches can be done again one by one.

    :raises ReprocessRefusedError: they cannot, with the reason.
    """
    load = flow.config.load
    if flow.stateful:
        raise _refused(
            "it keeps state: what a micro-batch gave came from those before it as well",
            expected="a pipeline without an aggregation",
            cure="Begin it anew: another table, a new checkpoint, and the source from its start",
        )
    if load.write_mode is WriteMode.OVERWRITE:
        raise _refused(
            "writeMode overwrite: an old micro-batch would replace the whole table",
            expected="writeMode append with load.batchColumn, or upsert",
            cure="Run the pipeline: its newest result replaces what is there",
        )
    if load.write_mode is WriteMode.APPEND and load.batch_column is None:
        raise _refused(
            "writeMode append without load.batchColumn: no row says which micro-batch wrote it",
            expected="load.batchColumn, and micro-batches that were written with it",
            cure="Set load.batchColumn for what comes from now on; what is there cannot be told apart",
        )


_FOLLOWERS: Final = """
SELECT conrelid::regclass::text || ' (' || conname || ')' FROM pg_constraint
WHERE contype = 'f' AND confdeltype IN ('c', 'n', 'd') AND confrelid IN (
    SELECT to_regclass(%(table)s) UNION ALL SELECT relid FROM pg_partition_tree(to_regclass(%(table)s)))
ORDER BY 1"""


def require_no_followers(ledger: Ledger, target: Target) -> None:
    """Return if removing rows of the target changes no other table.

    :raises ReprocessRefusedError: a foreign key would delete other tables' rows with them, or empty their columns.
    """
    conn = ledger.connection()
    with classified(f"Looking for foreign keys to {target.table}"):
        rows = conn.execute(_FOLLOWERS, {"table": target.identifier().as_string(conn)}).fetchall()
    if rows:
        raise _refused(
            f"foreign keys of {', '.join(str(name) for (name,) in rows)}: what refers to a row would go with it",
            expected="no foreign key to the table with ON DELETE CASCADE, SET NULL or SET DEFAULT",
            cure="Drop it for the time: the rows come back in the same transaction",
        )


def needs_all_later(load: Load) -> bool:
    """Tell whether an old micro-batch, written again by itself, could undo what later ones have done.

    With an order column an older row does not replace a newer one; but of a row that was deleted nothing is left to
    compare with. With ``onConflict`` ``nothing`` no row that is there is touched.
    """
    if load.write_mode is not WriteMode.UPSERT:
        return False
    if load.delete_marker is not None:
        return True
    return load.order_column is None and load.on_conflict is not OnConflict.NOTHING


def require_all_later(ledger: Ledger, wanted: ReprocessRequest, chosen: Chosen, load: Load) -> None:
    """Return if the choice reaches to the newest micro-batch, or did so when it began.

    :raises ReprocessRefusedError: it does not.
    """
    why = "deleteMarker" if load.delete_marker is not None else "upsert without load.orderColumn"
    ids = chosen.batch_ids
    there = batches_after(ledger.connection(), ledger.schema, wanted.pipeline_id, chosen.query_id, ids[0] - 1)
    begun = ledger.has_any_batch()
    newest = there[-1] if there else ids[-1]
    if chosen.newest_query and (there == ids or begun):
        return
    query_said = "" if chosen.newest_query else ", and another query has gone on since"
    raise ReprocessRefusedError(
        f"{why}: older rows would replace newer ones of the same keys",
        found=f"micro-batches {ids[0]} to {ids[-1]} ({len(ids)}), and the newest is {newest}{query_said}",
        expected="all micro-batches from the first one on up to the newest, of the query that was used last",
        cure=f"Nothing was written. Reprocess {ids[0]}-{newest}, while the pipeline does not run"
        if chosen.newest_query
        else "Nothing was written. Use load.orderColumn where rows have an order of their own",
    )


def _refused(found: str, *, expected: str, cure: str) -> ReprocessRefusedError:
    return ReprocessRefusedError(
        "Micro-batches of this pipeline cannot be done again", found=found, expected=expected, cure=cure
    )
