"""The tracker in PostgreSQL: runs, the epoch fence, committed micro-batches and their books."""
