"""100,000 dead letters replayed, beside a pipeline that loads as many lines of the same kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from peers import Bench, rounds
from report import Figure
from rows import TABLE

from spark_jobs.contracts.credentials import DatabaseConnection
from spark_jobs.contracts.replay import LetterFilter, ReplayRequest
from spark_jobs.run_pipeline import run_replay
from spark_jobs.runtime.stopping import Stop

_LETTERS = 100_000
# Lines whose price is a text that is no number, until a patch takes the text away.
_BROKEN, _REPAIR = '"price":"free ', '"price":"'
_SCHEMA = "id BIGINT, customer INT, sku STRING, note STRING, price DECIMAL(12,2), at TIMESTAMP"


def figures(bench: Bench, number: int) -> Iterator[Figure]:
    """Measure, and yield loading against replaying."""
    good, bad = _lines(bench)
    extract = {"sourceType": "file", "connectionParams": {"path": str(bad), "format": "json"}}
    bench.sql("DROP TABLE IF EXISTS peer", f"CREATE TABLE peer ({TABLE})")
    failing = bench.pipeline(extract=extract, schema=_SCHEMA, load={"maxDeadLetterFraction": 1})
    bench.run(failing)
    assert bench.sql(f"SELECT count(*) FROM etl.dead_letter WHERE pipeline_id = '{failing.stem}'") == (_LETTERS,)

    def fresh() -> None:
        bench.sql(
            "TRUNCATE peer",
            "UPDATE etl.dead_letter SET status = 'pending', replay_id = NULL WHERE status <> 'pending'",
            "DELETE FROM etl.dead_letter_replay",
            "VACUUM FULL etl.dead_letter",
            "VACUUM FULL etl.dead_letter_replay_item",
            "CHECKPOINT",
        )

    def check(name: str) -> None:
        assert bench.sql("SELECT count(*), count(DISTINCT id) FROM peer") == (_LETTERS, _LETTERS), name

    extract = {"sourceType": "file", "connectionParams": {"path": str(good), "format": "json"}}
    peers = {
        "load": lambda: bench.run(bench.pipeline(extract=extract, schema=_SCHEMA, load={})),
        "replay": lambda: _replay(bench, failing.stem),
    }
    seconds = rounds(number, peers, fresh, check)
    speed = {name: _LETTERS / took / 1000 for name, took in seconds.items()}
    yield Figure("100,000 lines loaded, whole run", speed["load"], "krows/s", "itself", 1.0)
    ratio = speed["replay"] / speed["load"]
    yield Figure("100,000 dead letters replayed, whole run", speed["replay"], "krows/s", "loading them", ratio, 1.0)


def _lines(bench: Bench) -> tuple[Path, Path]:
    rows = bench.spark.range(_LETTERS).selectExpr(
        "id",
        "CAST(id % 1000 AS INT) AS customer",
        "concat('sku-', id % 5000) AS sku",
        "concat('a note of some length about order number ', id) AS note",
        "CAST(CAST((id % 100000) / 100 AS DECIMAL(12,2)) AS STRING) AS price",
        "timestamp_micros(1700000000000000 + id * 1000) AS at",
    )
    text = rows.selectExpr("to_json(struct(*)) AS value")
    paths = bench.fresh_folder("good"), bench.fresh_folder("bad")
    text.coalesce(1).write.text(str(paths[0]))
    text.selectExpr(f"replace(value, '{_REPAIR}', '{_BROKEN}')").coalesce(1).write.text(str(paths[1]))
    return paths


def _replay(bench: Bench, pipeline_id: str) -> None:
    patch = {"_value": f"replace(_value, '{_BROKEN}', '{_REPAIR}')"}
    request = ReplayRequest.of(
        replay_id=uuid4(), letters=LetterFilter.of(pipeline_id=pipeline_id), patch=patch, batch_size=_LETTERS
    )
    stop = Stop()
    database = DatabaseConnection.from_airflow("bench", bench.server.airflow_uri("bench"))
    ended = run_replay(request, database, tracker_schema="etl", stop=stop, session=lambda: bench.spark)
    stop.ended(0)
    assert ended.error is None, ended.error
