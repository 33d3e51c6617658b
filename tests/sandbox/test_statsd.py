"""The StatsD server of the tests reads what StatsD's own client writes."""

from __future__ import annotations

import pytest
from statsd import StatsClient

from sandbox.errors import SandboxError
from sandbox.statsd import StatsdServer


def test_what_the_client_sends_is_kept() -> None:
    with StatsdServer("airflow.etl.") as server:
        client = StatsClient("127.0.0.1", server.port, "airflow")
        client.incr("ti.start")
        client.incr("etl.run.retries,kind=read,work=stream", 2)
        with client.pipeline() as several:
            several.timing("etl.run.retry_wait,kind=read", 12.5)
            several.gauge("etl.breaker.open,system=a", 1)
        client.incr("etl.run.retries,kind=write,work=stream")
        assert server.wait("airflow.etl.run.retries", times=2, work="stream") == [2, 1]
        assert server.values("airflow.etl.run.retries", kind="read") == [2]
        assert server.values("airflow.etl.run.retry_wait") == [12.5]
        assert server.values("airflow.etl.breaker.open", system="a") == [1]
        assert server.values("airflow.ti.start") == []
        with pytest.raises(SandboxError, match=r"No 3 × airflow\.etl\.run\.retries"):
            server.wait("airflow.etl.run.retries", times=3, seconds=0.1)
        client.close()
