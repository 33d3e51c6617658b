"""When a pipeline counts as ill: its own limits, which win over those of the health DAG."""

from __future__ import annotations

from pydantic import Field

from spark_jobs.contracts.config.section import Duration, Flag, Long, Number, Section


class Health(Section):
    """Limits for this pipeline in `dags/etl_pipeline_health.py`; what is left out, the DAG's parameters say."""

    enabled: Flag = Field(True, description="Whether the DAG looks at this pipeline.")
    max_age: Duration | None = Field(None, description="How old the last commit, or idle run, may be.")
    gap_window: Duration | None = Field(None, description="How far back micro-batches must join up.")
    max_lag_rows: Long | None = Field(None, description="Kafka: how many rows it may be behind.")
    max_lag: Duration | None = Field(None, description="Kafka: how long it may be behind.")
    min_retention: Duration | None = Field(
        None, description="Kafka: how long the broker must still keep what was not read."
    )
    max_lost_share: Number | None = Field(
        None, description="Share of a day's rows, 0 to 1, that may be rejected, late or dead letters."
    )
    max_new_letters: Long | None = Field(None, description="How many of a day's dead letters may wait.")
