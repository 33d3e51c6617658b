"""Checkpoints that Spark wrote, broken as they break in life: what the audit says of them, and what a run does then."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import CREDENTIAL, Pipelines, aggregation, file_pipeline, write_lines

from spark_jobs.contracts.audit.audit import audit
from spark_jobs.contracts.audit.report import BAD, AuditReport, State, failure
from spark_jobs.contracts.audit.storage import open_files
from spark_jobs.contracts.credentials import DatabaseConnection
from spark_jobs.contracts.errors import CheckpointMismatchError, EtlError
from spark_jobs.contracts.tracker.connect import connect
from spark_jobs.contracts.watch.condition import LedgerView
from spark_jobs.runtime.stopping import Stop

Look = Callable[..., AuditReport]


@pytest.fixture
def config(pipelines: Pipelines, inbox: Path) -> dict[str, Any]:
    return file_pipeline("orders", inbox, pipelines.checkpoints, schema="id INT", options={"maxFilesPerTrigger": "1"})


@pytest.fixture
def checkpoint(pipelines: Pipelines) -> Path:
    return pipelines.checkpoints / "orders"


@pytest.fixture
def look(pipelines: Pipelines) -> Look:
    def once(pipeline: str = "orders", **options: Any) -> AuditReport:
        database = DatabaseConnection.from_airflow(CREDENTIAL, pipelines.database.airflow_uri)
        with closing(connect(database, application_name="audit")) as conn:
            return audit(LedgerView(conn, "etl"), pipeline, open_files, **options)

    return once


def _arrive(inbox: Path, *numbers: int) -> None:
    for number in numbers:
        write_lines(inbox / f"{number:03} ä.json", {"id": number})


def _ids(pipelines: Pipelines) -> list[int]:
    return [row[0] for row in pipelines.rows("SELECT id FROM result ORDER BY id")]


def _edit(path: Path, text: str | None) -> None:
    """Write or remove a file of the checkpoint, with the checksum that Hadoop keeps of it."""
    (path.parent / f".{path.name}.crc").unlink(missing_ok=True)
    path.unlink() if text is None else path.write_text(text)


def _states(report: AuditReport) -> list[State]:
    return [finding.state for finding in report.findings]


def _refusal(pipelines: Pipelines, config: dict[str, Any]) -> str:
    error = pipelines.run(config).error
    assert isinstance(error, EtlError), "the run was not refused"
    return str(error)


def _tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_agrees_is_consistent_and_is_left_as_it_is(
    pipelines: Pipelines, inbox: Path, config: dict[str, Any], checkpoint: Path, look: Look
) -> None:
    _arrive(inbox, *range(9))
    pipelines.finish(config)
    _arrive(inbox, *range(9, 12))
    pipelines.finish(config)
    assert (checkpoint / "sources" / "0" / "9.compact").exists()
    before, rows = _tree(checkpoint), pipelines.rows("SELECT b::text, xmin::text FROM etl.batch_tracker b ORDER BY 1")
    report = look()
    assert report.state is State.CONSISTENT, report
    assert (report.last_planned, report.last_committed, report.last_in_ledger) == (11, 11, 11)
    assert (report.compared_batches, report.compared_files) == (12, 12)
    assert report.findings == report.not_judged == ()
    assert report.checkpoint == str(checkpoint)
    assert _tree(checkpoint) == before
    assert pipelines.rows("SELECT b::text, xmin::text FROM etl.batch_tracker b ORDER BY 1") == rows
    assert AuditReport.model_validate({k: v for k, v in report.to_json().items() if k != "state"}) == report

    # The path is not seen here as the driver saw it: nothing is known, which is not the same as lost.
    elsewhere = look(checkpoint=str(pipelines.folder / "not mounted" / "orders"))
    assert elsewhere.state is State.UNREADABLE
    assert "not even the folder" in elsewhere.findings[0].found
    moved = checkpoint.rename(pipelines.folder / "copy")
    assert look().state is State.LOST
    assert look(checkpoint=f"file:{moved}").state is State.CONSISTENT


def test_a_lost_checkpoint(pipelines: Pipelines, inbox: Path, config: dict[str, Any], look: Look) -> None:
    _arrive(inbox, 0, 1)
    pipelines.finish(config)
    shutil.rmtree(pipelines.checkpoints / "orders")
    report = look()
    assert report.state is State.LOST
    assert "2 micro-batches in the ledger" in report.findings[0].found
    assert "--resume-from-ledger" in report.findings[0].advice
    assert isinstance(failure([report], BAD), CheckpointMismatchError)
    assert "is lost" in _refusal(pipelines, config)
    assert pipelines.run(config, resume="from_ledger").error is None
    _arrive(inbox, 2)
    pipelines.finish(config)
    resumed = look()
    assert resumed.state is State.CONSISTENT, resumed
    assert any("resumed from the ledger" in text for text in resumed.not_judged)
    assert resumed.compared_files == 1


def test_an_older_copy_is_behind_and_catches_up(
    pipelines: Pipelines, inbox: Path, config: dict[str, Any], checkpoint: Path, look: Look
) -> None:
    _arrive(inbox, 0, 1)
    pipelines.finish(config)
    shutil.copytree(checkpoint, pipelines.folder / "copy")
    _arrive(inbox, 2)
    pipelines.finish(config)
    _arrive(inbox, 3)
    pipelines.finish(config)
    shutil.rmtree(checkpoint)
    shutil.copytree(pipelines.folder / "copy", checkpoint)
    report = look()
    assert _states(report) == [State.BEHIND]
    assert "micro-batch 3 in the ledger, and 1 planned last" in report.findings[0].found

    # Spark plans both files in the order in which they came: the ledger has them, under the same numbers.
    assert pipelines.finish(config).result.duplicates == 2
    assert _ids(pipelines) == [0, 1, 2, 3]
    assert look().state is State.CONSISTENT


def test_a_restored_database_is_told_from_a_hole_in_it(
    pipelines: Pipelines, inbox: Path, config: dict[str, Any], look: Look
) -> None:
    _arrive(inbox, *range(5))
    pipelines.finish(config)
    pipelines.execute("DELETE FROM etl.batch_tracker WHERE batch_id = 1")
    hole = look()
    assert _states(hole) == [State.AHEAD]
    assert "micro-batches 1 committed in the checkpoint and not in the ledger, whose last one is 4" in (
        hole.findings[0].found
    )
    pipelines.execute("DELETE FROM etl.batch_tracker WHERE batch_id >= 3")
    report = look()
    assert _states(report) == [State.AHEAD]
    assert "micro-batches 1, 3-4 committed" in report.findings[0].found
    assert "is ahead of the ledger" in _refusal(pipelines, config)


def test_a_batch_that_a_killed_driver_leaves_is_normal(
    pipelines: Pipelines, inbox: Path, config: dict[str, Any], checkpoint: Path, look: Look
) -> None:
    _arrive(inbox, 0, 1)
    pipelines.finish(config)
    _edit(checkpoint / "commits" / "1", None)
    report = look()
    assert _states(report) == [State.PLANNED]
    assert "finds it in the ledger, and skips it" in report.findings[0].advice
    assert failure([report], BAD) is None
    pipelines.execute("DELETE FROM etl.batch_tracker WHERE batch_id = 1", "DELETE FROM result WHERE id = 1")
    assert "does it again" in look().findings[0].advice
    pipelines.finish(config)
    assert _ids(pipelines) == [0, 1]
    assert look().state is State.CONSISTENT


def test_a_checkpoint_of_another_pipeline_or_of_nobody(
    pipelines: Pipelines, inbox: Path, config: dict[str, Any], checkpoint: Path, look: Look
) -> None:
    _arrive(inbox, 0)
    pipelines.finish(config)
    other = {**config, "pipelineId": "returns"}
    other["streamingConfigJson"] = {
        **config["streamingConfigJson"],
        "checkpointLocation": str(pipelines.checkpoints / "returns"),
        "queryName": "returns",
    }
    pipelines.finish(other)
    own = checkpoint.rename(pipelines.folder / "own")
    shutil.copytree(pipelines.checkpoints / "returns", checkpoint)
    report = look()
    assert _states(report) == [State.FOREIGN]
    assert "of pipeline 'returns'" in report.findings[0].found
    assert "belongs to another pipeline" in _refusal(pipelines, config)

    shutil.rmtree(checkpoint)
    own.rename(checkpoint)
    _edit(checkpoint / "metadata", '{"id": "11111111-2222-3333-4444-555555555555"}')
    unknown = look()
    assert _states(unknown) == [State.FOREIGN]
    assert "which the ledger does not know; it holds 1 micro-batches of others" in unknown.findings[0].found
    assert "does not know the checkpoint" in _refusal(pipelines, config)
    assert look("returns").state is State.CONSISTENT


def test_a_checkpoint_that_was_replaced(
    pipelines: Pipelines, inbox: Path, config: dict[str, Any], checkpoint: Path, look: Look
) -> None:
    _arrive(inbox, 0)
    pipelines.finish(config)
    old = checkpoint.rename(pipelines.folder / "old")
    _arrive(inbox, 1)
    assert pipelines.run(config, resume="from_ledger").error is None
    assert look().state is State.CONSISTENT
    checkpoint.rename(pipelines.folder / "new")
    old.rename(checkpoint)
    report = look()
    assert _states(report) == [State.REPLACED]
    assert "was replaced by another one" in _refusal(pipelines, config)
    assert look(checkpoint=str(pipelines.folder / "new")).state is State.CONSISTENT


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("metadata", None, "no file metadata that says whose they are"),
        ("metadata", "", "metadata: "),
        ("metadata", '{"id": "2c', "metadata: "),
        ("offsets/1", None, "offsets/1 missing"),
        ("offsets/3", 'v1\n{"batchWatermarkMs":0,"batchTimest', "offsets/3: 2 of at least 3 lines"),
        ("offsets/3", None, "commits/3, and no offsets/3"),
        ("commits/1", None, "commits/1 missing"),
        ("commits/3", "", "commits/3: an empty file"),
        ("sources/0/2", None, "sources/0/2 is missing"),
        ("sources/0/2", 'v1\n{"path":"file:///a', "sources/0/2: line 2 is no JSON"),
    ],
)
def test_a_damaged_checkpoint(
    pipelines: Pipelines,
    inbox: Path,
    config: dict[str, Any],
    checkpoint: Path,
    look: Look,
    name: str,
    text: str | None,
    found: str,
) -> None:
    _arrive(inbox, *range(4))
    pipelines.finish(config)
    _edit(checkpoint / name, text)
    report = look()
    assert report.state is State.DAMAGED, report
    assert found in report.findings[0].found


def test_offsets_and_files_that_differ(
    pipelines: Pipelines, inbox: Path, config: dict[str, Any], checkpoint: Path, look: Look
) -> None:
    _arrive(inbox, *range(4))
    pipelines.finish(config)
    log = checkpoint / "sources" / "0" / "2"
    whole = log.read_text()
    path = json.loads(whole.splitlines()[1])["path"]
    _edit(log, whole.replace(path, path.replace("%20", "%21")))
    other = look()
    assert _states(other) == [State.DIFFERENT]
    assert "micro-batch 2: 1 files in the checkpoint's source log, 1 in the ledger, and not the same" in (
        other.findings[0].found
    )
    assert "only in the " in other.findings[0].found
    _edit(log, f"{whole}\n{whole.splitlines()[1].replace(path, path + '.more')}")
    more = look().findings[0].found
    assert "micro-batch 2: 2 files in the checkpoint's source log, 1 in the ledger" in more
    assert f"only in the checkpoint, of micro-batch 2: {path}.more" in more
    _edit(log, whole)
    assert look().state is State.CONSISTENT

    offsets = checkpoint / "offsets" / "3"
    _edit(offsets, offsets.read_text().replace('"logOffset":3', '"logOffset":2'))
    moved = look()
    assert moved.state is State.DIFFERENT
    assert any("3 at {'logOffset': 2} in the checkpoint, at {'logOffset': 3} in the ledger" in one.found
               for one in moved.findings)  # fmt: skip


class _Looking(Stop):
    """Audits when each micro-batch begins."""

    def __init__(self, look: Look) -> None:
        super().__init__()
        self._look = look
        self.reports: list[AuditReport] = []

    def enter_batch(self) -> None:
        super().enter_batch()
        self.reports.append(self._look())


def test_a_run_that_goes_on_is_named_and_never_accused(
    pipelines: Pipelines, inbox: Path, config: dict[str, Any], look: Look
) -> None:
    _arrive(inbox, *range(3))
    stop = _Looking(look)
    assert pipelines.run(config, stop=stop).error is None
    assert [_states(report) for report in stop.reports] == [[State.RUNNING]] * 3
    assert "is going on" in stop.reports[0].findings[0].found
    assert look().state is State.CONSISTENT

    # What no run can be at is told all the same.
    class Losing(_Looking):
        def enter_batch(self) -> None:
            pipelines.execute("DELETE FROM etl.batch_tracker WHERE batch_id = 1")
            super().enter_batch()

    losing = Losing(look)
    _arrive(inbox, 3)
    pipelines.run(config, stop=losing)
    assert _states(losing.reports[0]) == [State.AHEAD, State.RUNNING]


def test_a_source_that_is_gone_and_a_checkpoint_that_moved(
    pipelines: Pipelines, inbox: Path, config: dict[str, Any], checkpoint: Path, look: Look
) -> None:
    _arrive(inbox, 0)
    pipelines.finish(config)
    away = inbox.rename(inbox.with_name("unmounted"))
    report = look()
    assert _states(report) == [State.SOURCE]
    assert report.findings[0].found == f"no {inbox}"
    away.rename(inbox)
    pipelines.execute(
        "UPDATE etl.pipeline_run SET request = jsonb_set(request, '{config,extract,connectionParams,path}', "
        "'\"/not mounted/in/*.json\"')"
    )
    unseen = look()
    assert unseen.state is State.CONSISTENT
    assert "/not mounted/in lies in is there" in unseen.not_judged[0]
    config["streamingConfigJson"]["checkpointLocation"] = str(pipelines.checkpoints / "elsewhere")
    assert "is lost" in _refusal(pipelines, config)
    moved = look()
    assert _states(moved) == [State.MOVED]
    assert str(pipelines.checkpoints / "elsewhere") in moved.findings[0].found


def test_an_aggregation_with_its_batches_without_data(pipelines: Pipelines, inbox: Path, look: Look) -> None:
    config = file_pipeline(
        "windows",
        inbox,
        pipelines.checkpoints,
        schema="shop STRING, at TIMESTAMP, n INT",
        transforms=[
            aggregation(groupByColumns="shop", windowColumn="at", windowDuration="10 minutes", aggregations="n:count")
        ],
        streaming={"outputMode": "append", "watermark": {"eventTimeColumn": "at", "delayThreshold": "10 minutes"}},
    )
    write_lines(
        inbox / "a.json",
        {"shop": "a", "at": "2026-03-01T10:00:00Z", "n": 1},
        {"shop": "a", "at": "2026-03-01T12:00:00Z", "n": 2},
    )
    pipelines.finish(config)
    report = look("windows")
    assert report.state is State.CONSISTENT, report
    assert report.last_committed == 1
    assert (report.compared_batches, report.compared_files) == (2, 1)
