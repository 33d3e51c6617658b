"""Plans of micro-batches that are done again: what stands of a batch goes with the transaction that writes it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final
from uuid import UUID, uuid4

from psycopg import sql

from spark_jobs.contracts.tracker.records import BatchRecord
from spark_jobs.contracts.tracker.taking_statements import PERHAPS_SENT
from spark_jobs.sinks.batch_column import batch_value
from spark_jobs.sinks.committing import CommitPlan
from spark_jobs.sinks.dead_letter_rows import counted_letters_from
from spark_jobs.sinks.plans import Plans
from spark_jobs.sinks.replacing import Replacing
from spark_jobs.sinks.staging import Staged

_KEY: Final = "pipeline_id = {pipeline} AND query_id = {query} AND batch_id = {batch}"
# NO KEY: foreign keys that point at the row must not wait.
_LOCK: Final = f"SELECT 1 FROM {{schema}}.batch_tracker WHERE {_KEY} FOR NO KEY UPDATE"  # noqa: S608 - constants
_STANDING: Final = f"""
SELECT json_build_object('rows', coalesce(r.rows_after, b.written_rows),
    'letters', coalesce(r.letters_after, b.dead_lettered_rows + b.write_dead_lettered_rows))::text
FROM {{schema}}.batch_tracker b LEFT JOIN (
    SELECT rows_after, letters_after FROM {{schema}}.batch_reprocessed WHERE {_KEY} ORDER BY number DESC LIMIT 1
) AS r ON true
WHERE {_KEY}"""  # noqa: S608 - constants
_CLOSED: Final = f"""
SET status = 'discarded', closed_at = clock_timestamp(), closed_by = {{own}},
    reason = 'its micro-batch was done again, and has letters of its own'
WHERE {_KEY} AND status IN ('pending', 'parked')"""
_CLOSE: Final = f"""
WITH whole AS (UPDATE {{schema}}.dead_letter_bundle {_CLOSED} RETURNING 1)
UPDATE {{schema}}.dead_letter_single {_CLOSED}"""
# What an earlier time has closed is not counted: the micro-batch has made its letters anew since.
_LETTERS: Final = f"""
SELECT json_build_object(
    'known', count(*) FILTER (WHERE NOT (
        status = 'discarded' AND starts_with(closed_by, {{pipeline}} || '/reprocess/') AND closed_by <> {{own}}
    )),
    'home', count(*) FILTER (WHERE status IN ('replaying', 'replayed') OR {PERHAPS_SENT})
)::text FROM {{schema}}.dead_letter WHERE {_KEY}"""  # noqa: S608 - constants
_REMOVE: Final = """
WITH gone AS (DELETE FROM {target} WHERE {column} = {value} RETURNING 1) SELECT count(*) FROM gone"""
_RECORD: Final = """
INSERT INTO {schema}.batch_reprocessed (pipeline_id, query_id, batch_id, reprocess_id, rows_before, letters_before,
    rows_after, letters_after)
VALUES ({pipeline}, {query}, {batch}, {reprocess}, $1::bigint, $2::bigint, $3::bigint, $4::bigint)"""


@dataclass(slots=True)
class UnderWay:
    """The micro-batch that is done again now.

    :param source_rows: how many rows it had read. :param dry_run: whether everything is rolled back at the end.
    """

    source_rows: int = 0
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class ReprocessPlans(Plans):
    """Makes the plans of micro-batches that are done again, which are in one transaction each.

    :param pipeline_id: whose they are.
    :param batch_column: the target's column that names a row's batch; None where rows are merged by their keys.
    :param under_way: what changes from one micro-batch to the next.
    """

    pipeline_id: str = ""
    reprocess_id: UUID = field(default_factory=uuid4)
    batch_column: str | None = None
    under_way: UnderWay = field(default_factory=UnderWay)

    def commit(
        self, record: BatchRecord, event: dict[str, Any], where: str, *staged: Staged | None, hands_over: bool = False
    ) -> CommitPlan:
        """Return the plan of a transaction that takes away what stands of the batch."""
        plan = Plans.commit(self, record, event, where, *staged, hands_over=hands_over)
        return replace(plan, replacing=self._replacing(record))

    def letters_from(self, staged: Staged, record: BatchRecord) -> str:
        """Return the statement that takes dead letters from a staging: they are the pipeline's own."""
        staging = staged.staging
        return counted_letters_from(
            self.ledger.connection(),
            self.ledger.ident,
            staging.identifier(staging.letters),
            staged.reports,
            replace(record.identity, pipeline_id=self.pipeline_id),
        )

    def _replacing(self, record: BatchRecord) -> Replacing:
        query_id, batch_id = record.identity.query_id, record.identity.batch_id
        lock, standing, close, letters, row = (
            self._text(text, record) for text in (_LOCK, _STANDING, _CLOSE, _LETTERS, _RECORD)
        )
        return Replacing(
            key=(self.pipeline_id, query_id, str(batch_id)),
            source_rows=self.under_way.source_rows,
            lock=lock,
            standing=standing,
            close=close,
            letters=letters,
            remove=self._text(_REMOVE, record) if self.batch_column else "",
            record=row,
            dry_run=self.under_way.dry_run,
        )

    def _text(self, statement: str, record: BatchRecord) -> str:
        return (
            sql.SQL(statement)
            .format(
                schema=sql.SQL(self.ledger.ident),
                target=self.target.identifier(),
                column=sql.Identifier(self.batch_column or ""),
                value=sql.Literal(batch_value(record.identity)),
                pipeline=sql.Literal(self.pipeline_id),
                own=sql.Literal(record.identity.pipeline_id),
                query=sql.Literal(record.identity.query_id),
                batch=sql.Literal(record.identity.batch_id),
                reprocess=sql.Literal(self.reprocess_id),
            )
            .as_string(self.ledger.connection())
        )
