"""Airflow connections for the driver: values into a process below the worker, only names to a cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook, Connection
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.sdk.log import mask_secret

from spark_jobs.contracts.airflow_connection import AirflowConnection
from spark_jobs.contracts.config.secret_values import SPARK_REDACTION
from spark_jobs.contracts.errors import ConnectionMissingError
from spark_jobs.contracts.redaction import forms

if TYPE_CHECKING:
    from spark_jobs.contracts.config import PipelineConfig

REDACTION_KEY = "spark.redaction.regex"
_K8S_SECRET = "spark.kubernetes.driver.secretKeyRef."  # noqa: S105 - a name
_FOLDER_KEYS = ("spark.kubernetes.driverEnv.ETL_CREDENTIALS_DIR", "spark.yarn.appMasterEnv.ETL_CREDENTIALS_DIR")
_REMEMBERED_SECONDS = 60.0
_HADOOP_PROVIDER = "spark.hadoop.hadoop.security.credential.provider.path"


def credential_ids(config: PipelineConfig) -> tuple[str, ...]:
    """Return every ``credentialId`` that the pipeline names, the target's first.

    :raises ConnectionMissingError: the target names none.
    """
    if not config.load.credential_id:
        raise ConnectionMissingError(
            "The pipeline does not say how to log in to its target",
            found="no load.credentialId",
            expected="load.credentialId, the id of an Airflow connection to PostgreSQL",
            cure="add it to the pipeline file and create the connection",
        )
    handling = config.error_handling
    queue = handling.dead_letter_queue if handling else None
    copy = queue.credential_id if queue and queue.enabled else None
    named = (config.load.credential_id, config.extract.credential_id, copy)
    return tuple(dict.fromkeys(name for name in named if name))


def environment_name(credential_id: str) -> str:
    """Return the environment variable in which the driver looks for the connection."""
    return f"AIRFLOW_CONN_{credential_id.upper()}"


def connection(credential_id: str, *, purpose: str) -> Connection:
    """Return the Airflow connection, its password masked in this task's log from now on.

    :param purpose: what asks for it, for the error: ``load.credentialId``.
    :raises ConnectionMissingError: there is none of that id.
    """
    try:
        found: Connection = BaseHook.get_connection(credential_id)
    except AirflowNotFoundException:
        raise ConnectionMissingError(
            f"{purpose} names an Airflow connection that does not exist",
            found=f"no connection '{credential_id}'",
            expected="a connection of that id",
            cure=f"create it: Admin > Connections in the Airflow UI, `airflow connections add {credential_id}`, or "
            f"the variable {environment_name(credential_id)}",
        ) from None
    if found.password:
        # Airflow masks what it is told, letter by letter: in a URL or in JSON the password is spelt otherwise.
        spellings: list[Any] = sorted(forms(found.password, deep=1))
        mask_secret(spellings)
    return found


def source_connection(credential_id: str) -> AirflowConnection:
    """Return the connection that ``extract.credentialId`` names; from any thread, of a triggerer too.

    :raises ConnectionMissingError: there is none of that id.
    """
    found = connection(credential_id, purpose="extract.credentialId")
    return AirflowConnection.parse(credential_id, found.as_json())


class RememberedConnections:
    """Finds connections as :func:`source_connection` does, over and over, for who asks a source for hours.

    A connection is looked up again after a minute, so that a changed password is seen. One that was found before and is
    not now is taken as it was: Airflow does not tell one that is gone from a question that failed on its way.
    """

    def __init__(self) -> None:
        self._found: dict[str, tuple[float, AirflowConnection]] = {}

    def __call__(self, credential_id: str) -> AirflowConnection:
        """Return the connection; raises as :func:`source_connection` does."""
        looked, known = self._found.get(credential_id, (0.0, None))
        if known is not None and monotonic() - looked < _REMEMBERED_SECONDS:
            return known
        try:
            found = source_connection(credential_id)
        except ConnectionMissingError:
            if known is None:
                raise
            found = known
        self._found[credential_id] = (monotonic(), found)
        return found


def process_environment(ids: Iterable[str]) -> dict[str, str]:
    """Return ``AIRFLOW_CONN_<ID>`` for each id: for the environment of a spark-submit process, nothing else."""
    return {environment_name(name): connection(name, purpose="credentialId").as_json() for name in ids}


def require_cluster_credentials(ids: Iterable[str], conf: Mapping[str, Any]) -> None:
    """Check that a driver on a cluster has a way to its credentials; values are never sent there.

    :raises ConnectionMissingError: for an id without a configured way, with the three ways.
    """
    if any(conf.get(key) for key in (*_FOLDER_KEYS, _HADOOP_PROVIDER)):
        return
    names = {key.removeprefix(_K8S_SECRET).upper() for key in conf if str(key).startswith(_K8S_SECRET)}
    missing = [name for name in ids if environment_name(name) not in names]
    if missing:
        variable = environment_name(missing[0])
        raise ConnectionMissingError(
            "In cluster mode the operator sends no secrets, and the driver has no other way to them",
            found=f"no way configured for {', '.join(missing)}",
            expected="names in `conf` from which the driver on the cluster gets each credential",
            cure=f"one of: Kubernetes: {_K8S_SECRET}{variable}=<secret>:<key>; a file of mode 0600 named "
            f"{missing[0]} on the node: {_FOLDER_KEYS[0]}=<directory> (YARN: {_FOLDER_KEYS[1]}); a Hadoop credential "
            f"provider that holds etl.connection.{missing[0]}: {_HADOOP_PROVIDER}=<provider path>",
        )


def redaction(conf: Mapping[str, Any]) -> str:
    """Return ``spark.redaction.regex`` that hides secrets of ours beside what the user hides."""
    theirs = conf.get(REDACTION_KEY)
    return f"{theirs}|{SPARK_REDACTION}" if theirs else SPARK_REDACTION
