"""Checkpoint, ledger and source compared, without Spark: read only, safe beside a run."""
