"""``python -m spark_jobs.cli`` is ``etl-pipeline``."""

from spark_jobs.cli import main

main()
