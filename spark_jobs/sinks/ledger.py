"""The driver's side of the tracker: one connection, reopened when it was lost between two micro-batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from psycopg.types.json import Jsonb

from spark_jobs.contracts.credentials import DatabaseConnection
from spark_jobs.contracts.tracker import statements
from spark_jobs.contracts.tracker.connect import Connection, classified, connect, query, raw, short_transaction
from spark_jobs.contracts.tracker.decisions import Right
from spark_jobs.contracts.tracker.fence import check_fence
from spark_jobs.contracts.tracker.known_queries import KnownQuery, known_queries
from spark_jobs.contracts.tracker.records import BatchIdentity, SourceFile, StoredBatch, settle
from spark_jobs.contracts.tracker.statements import application_name, quote_identifier


class Ledger:
    """What the driver asks and tells the tracker about one run of one pipeline."""

    def __init__(self, database: DatabaseConnection, schema: str, pipeline_id: str, run_id: str, epoch: int) -> None:
        self.database = database
        self.schema = schema
        self.ident = quote_identifier(schema)
        self.pipeline_id = pipeline_id
        self.run_id = run_id
        self.epoch = epoch
        self._conn: Connection | None = None

    @property
    def application_name(self) -> str:
        """The tag of this driver's sessions, by which a newer run finds them."""
        return application_name(self.pipeline_id, self.epoch, self.schema)

    def connection(self) -> Connection:
        """Return an open connection.

        :raises DatabaseUnreachableError: the server does not answer.
        """
        if self._conn is None or self._conn.closed or self._conn.broken:
            self._conn = connect(self.database, application_name=self.application_name)
        return self._conn

    def forget_connection(self) -> None:
        """Close the connection: what it was doing is open, and asked of a new one."""
        if self._conn is not None:
            self._conn.close()
        self._conn = None

    def check_fence(self) -> None:
        """Raise :class:`FencedError` when a newer run exists."""
        check_fence(self.connection(), self.schema, self.pipeline_id, self.run_id, self.epoch, lock=False)

    @property
    def right(self) -> Right:
        """The right of this driver to commit."""
        return Right(self.schema, self.pipeline_id, self.run_id, self.epoch)

    def state_of(self, identity: BatchIdentity) -> Literal["absent", "committed", "decided"]:
        """Say what the ledger knows about the batch.

        :raises LedgerConflictError: it holds the same batch id with other offsets.
        """
        with classified("Looking up the micro-batch in the ledger"):
            rows = raw(self.connection(), statements.find_batch(self.ident), *identity.key)
        return settle(StoredBatch.from_json(rows[0][0]) if rows else None, identity)

    def settle_unknown(self, identity: BatchIdentity) -> Literal["absent", "committed", "decided"]:
        """Say whether a batch whose COMMIT got no answer is there.

        Takes the fence's lock first: a commit that is still under way holds it, so the answer is final.
        """
        self.forget_connection()
        conn = self.connection()
        with short_transaction(conn, "Settling a commit without an answer", lock_timeout_ms=60_000):
            check_fence(conn, self.schema, self.pipeline_id, self.run_id, self.epoch, lock=True)
            return self.state_of(identity)

    def count_duplicate(self, identity: BatchIdentity) -> None:
        """Count that a committed batch came again; checked against the fence in the same transaction."""
        conn = self.connection()
        with short_transaction(conn, "Counting a skipped micro-batch"):
            # The fence first here, as who registers a run takes it before the rows of the runs.
            check_fence(conn, self.schema, self.pipeline_id, self.run_id, self.epoch, lock=True)
            raw(conn, statements.count_duplicate(self.ident), *identity.key, self.run_id)

    def queries(self) -> list[KnownQuery]:
        """Return the pipeline's queries; last the one that was last begun or has last committed a batch.

        By epochs, which only rise: a clock may have been wrong, or another machine's.
        """
        return known_queries(self.connection(), self.schema, self.pipeline_id)

    def owner_of(self, query_id: str) -> str | None:
        """Return the other pipeline that a query belongs to, None when no other one has it."""
        with classified("Reading whose query it is"):
            row = query(
                self.connection(),
                self.schema,
                "SELECT pipeline_id FROM {schema}.pipeline_query WHERE query_id = %s AND pipeline_id <> %s LIMIT 1",
                (query_id, self.pipeline_id),
            ).fetchone()
        return None if row is None else str(row[0])

    def add_query(
        self,
        query_id: str,
        location: str,
        origin: str,
        fingerprint: Mapping[str, Any],
        *,
        seeded_from: str | None = None,
        start_offsets: Any = None,
    ) -> None:
        """Record a new query before its checkpoint exists."""
        conn = self.connection()
        with short_transaction(conn, "Recording the query"):
            query(
                conn,
                self.schema,
                "INSERT INTO {schema}.pipeline_query (pipeline_id, query_id, checkpoint_location, origin, seeded_from, "
                "start_offsets, fingerprint, run_id, epoch) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
                (
                    self.pipeline_id,
                    query_id,
                    location,
                    origin,
                    seeded_from,
                    None if start_offsets is None else Jsonb(start_offsets),
                    Jsonb(dict(fingerprint)),
                    self.run_id,
                    self.epoch,
                ),
            )
            check_fence(conn, self.schema, self.pipeline_id, self.run_id, self.epoch, lock=True)

    def has_batch(self, query_id: str, batch_id: int) -> bool:
        """Tell whether the ledger holds a batch of the query, whatever its offsets."""
        with classified("Looking up the checkpoint's last micro-batch"):
            return bool(
                raw(self.connection(), statements.find_batch(self.ident), self.pipeline_id, query_id, str(batch_id))
            )

    def has_any_batch(self) -> bool:
        """Tell whether anything was committed under this pipeline id."""
        with classified("Looking for committed micro-batches"):
            row = query(
                self.connection(),
                self.schema,
                "SELECT EXISTS (SELECT FROM {schema}.batch_tracker WHERE pipeline_id = %s)",
                (self.pipeline_id,),
            ).fetchone()
        return bool(row and row[0])

    def state_rows(self, query_id: str, batch_id: int) -> int | None:
        """Return how many rows Spark's state held after a batch; None when the ledger does not know."""
        with classified("Reading the state's size"):
            row = query(
                self.connection(),
                self.schema,
                "SELECT state_rows FROM {schema}.batch_tracker "
                "WHERE pipeline_id = %s AND query_id = %s AND batch_id = %s",
                (self.pipeline_id, query_id, batch_id),
            ).fetchone()
        return None if row is None else row[0]

    def end_offsets(self, query_id: str) -> Any:
        """Return where the query's newest committed batch ended."""
        with classified("Reading the ledger's end offsets"):
            row = query(
                self.connection(),
                self.schema,
                "SELECT end_offsets FROM {schema}.batch_tracker WHERE pipeline_id = %s AND query_id = %s "
                "ORDER BY batch_id DESC LIMIT 1",
                (self.pipeline_id, query_id),
            ).fetchone()
        return None if row is None else row[0]

    def files(self, query_ids: Sequence[str]) -> list[SourceFile]:
        """Return every file that the pipeline has read in one of the queries, in batches that are removed as well."""
        with classified("Reading the files that the ledger knows"):
            rows = query(
                self.connection(),
                self.schema,
                "SELECT path, max(modified_at), max(size_bytes) FROM ("
                "SELECT pipeline_id, query_id, path, modified_at, size_bytes FROM {schema}.batch_file UNION ALL "
                "SELECT pipeline_id, query_id, path, modified_at, size_bytes FROM {schema}.batch_file_retained"
                ") AS file WHERE pipeline_id = %s AND query_id = ANY(%s) GROUP BY path",
                (self.pipeline_id, list(query_ids)),
            ).fetchall()
        return [SourceFile(*row) for row in rows]

    def close(self) -> None:
        """Close the connection."""
        if self._conn is not None:
            self._conn.close()
