"""DAGs that show each operator and sensor at work. They run as they stand; see ``docs/reference/examples.md``."""
