"""A driver on a cluster that outlives the process which submitted it: found again, and killed."""

from __future__ import annotations

import logging
import re
import subprocess
from dataclasses import dataclass
from typing import Final

from airflow.providers.apache.spark.hooks.spark_submit import SparkSubmitHook

from spark_jobs.contracts.errors import EtlError

log = logging.getLogger(__name__)

# Airflow gives a trigger's on_kill 30 seconds in all, and the ledger has its part of them.
_KILLED_WITHIN_SECONDS: Final = 20
# Of the master's answer, which is JSON, alone or among spark-submit's lines.
_REFUSED: Final = re.compile(r'"success"\s*:\s*false')
_GONE: Final = re.compile(r"has already finished or does not exist")


@dataclass(frozen=True)
class ClusterDriver:
    """The driver of one submission.

    :param spark_conn_id: Airflow connection to the cluster.
    :param job_id: as the Spark provider keeps it: a standalone cluster's driver id, YARN's application id, or
        ``namespace:pod`` on Kubernetes.
    """

    spark_conn_id: str
    job_id: str

    def kill(self) -> None:
        """Have the cluster kill the driver; one that has ended is none of its business. Blocks for seconds.

        :raises EtlError: a standalone cluster does not answer, or refuses. What YARN and Kubernetes answer is in the
            log, as the Spark provider has it.
        """
        hook = SparkSubmitHook(
            conf=self._namespace,
            conn_id=self.spark_conn_id,
            deploy_mode="cluster",
            track_driver_via_k8s_api=True,
            yarn_track_via_rm_api=True,
        )
        if hook._is_kubernetes:
            hook._kubernetes_driver_pod = self.job_id.partition(":")[2]
            hook.on_kill()
        elif hook._is_yarn:
            hook._yarn_application_id = self.job_id
            hook.on_kill()
        else:
            hook._driver_id = self.job_id
            self._kill_standalone(hook._build_spark_driver_kill_command())

    @property
    def _namespace(self) -> dict[str, str]:
        namespace, separator, _ = self.job_id.partition(":")
        return {"spark.kubernetes.namespace": namespace} if separator else {}

    def _kill_standalone(self, command: list[str]) -> None:
        # Not by the base class, which takes any answer for a success.
        try:
            told = subprocess.run(  # noqa: S603 - the Spark provider's own command
                command, capture_output=True, text=True, timeout=_KILLED_WITHIN_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise self._not_killed(str(error)) from error
        said = f"{told.stdout}\n{told.stderr}".strip()
        if _GONE.search(said):
            log.info("The driver %s had ended before", self.job_id)
        elif told.returncode != 0 or _REFUSED.search(said):
            raise self._not_killed(said[-500:])
        else:
            log.info("The cluster was told to kill %s", self.job_id)

    def _not_killed(self, found: str) -> EtlError:
        return EtlError(
            f"The driver {self.job_id} could not be killed",
            found=found,
            expected="an answer of the master's REST server",
            cure="set spark.master.rest.enabled on the master, and rest-port in the Spark connection's extra; the "
            "driver cannot commit any more, and ends when it notices",
        )
