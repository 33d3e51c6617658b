"""The Spark side: what runs inside ``spark-submit``. Never imports Airflow."""

__version__ = "0.1.0"
