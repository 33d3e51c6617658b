"""A checkpoint in an object store: Airflow's ``s3://``, over HTTP, against a server that speaks S3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from airflow.sdk.io import attach
from airflow.sdk.io.store import _STORE_CACHE
from fsspec.implementations.arrow import ArrowFSWrapper
from moto.server import ThreadedMotoServer
from pyarrow.fs import S3FileSystem

from airflow_etl_provider.checkpoint_storage import CheckpointStorage
from sandbox.ports import free_port
from spark_jobs.contracts.audit.checkpoint import Heads, read_heads, read_image
from spark_jobs.contracts.errors import CheckpointUnreadableError

KEY, SECRET = "AKIAEXAMPLE", "Pq7xQz19blueharbour"


@pytest.fixture
def client() -> Iterator[Any]:
    port = free_port()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    endpoint = f"127.0.0.1:{port}"
    options = {"region_name": "us-east-1", "aws_access_key_id": KEY, "aws_secret_access_key": SECRET}
    made = boto3.client("s3", endpoint_url=f"http://{endpoint}", **options)
    made.create_bucket(Bucket="streams")
    before = dict(_STORE_CACHE)
    _STORE_CACHE.clear()
    store = S3FileSystem(
        access_key=KEY,
        secret_key=SECRET,
        region="us-east-1",
        scheme="http",
        endpoint_override=endpoint,
        connect_timeout=2,
        request_timeout=2,
    )
    attach(protocol="s3", fs=ArrowFSWrapper(store))
    yield made
    _STORE_CACHE.clear()
    _STORE_CACHE.update(before)
    made.close()
    server.stop()


def test_listing_reading_and_what_is_not_there(client: Any) -> None:
    files = CheckpointStorage()("s3a://streams/shop/orders")
    assert (files.exists(), files.place_exists(), files.names("offsets")) == (False, True, [])
    with pytest.raises(CheckpointUnreadableError, match="NO_SUCH_BUCKET"):
        CheckpointStorage()("s3a://nowhere/orders").place_exists()
    assert read_image(files).query_id is None

    offsets = b'v1\n{"batchWatermarkMs":0,"batchTimestampMs":1}\n{"t":{"0":%d}}'
    client.put_object(Bucket="streams", Key="shop/orders/metadata", Body=b'{"id":"q"}')
    # More than one page of a listing.
    for number in range(1_010):
        client.put_object(Bucket="streams", Key=f"shop/orders/offsets/{number}", Body=offsets % number)
    client.put_object(Bucket="streams", Key="shop/orders/commits/1009", Body=b"v1\n{}")
    assert files.exists()
    image = read_image(files)
    assert (image.query_id, image.damage) == ("q", [])
    assert image.heads == Heads(tuple(range(1_010)), (1009,))
    assert image.planned[1009].sources == ({"t": {"0": 1009}},)
    assert len(image.planned) == 100

    # Nothing of a listing is remembered.
    client.put_object(Bucket="streams", Key="shop/orders/commits/1010", Body=b"v1\n{}")
    assert read_heads(files).committed == 1010


def test_a_server_that_does_not_answer_is_told_from_a_lost_checkpoint(client: Any, tmp_path: Path) -> None:
    dead = S3FileSystem(
        access_key=KEY,
        secret_key=SECRET,
        region="us-east-1",
        scheme="http",
        endpoint_override="127.0.0.1:1",
        connect_timeout=1,
        request_timeout=1,
    )
    attach(protocol="s3", conn_id="dead", fs=ArrowFSWrapper(dead))
    files = CheckpointStorage("dead")("s3a://streams/orders")
    with pytest.raises(CheckpointUnreadableError, match="s3a://streams/orders cannot be read from here") as failed:
        read_image(files)
    assert SECRET not in str(failed.value)
