"""The session's credential provider, and settings that would lose rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spark_jobs.contracts.credentials import resolve_database
from spark_jobs.contracts.errors import ConfigError
from spark_jobs.runtime.session import DEFAULTS, defaults_beside, get_session, hadoop_credentials

PROVIDER = "hadoop.security.credential.provider.path"


@pytest.fixture
def provider(spark: Any, tmp_path: Path) -> Iterator[Any]:
    """A Hadoop credential store, as ``hadoop credential create`` makes it."""
    conf = spark._jsc.hadoopConfiguration()
    conf.set(PROVIDER, f"localjceks://file{tmp_path}/store.jceks")
    yield spark._jvm.org.apache.hadoop.security.alias.CredentialProviderFactory.getProviders(conf).get(0)
    conf.unset(PROVIDER)


def test_a_connection_from_a_hadoop_credential_provider(spark: Any, provider: Any) -> None:
    value = "postgres://writer:s%40lt&pepper@db.example:5433/shop"
    array = spark.sparkContext._gateway.new_array(spark._jvm.char, len(value))
    for index, character in enumerate(value):
        array[index] = character
    provider.createCredentialEntry("etl.connection.warehouse", array)
    provider.flush()
    found = resolve_database("warehouse", environ={}, hadoop_lookup=lambda alias: hadoop_credentials(spark, alias))
    assert (found.host, found.port, found.database, found.user) == ("db.example", 5433, "shop", "writer")
    assert "s@lt&pepper" in found.conninfo(application_name="test")


def test_without_a_provider_there_is_no_answer(spark: Any) -> None:
    assert hadoop_credentials(spark, "etl.connection.warehouse") is None


@pytest.mark.parametrize("key", ["spark.sql.files.ignoreMissingFiles", "spark.sql.files.ignoreCorruptFiles"])
def test_settings_that_lose_rows_are_refused(spark: Any, key: str) -> None:
    spark.conf.set(key, "true")
    try:
        with pytest.raises(ConfigError, match=key):
            get_session("test", {})
    finally:
        spark.conf.unset(key)


@pytest.mark.parametrize("chosen", ["maxRecordsPerBatch", "maxBytesPerBatch"])
def test_who_bounds_arrow_batches_keeps_sparks_other_bound(chosen: str) -> None:
    assert defaults_beside([]) == DEFAULTS
    found = defaults_beside([f"spark.sql.execution.arrow.{chosen}"])
    assert {name for name in DEFAULTS if name not in found} == {name for name in DEFAULTS if ".arrow." in name}
