"""A ledger of many micro-batches over a thousand pipelines, half of them older than a month."""

from __future__ import annotations

import json
from typing import Final

from spark_jobs.contracts.tracker.connect import Connection

PIPELINES: Final = 1_000
# Five minutes between two batches; the newest was committed a moment ago, the older half two months before.
_BATCHES: Final = """
INSERT INTO etl.batch_tracker (
    pipeline_id, query_id, batch_id, processed_at, record_count, checkpoint_location, run_id, epoch, duration_ms,
    start_offsets, end_offsets, source_rows, passed_rows, rejected_rows, dead_lettered_rows, late_rows, filtered_rows,
    deduplicated_rows, sink_rows, written_rows, write_dead_lettered_rows, write_deduplicated_rows, strategy,
    strategy_reason
)
SELECT 'pipeline-' || p, md5(p::text)::uuid::text, b,
    now() - CASE WHEN b < %(batches)s / 2 THEN interval '60 days' ELSE interval '0' END
        - (%(batches)s - b) * interval '5 minutes',
    1000, '/checkpoints/pipeline-' || p, 'run-' || p, 1, 1234,
    jsonb_build_object('orders', jsonb_build_object('0', b * 500, '1', b * 500)),
    jsonb_build_object('orders', jsonb_build_object('0', b * 500 + 500, '1', b * 500 + 500)),
    1000, 1000, 0, 0, 0, 0, 0, 1000, 1000, 0, 0, 'single', 'at most 1,000 rows'
FROM generate_series(0, %(pipelines)s - 1) AS p, generate_series(0, %(batches)s - 1) AS b"""
_RUNS: Final = """
INSERT INTO etl.pipeline_run (run_id, pipeline_id, state, epoch, request, started_by, started_at, ended_at, exit_code)
SELECT 'run-' || p, 'pipeline-' || p, 'finished', 1,
    jsonb_build_object('config', %(config)s::jsonb || jsonb_build_object('pipelineId', 'pipeline-' || p)),
    'bench', now(), now(), 0
FROM generate_series(0, %(pipelines)s - 1) AS p"""
_QUERIES: Final = """
INSERT INTO etl.pipeline_query (pipeline_id, query_id, checkpoint_location, origin, run_id, epoch)
SELECT 'pipeline-' || p, md5(p::text)::uuid::text, '/checkpoints/pipeline-' || p, 'fresh', 'run-' || p, 1
FROM generate_series(0, %(pipelines)s - 1) AS p"""
_CONFIG: Final = {
    "mode": "streaming",
    "extract": {"sourceType": "rate", "connectionParams": {"rowsPerBatch": "10"}},
    "load": {
        "sinkType": "postgresql",
        "table": "shop.orders",
        "writeMode": "append",
        "autoCreateTable": True,
        "credentialId": "warehouse",
    },
    "streamingConfigJson": {"checkpointLocation": "/checkpoints/orders", "queryName": "orders"},
}


def fill(conn: Connection, rows: int) -> None:
    """Fill the ledger without its indexes, which are there again afterwards."""
    indexes = conn.execute(
        "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index "
        "WHERE indrelid = 'etl.batch_tracker'::regclass AND NOT indisprimary"
    ).fetchall()
    conn.execute("SET statement_timeout = 0")
    conn.execute("SET maintenance_work_mem = '512MB'")
    for name, _ in indexes:
        conn.execute(f"DROP INDEX {name}".encode())
    values = {"pipelines": PIPELINES, "batches": rows // PIPELINES, "config": json.dumps(_CONFIG)}
    conn.execute(
        "INSERT INTO etl.pipeline (pipeline_id, epoch, newest_run_id, epoch_run_id) "
        "SELECT 'pipeline-' || p, 1, 'run-' || p, 'run-' || p FROM generate_series(0, %(pipelines)s - 1) AS p",
        values,
    )
    for statement in (_RUNS, _QUERIES, _BATCHES):
        conn.execute(statement.encode(), values)
    for _, definition in indexes:
        conn.execute(definition.encode())
    conn.execute("VACUUM ANALYZE")
    # Else whoever reads first pays for writing out what the filling left in memory.
    conn.execute("CHECKPOINT")
