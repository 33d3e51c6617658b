"""Sensors that watch pipelines by their ledger."""
