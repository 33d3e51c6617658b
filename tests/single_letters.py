"""Dead letters as rows of their own, for tests that change one of them by hand."""

from spark_jobs.contracts.tracker.bundles import TAKE_APART

APART = TAKE_APART.replace("CHOSEN", "true").replace("{schema}", "etl")
"""The statement that takes all bundles apart."""
