"""Dead letters on object storage, through Hadoop's real ``s3a`` connector, against a server that speaks S3."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from urllib.request import Request, urlopen

import boto3
import pyarrow.parquet as pq
import pytest
from driver_processes import QUICK, java_environ, kill_group, under_watch
from moto.server import ThreadedMotoServer
from pipeline_runs import Pipelines, file_pipeline, write_lines

from sandbox.jars import jars
from sandbox.ports import free_port
from spark_jobs.contracts.exit_codes import ExitCode

KEY, SECRET = "a-user-of-the-bucket", "what nobody may see"


@dataclass(frozen=True)
class Bucket:
    endpoint: str
    client: Any

    def names(self) -> list[str]:
        listed = self.client.list_objects_v2(Bucket="letters").get("Contents", [])
        return sorted(entry["Key"] for entry in listed)

    def letters(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for name in self.names():
            if name.endswith(".parquet"):
                content = self.client.get_object(Bucket="letters", Key=name)["Body"].read()
                rows += pq.read_table(BytesIO(content)).to_pylist()
        return sorted(rows, key=lambda row: str(row["dead_letter_id"]))


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    port = free_port()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    endpoint = f"http://127.0.0.1:{port}"
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id=KEY, aws_secret_access_key=SECRET
    )
    # What it keeps belongs to the process, whatever server it was given to.
    urlopen(Request(f"{endpoint}/moto-api/reset", method="POST")).close()
    client.create_bucket(Bucket="letters")
    yield Bucket(endpoint, client)
    client.close()
    server.stop()


def _pipeline(pipelines: Pipelines, bucket: Bucket, path: str) -> dict[str, Any]:
    options = {
        "fs.s3a.endpoint": bucket.endpoint,
        "fs.s3a.endpoint.region": "us-east-1",
        "fs.s3a.path.style.access": "true",
        "fs.s3a.attempts.maximum": "1",
    }
    queue = {"dlqType": "s3", "bucketPath": path, "credentialId": "letters", "config": options}
    config = file_pipeline(
        "orders",
        pipelines.folder / "inbox",
        pipelines.checkpoints,
        schema="id INT, amount INT",
        load={"maxDeadLetterFraction": 1},
    )
    return {**config, "errorHandlingConfig": {"dlqConfig": queue}}


def _run(pipelines: Pipelines, config: dict[str, Any], *, fault: str = "") -> tuple[int, str]:
    extra = {"fs.s3a.access.key": KEY, "fs.s3a.secret.key": SECRET}
    connection = json.dumps({"conn_type": "aws", "extra": extra})
    path = pipelines.path(config)
    connectors = ",".join(jar.as_uri() for jar in jars("spark-s3"))
    log = pipelines.folder / "run.log"
    command = ("run", str(path), *QUICK, "--jars", connectors, "--log-file", str(log))
    environ = {"AIRFLOW_CONN_LETTERS": connection, **java_environ()}
    if fault:
        (faults := pipelines.folder / "faults").write_text(fault)
        environ["ETL_FAULTS_FILE"] = str(faults)
    with under_watch(pipelines.command(*command, **environ)) as process:
        if fault:
            process.wait(300)
            # Its JVM has the pipes as well, and goes with it.
            kill_group(process)
        out, err = process.communicate(timeout=300)
    said = out + err + log.read_text()
    assert SECRET not in said
    return process.returncode, said


def test_letters_in_a_bucket_are_those_of_the_table(pipelines: Pipelines, bucket: Bucket) -> None:
    write_lines(pipelines.folder / "inbox" / "1.json", {"id": 1, "amount": 1}, "not json", "not json", "\u00e9")
    code, said = _run(pipelines, _pipeline(pipelines, bucket, "s3a://letters/etl"))
    assert code == 0, said
    stored = pipelines.rows("SELECT dead_letter_id::text, query_id, raw_value FROM etl.dead_letter ORDER BY 1")
    found = [(row["dead_letter_id"], row["query_id"], row["raw_value"]) for row in bucket.letters()]
    assert found == stored
    assert len(stored) == 3
    [(query, day)] = set(
        pipelines.rows("SELECT query_id, to_char(processed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD') FROM etl.batch_tracker")
    )
    folder = f"etl/date={day}/query={query}/batch=0/"
    assert {name.rpartition("/")[0] + "/" for name in bucket.names() if not name.endswith("/")} == {folder}


def test_a_batch_that_is_done_again_has_its_letters_in_the_bucket_once(pipelines: Pipelines, bucket: Bucket) -> None:
    write_lines(pipelines.folder / "inbox" / "1.json", {"id": 1, "amount": 1}, "not json", "not json")
    config = _pipeline(pipelines, bucket, "s3a://letters/etl")
    code, said = _run(pipelines, config, fault="letters.after_publish kill\n")
    assert code == -signal.SIGKILL, said
    first = [row["dead_letter_id"] for row in bucket.letters()]
    assert len(first) == 2
    assert pipelines.one("SELECT count(*) FROM etl.dead_letter") == 0
    code, said = _run(pipelines, config)
    assert code == 0, said
    stored = [key for (key,) in pipelines.rows("SELECT dead_letter_id::text FROM etl.dead_letter ORDER BY 1")]
    assert [row["dead_letter_id"] for row in bucket.letters()] == stored == first


def test_a_bucket_that_does_not_exist_stops_the_run_before_data_moves(pipelines: Pipelines, bucket: Bucket) -> None:
    write_lines(pipelines.folder / "inbox" / "1.json", "not json")
    code, said = _run(pipelines, _pipeline(pipelines, bucket, "s3a://nobody-made-it/etl"))
    assert code == ExitCode.LETTERS_NOT_PUBLISHED
    assert "s3a://nobody-made-it/etl" in said
    assert pipelines.one("SELECT count(*) FROM etl.batch_tracker") == 0
