"""COPY by ADBC: what its source raises is what the caller sees."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pyarrow as pa
import pytest

from spark_jobs.contracts.errors import TransientError
from spark_jobs.sinks.copying import Session, copy_rows, transaction
from spark_jobs.sinks.cursor import Error


@pytest.fixture
def session(database: Any) -> Session:
    with closing(database.connect(autocommit=True)) as conn:
        conn.execute("CREATE TABLE result (id bigint CHECK (id < 1000))")
    return Session(database.uri, "test", "30s", "30s")


def _batch(first: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"id": pa.array(range(first, first + 10), pa.int64())})


@pytest.mark.parametrize("error", [OSError("No space left on device"), TransientError("The rows ended too soon")])
def test_an_error_of_the_rows_source_is_raised_as_it_is(session: Session, error: Exception) -> None:
    def rows() -> Iterator[pa.RecordBatch]:
        yield _batch(0)
        raise error

    with pytest.raises(type(error)) as caught, transaction(session) as cursor:
        copy_rows(cursor, "public", "result", rows())
    assert caught.value is error


def test_an_error_of_the_server_is_the_servers(session: Session) -> None:
    with pytest.raises(Error) as caught, transaction(session) as cursor:
        copy_rows(cursor, "public", "result", [_batch(0), _batch(995)])
    assert caught.value.sqlstate == "23514"
