"""What the Airflow side and the Spark side agree on. Imports neither Airflow nor pyspark."""
