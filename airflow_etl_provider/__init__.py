"""The Airflow side: operators, hooks, assets. Imports of ``spark_jobs`` stop at ``spark_jobs.contracts``."""
