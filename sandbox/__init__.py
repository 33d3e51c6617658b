"""Real servers on loopback for tests, demo and benchmarks: Java, PostgreSQL, Kafka, a Spark cluster, Airflow.

Nothing in here is installed with the package. Every server listens on 127.0.0.1 and on a port that was free.
"""
