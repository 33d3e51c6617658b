"""``python -m spark_jobs.cli``: the same as ``etl-pipeline``."""

from spark_jobs.cli import main

if __name__ == "__main__":
    main()
