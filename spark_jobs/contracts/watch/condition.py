"""A condition over the ledger: looked at once, or again and again until it holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Final, Self

from psycopg import IsolationLevel
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from spark_jobs.contracts.airflow_connection import AirflowConnection
from spark_jobs.contracts.config import PipelineConfig
from spark_jobs.contracts.config.durations import DurationError, parse_duration
from spark_jobs.contracts.errors import ConfigError, ConnectionMissingError, LedgerMissingError
from spark_jobs.contracts.from_values import from_values
from spark_jobs.contracts.tracker.connect import Connection, classified, query
from spark_jobs.contracts.tracker.run_state import newest_request

_KNOWN = """
SELECT 1 FROM {schema}.pipeline WHERE pipeline_id = %s"""
_NEAR = """
SELECT pipeline_id FROM {schema}.pipeline WHERE pipeline_id !~ '/(replay|reprocess)/'
ORDER BY (lower(pipeline_id) = lower(%s)) DESC, (left(pipeline_id, 4) = left(%s, 4)) DESC, pipeline_id LIMIT 5"""


def _age(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return parse_duration(value)
    except DurationError:
        # ISO 8601, as a trigger keeps it.
        return value


Age = Annotated[timedelta, BeforeValidator(_age)]
"""A length of time: a timedelta, a text such as ``30 minutes``, or ISO 8601."""


class Seen(BaseModel):
    """What a look has seen.

    :param done: whether the condition holds. :param message: what was seen, for the person who reads the task's log.
    :param value: the same in figures, JSON: the sensor's result.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    done: bool
    message: str
    value: dict[str, Any] = Field(default_factory=dict)


NEVER_COMMITTED: Final = "never_committed"
"""The name in :attr:`Seen.value` that says of a pipeline that it has not committed anything yet."""


def _no_credentials(credential_id: str) -> AirflowConnection:
    raise ConnectionMissingError(f"The connection {credential_id!r} cannot be looked up here")


Credentials = Callable[[str], AirflowConnection]
"""Finds the connection that a ``credentialId`` names, or raises :class:`ConnectionMissingError`."""


@dataclass(frozen=True, slots=True)
class LedgerView:
    """Where a condition looks.

    :param conn: autocommit, and used by nobody else meanwhile. :param schema: the tracker's, unquoted.
    :param credentials: for what is asked of a source.
    """

    conn: Connection
    schema: str
    credentials: Credentials = field(default=_no_credentials, repr=False, compare=False)
    _known: set[str] = field(default_factory=set, repr=False, compare=False)

    def rows(self, statement: str, values: Any, what: str) -> list[tuple[Any, ...]]:
        """Return the rows of a statement with ``{schema}`` and ``%(name)s``."""
        with classified(what):
            return query(self.conn, self.schema, statement, values).fetchall()

    def knows(self, pipeline: str) -> bool:
        """Tell whether the ledger knows the pipeline."""
        # Once known, always known: no cleanup removes a pipeline.
        if pipeline not in self._known and self.rows(_KNOWN, (pipeline,), f"Looking for pipeline {pipeline!r}"):
            self._known.add(pipeline)
        return pipeline in self._known

    def unknown(self, pipeline: str) -> ConfigError:
        """Return the error for a pipeline that the ledger does not know."""
        near = [row[0] for row in self.rows(_NEAR, (pipeline, pipeline), "Listing the pipelines")]
        return ConfigError(
            f"Pipeline {pipeline!r} is not in the ledger of schema {self.schema!r}",
            found=f"pipelines such as {', '.join(near)}" if near else "no pipeline that has ever run",
            expected="a pipeline that was started at least once",
            cure="correct its id, the connection or tracker_schema; or set wait_for_first_run=True",
        )

    def config(self, pipeline: str) -> PipelineConfig:
        """Return the configuration of the pipeline's newest run.

        :raises ConfigError: the pipeline has never run, or its configuration is not valid any more.
        """
        request = newest_request(self.conn, self.schema, pipeline)
        if request is None:
            raise self.unknown(pipeline)
        return PipelineConfig.from_json(request["config"])


@dataclass(frozen=True, slots=True)
class AtSource:
    """A look that goes on at a source: it may take seconds, and needs no ledger meanwhile.

    :param system: which one; of two questions to one system, one may wait for the other.
    :param ask: safe in any thread.
    """

    system: str
    ask: Callable[[], Seen | AtLedger]


@dataclass(frozen=True, slots=True)
class AtLedger:
    """A look that goes on at the ledger, to see whether what a source said still holds."""

    ask: Callable[[LedgerView], Seen]


Step = Seen | AtSource | AtLedger


@contextmanager
def snapshot(conn: Connection) -> Iterator[None]:
    """See one state of the ledger while the block lasts: between two questions a cleanup, or a commit, may come."""
    before = conn.isolation_level
    conn.isolation_level = IsolationLevel.REPEATABLE_READ
    try:
        with classified("Looking at the ledger"), conn.transaction():
            yield
    finally:
        if not conn.closed:
            conn.isolation_level = before


class Condition(BaseModel, ABC):
    """Something that may come true of one pipeline.

    :param pipeline: its id. :param wait_for_first_run: whether a pipeline that the ledger does not know is waited for;
        else it is an error, as a name that is spelled wrongly would be waited for in vain.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    title: ClassVar[str]
    """What an error calls it."""

    pipeline: str = Field(min_length=1)
    wait_for_first_run: bool = False

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Return the condition.

        :raises ConfigError: naming every value that is not valid.
        """
        made = from_values(cls, values, f"{cls.title} cannot be asked for")
        made.check()
        return made

    def check(self) -> None:
        """Raise :class:`ConfigError` where values contradict each other."""
        return

    def look(self, view: LedgerView) -> Seen:
        """Look once, from beginning to end.

        :raises ConfigError: the pipeline is unknown, or the condition can never hold for it.
        :raises EtlError: it can never hold any more, or the ledger or the source cannot be read (retryable).
        """
        with snapshot(view.conn):
            step = self.begin(view)
        while not isinstance(step, Seen):
            if isinstance(step, AtLedger):
                with snapshot(view.conn):
                    step = step.ask(view)
            else:
                step = step.ask()
        return step

    def begin(self, view: LedgerView) -> Step:
        """Look at the ledger; what it returns is what was seen, or where the look goes on.

        Raises as :meth:`look` does.
        """
        if view.knows(self.pipeline):
            return self._look(view)
        if self.wait_for_first_run:
            return Seen(done=False, message=f"{self.pipeline} has never run")
        raise view.unknown(self.pipeline)

    def without_ledger(self, missing: LedgerMissingError) -> Seen:
        """Return what is seen where there is no ledger yet.

        :raises LedgerMissingError: nobody said that the pipeline's first run is waited for.
        """
        if not self.wait_for_first_run:
            raise missing
        return Seen(done=False, message=f"{self.pipeline} has never run: there is no ledger yet")

    @abstractmethod
    def _look(self, view: LedgerView) -> Step: ...


def in_words(duration: timedelta | float) -> str:
    """Return a duration as people say it, such as ``2 h 5 min``."""
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
    left, words = round(abs(seconds)), []
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count:
            words.append(f"{count} {unit}")
    return ("-" if seconds < 0 and words else "") + (" ".join(words[:2]) or "0 s")
