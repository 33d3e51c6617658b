"""Starts DAGs when a pipeline commits: the trigger of an :class:`airflow.sdk.AssetWatcher`.

Two halves talk to each other through Airflow's shared stream, which says (in its ack mode) when an event is stored.
:class:`~airflow_etl_provider.triggers.commit_stream.CommitStream` reads the ledger; the trigger, which alone reaches
the asset's state store, keeps for it where it has got to. No stream is shared: each trigger has one of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable
from typing import Any, Literal

from airflow.triggers.base import BaseEventTrigger, TriggerEvent
from airflow.triggers.shared_stream import SharedStreamProducer

from airflow_etl_provider.triggers.commit_stream import CommitStream, Cursor, Keep, Recall, StartFrom, Wish
from spark_jobs.contracts.errors import ConfigError
from spark_jobs.contracts.watch.commits import CommitsAfter


def _behind(cursor: Cursor) -> tuple[int, int]:
    return cursor.done.epoch, cursor.done.batch_id


class BatchCommittedTrigger(BaseEventTrigger):
    """Tells of a pipeline's commits, each at least once, in the order of the commits.

    An event is about the commits since the event before, of one query and ten thousand at most. The next one is sent
    when Airflow has stored it, about six seconds later. So a single commit has an event of its own, while a burst, or
    what was committed during a pause, has a few events and not ten thousand DAG runs. Its payload
    (``triggering_asset_events[…].extra["payload"]``) is the value of
    :class:`~spark_jobs.contracts.watch.commits.CommitsAfter`: a range of batches with rows, offsets, watermark and
    event times.

    Where it has got to is kept in the asset's state store, and moves only after Airflow has stored the event: a crash,
    a restart or a pause repeats the last event at most, and loses none. A repeated event has the same ``id``. A new
    checkpoint, an older one that is brought back, and a cleanup of old batches change nothing about that; a ledger that
    was restored, or made anew, is told from its beginning. As long as the ledger, the connection or Airflow's API does
    not answer, it says so in its log and asks again.

    Airflow runs a watcher while a DAG that the asset schedules is unpaused. Between the pause and the DAG file's next
    parsing it stores events that start no run; the run that comes next has them.

    :param pipeline: its id; one that has never run is waited for.
    :param ledger_conn_id: Airflow connection to the ledger's PostgreSQL. :param tracker_schema: the ledger's schema.
    :param start_from: what to tell of where nobody has watched before: what is committed from ``now`` on (from the
        first time that the ledger answers), or everything from the ``beginning``.
    :param empty_batches: whether commits that wrote no row into the target are told, too.
    :param poll_seconds: how long at most between two looks; it looks with each notification of a commit anyway.
    :raises ConfigError: a value that cannot be used.
    """

    def __init__(
        self,
        *,
        pipeline: str,
        ledger_conn_id: str = "warehouse",
        tracker_schema: str = "etl",
        start_from: StartFrom = "now",
        empty_batches: bool = False,
        poll_seconds: float = 60.0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        CommitsAfter.of(pipeline=pipeline)
        if start_from not in ("now", "beginning") or not poll_seconds > 0:
            raise ConfigError(
                f"Commits of {pipeline!r} cannot be watched",
                found=f"start_from={start_from!r}, poll_seconds={poll_seconds!r}",
                expected="start_from 'now' or 'beginning', poll_seconds above 0",
            )
        self.pipeline = pipeline
        self.ledger_conn_id = ledger_conn_id
        self.tracker_schema = tracker_schema
        self.start_from = start_from
        self.empty_batches = empty_batches
        self.poll_seconds = poll_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return how the trigger is made again."""
        names = ("pipeline", "ledger_conn_id", "tracker_schema", "start_from", "empty_batches", "poll_seconds")
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        return path, {name: getattr(self, name) for name in names}

    def shared_stream_key(self) -> Hashable:
        """Return a key that no other trigger has: whoever shares a stream fails with it."""
        return (*self.serialize()[1].values(), self.trigger_id)

    @classmethod
    def create_shared_stream_producer(cls, kwargs: dict[str, Any]) -> SharedStreamProducer:
        """Return what reads the ledger."""
        return CommitStream(**kwargs)

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Wish]) -> AsyncIterator[TriggerEvent]:
        """Tell, recall and keep, as the stream asks for it."""
        async for wish in shared_stream:
            if isinstance(wish, Recall):
                wish.answer.set_result(await self._recalled())
            elif isinstance(wish, Keep):
                wish.answer.set_result(await self._kept(wish.cursor))
            else:
                yield TriggerEvent(wish.payload)  # type: ignore[no-untyped-call]

    def run(self) -> AsyncIterator[TriggerEvent]:
        """Refuse: without Airflow's confirmation of what is stored, events would be lost.

        :raises ConfigError: always.
        """
        raise ConfigError(
            "BatchCommittedTrigger runs in Airflow's triggerer only, for an asset",
            cure="give it to an AssetWatcher; a task waits with StreamingQueryProgressSensor",
        )

    @property
    def _cursor_key(self) -> str:
        # Not the other parameters: who changes one of them goes on where he was.
        return f"etl/{self.ledger_conn_id}/{self.tracker_schema}/{self.pipeline}"

    def _stores(self) -> list[Any]:
        if self.asset_state_store is None:
            raise ConfigError("BatchCommittedTrigger watches no asset", cure="give it to an AssetWatcher")
        # Airflow has one trigger for all assets that watch the same; each event goes to all of them.
        return list(self.asset_state_store._by_name.values())

    async def _recalled(self) -> Cursor | Literal[False] | None:
        """Return the cursor of the asset that is furthest behind: an asset that was added today has none."""
        try:
            found = [await store.aget(self._cursor_key) for store in self._stores()]
            cursors: list[Cursor] = [Cursor.model_validate(one) for one in found if one is not None]
        except Exception as error:  # noqa: BLE001 - whatever the API server's trouble is, the watcher outlives it
            self.log.warning("%s: where it had got to cannot be read, asking again: %s", self.pipeline, error)
            return False
        cursors.sort(key=_behind)
        return cursors[0] if cursors else None

    async def _kept(self, cursor: Cursor) -> bool:
        try:
            for store in self._stores():
                await store.aset(self._cursor_key, cursor.model_dump(mode="json"))
        except Exception as error:  # noqa: BLE001 - as above
            self.log.warning("%s: where it has got to cannot be stored, trying again: %s", self.pipeline, error)
            return False
        return True
