"""What a real task sends to a real StatsD port."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.system.conftest import Site

# A sequence is not rolled back: the first COPY into the table fails, the second does not.
ONCE = """
CREATE SEQUENCE shop.{name}_faults;
CREATE TABLE shop.{name} (id bigint, item text);
CREATE FUNCTION shop.{name}_fault() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('shop.{name}_faults') = 1 THEN
        RAISE EXCEPTION 'no space left' USING ERRCODE = '53100';
    END IF;
    RETURN NULL;
END$$;
CREATE TRIGGER fault BEFORE INSERT ON shop.{name} FOR EACH STATEMENT EXECUTE FUNCTION shop.{name}_fault();
"""


@pytest.fixture
def name(site: Site) -> str:
    """A pipeline whose first attempt fails."""
    retry = {"strategy": "fixed", "maxAttempts": 3, "initialDelayMs": 300, "jitter": False}
    name = site.add_pipeline("measured", errorHandlingConfig={"retryConfig": retry})
    with site.server.connect("warehouse", autocommit=True) as conn:
        conn.execute(ONCE.format(name=name))  # type: ignore[call-overload]
    return name


def test_attempts_waits_and_dead_letters_of_a_run(site: Site, name: str) -> None:
    unfinished = site.root / f"{uuid.uuid4().hex}.json"
    unfinished.write_text('{"id": 1, "item": "one"}\n{"id": "x", "item": "two"}\n{"id": 3, "item": "three"}\n')
    unfinished.replace(site.root / name / unfinished.name)
    run_id, state = site.run(name)
    assert state == "success", site.log(name, run_id)
    run = {"pipeline_id": name, "work": "stream"}
    site.statsd.wait("airflow.etl.run.dead_letters", **run)  # the last one
    assert site.statsd.values("airflow.etl.run.ended", exit="finished", **run) == [1]
    assert site.statsd.values("airflow.etl.run.attempts", **run) == [2]
    assert site.statsd.values("airflow.etl.run.retries", kind="write", **run) == [1]
    assert site.statsd.values("airflow.etl.run.retry_wait", kind="write", **run) == [300]
    assert site.statsd.values("airflow.etl.run.dead_letters", stage="parse", **run) == [1]
    told = site.airflow.xcom(name, run_id, "run_pipeline")
    assert (told["retries"], told["dead_letters"]) == (1, 1)
    assert site.rows("SELECT kind, attempt, wait_ms FROM etl.run_retry WHERE run_id = %s", told["run_id"]) == [
        ("write", 1, 300)
    ]
