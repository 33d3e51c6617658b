"""The audit over a real ledger and checkpoints as files, here and in a storage that fsspec reaches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from checkpoint_folders import CheckpointFolder
from typer.testing import CliRunner
from watched import Watched

from spark_jobs import cli
from spark_jobs.cli.audit import audit as audit_command
from spark_jobs.contracts.audit.audit import audit
from spark_jobs.contracts.audit.files import local_files, scheme_of
from spark_jobs.contracts.audit.report import BAD, AuditReport, Finding, State, failure, states, worst_first
from spark_jobs.contracts.audit.storage import open_files, storage_uri
from spark_jobs.contracts.errors import (
    CheckpointMismatchError,
    CheckpointUnreadableError,
    ConfigError,
    DatabaseUnreachableError,
    TransientError,
)
from spark_jobs.contracts.tracker.runs import finish_run
from spark_jobs.contracts.watch.condition import LedgerView


@pytest.fixture
def watched(tracker: Any) -> Watched:
    """A pipeline whose run has ended, and whose query has its checkpoint at ``/checkpoints``."""
    made = Watched(tracker)
    made.query()
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / "orders"


@pytest.fixture
def made(folder: Path) -> CheckpointFolder:
    return CheckpointFolder(folder)


def end_run(watched: Watched) -> None:
    finish_run(watched.tracker.conn, "etl", "r1", "finished", 0)


def look(watched: Watched, folder: Path | str, **options: Any) -> AuditReport:
    return audit(LedgerView(watched.tracker.conn, "etl"), "orders", open_files, checkpoint=str(folder), **options)


def found(report: AuditReport) -> list[State]:
    return [finding.state for finding in report.findings]


def test_kafkas_offsets_are_compared_batch_by_batch(watched: Watched, made: CheckpointFolder, folder: Path) -> None:
    watched.batches(*range(4))
    made.batches(*range(4))
    end_run(watched)
    # It needs no right to write anything.
    watched.sql("SET default_transaction_read_only = on")
    report = look(watched, folder)
    assert report.state is State.CONSISTENT, report
    assert (report.compared_batches, report.compared_files) == (4, 0)
    assert report.not_judged == ("the source: the configuration of the newest run cannot be read any more",)
    made.plan(2, {"orders": {"0": 31}})
    differs = look(watched, folder)
    assert found(differs) == [State.DIFFERENT]
    assert "micro-batches 2 end elsewhere; 2 at {'orders': {'0': 31}} in the checkpoint" in differs.findings[0].found


def test_a_checkpoint_with_thousands_of_batches_is_judged_by_the_newest(
    watched: Watched, made: CheckpointFolder, folder: Path
) -> None:
    watched.batches(*range(150))
    # As Spark leaves it that was stopped while it removed old entries.
    made.batches(3, *range(20, 150))
    end_run(watched)
    report = look(watched, folder)
    assert report.state is State.CONSISTENT, report
    assert report.compared_batches == 100


def test_what_a_cleanup_has_removed_is_not_missing_and_is_not_brought_back(
    watched: Watched, made: CheckpointFolder, folder: Path
) -> None:
    watched.batches(*range(10))
    watched.sql("DELETE FROM etl.batch_tracker WHERE batch_id <= 4")
    watched.sql(
        "INSERT INTO etl.batch_retention (pipeline_id, query_id, removed_through_batch, through_time, removed_batches, "
        "removed_rows) VALUES ('orders', 'q', 4, now(), 5, 50)"
    )
    end_run(watched)
    made.batches(*range(10))
    assert look(watched, folder).state is State.CONSISTENT
    for number in range(3, 10):
        made.remove(f"offsets/{number}", f"commits/{number}")
    older = look(watched, folder)
    assert found(older) == [State.BEHIND]
    assert "a cleanup has removed rows of micro-batches that this one would bring again" in older.findings[0].advice


def test_a_decided_batch_is_finished_by_the_next_run(watched: Watched, made: CheckpointFolder, folder: Path) -> None:
    watched.batches(0)
    end_run(watched)
    made.batches(0)
    made.plan(1, {"orders": {"0": 20}})
    report = look(watched, folder)
    assert found(report) == [State.PLANNED]
    assert "does it again, from the same offsets" in report.findings[0].advice
    watched.sql(
        "INSERT INTO etl.batch_decision (pipeline_id, query_id, batch_id, epoch, run_id, winners, record, event) "
        "VALUES ('orders', 'q', 1, 1, 'r1', '[]', '{}', '{}')"
    )
    assert "finishes it, as it was decided" in look(watched, folder).findings[0].advice


def test_files_of_older_batches_are_summed_with_those_that_a_cleanup_retained(
    watched: Watched, made: CheckpointFolder, folder: Path
) -> None:
    for number in range(103):
        # Each batch of the tracker has read `/in/<number>.csv`.
        watched.batches(number, offsets=(None, {"logOffset": number}))
        made.plan(number, {"logOffset": number})
        made.commit(number)
        if number > 99:
            made.files(number, [f"/in/{number}.csv"])
    made.files(99, (), compacted=[(f"/in/{number}.csv", number) for number in range(100)])
    end_run(watched)
    watched.sql(
        "WITH gone AS (DELETE FROM etl.batch_file WHERE batch_id <= 1 RETURNING *) "
        "INSERT INTO etl.batch_file_retained (pipeline_id, query_id, path, modified_at, size_bytes) "
        "SELECT pipeline_id, query_id, path, modified_at, size_bytes FROM gone"
    )
    report = look(watched, folder)
    assert report.state is State.CONSISTENT, report
    assert (report.compared_batches, report.compared_files) == (100, 103)
    made.files(99, (), compacted=[(f"/in/{number}.csv", number) for number in range(1, 100)])
    fewer = look(watched, folder)
    assert found(fewer) == [State.DIFFERENT]
    assert "older micro-batches together: 3 files in the checkpoint's source log, 4 in the ledger" in (
        fewer.findings[0].found
    )
    watched.sql(
        "INSERT INTO etl.batch_retention (pipeline_id, query_id, removed_through_batch, through_time, removed_batches, "
        "removed_rows, removed_files) VALUES ('orders', 'q', 0, now(), 1, 1, 1)"
    )
    excused = look(watched, folder)
    assert excused.state is State.CONSISTENT
    assert "a cleanup has removed 1 names" in excused.not_judged[0]


def test_a_pipeline_that_has_never_run(watched: Watched, folder: Path) -> None:
    folder.parent.mkdir()
    end_run(watched)
    assert found(look(watched, folder)) == [State.NEW]
    with pytest.raises(ConfigError, match="pipelines such as orders"):
        audit(LedgerView(watched.tracker.conn, "etl"), "oders", open_files)
    watched.sql("DELETE FROM etl.pipeline_query")
    never = audit(LedgerView(watched.tracker.conn, "etl"), "orders", open_files)
    assert found(never) == [State.NEW]
    assert never.checkpoint is None


@pytest.fixture
def remote(folder: Path) -> Iterator[str]:
    """The checkpoint's folder, copied when asked for, in a storage of fsspec's."""
    yield "memory://bucket/streams/orders"
    fsspec.filesystem("memory").store.clear()


def _upload(folder: Path, remote: str) -> None:
    storage, root = fsspec.core.url_to_fs(remote)
    for path in folder.rglob("*"):
        if path.is_file():
            storage.pipe(f"{root}/{path.relative_to(folder)}", path.read_bytes())


def test_a_checkpoint_in_a_storage(watched: Watched, made: CheckpointFolder, folder: Path, remote: str) -> None:
    watched.batches(*range(3))
    end_run(watched)
    nowhere = look(watched, remote)
    assert found(nowhere) == [State.UNREADABLE]
    assert "the bucket" in nowhere.findings[0].found
    fsspec.filesystem("memory").pipe("/bucket/other", b"")
    assert found(look(watched, remote)) == [State.LOST]
    made.batches(*range(3))
    _upload(folder, remote)
    assert look(watched, remote).state is State.CONSISTENT
    fsspec.filesystem("memory").pipe("/bucket/streams/orders/offsets/2", b"v1")
    assert found(look(watched, remote)) == [State.DAMAGED]


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("s3a://bucket/orders", "install s3fs"),
        ("gs://bucket/orders", "install gcsfs"),
        ("abfss://container@account.dfs.core.windows.net/orders", "install adlfs"),
        ("viewfs://cluster/orders", "the package with fsspec's file system for viewfs://"),
        ("checkpoints/orders", "--checkpoint on the command line"),
    ],
)
def test_a_place_that_cannot_be_read_is_named_with_what_to_do(watched: Watched, location: str, words: str) -> None:
    watched.batches(0)
    end_run(watched)
    report = look(watched, location)
    assert found(report) == [State.UNREADABLE]
    assert location in report.findings[0].found
    assert words in report.findings[0].advice
    with pytest.raises(CheckpointUnreadableError):
        open_files(location)


def test_a_folder_that_may_not_be_read_is_not_taken_for_a_lost_one(
    watched: Watched, made: CheckpointFolder, folder: Path
) -> None:
    watched.batches(0)
    end_run(watched)
    # Root may read everything; nobody may read a file as a folder.
    (folder / "offsets").write_text("")
    report = look(watched, folder)
    assert found(report) == [State.UNREADABLE]
    assert "offsets: NotADirectoryError" in report.findings[0].found


def test_locations_as_spark_takes_them(tmp_path: Path) -> None:
    spaced = tmp_path / "a b"
    spaced.mkdir()
    for location in (str(spaced), f"file:{spaced}", f"file://{spaced}", f"file://host{spaced}"):
        opened = local_files(location)
        assert opened is not None
        assert opened.exists()
    encoded = local_files(f"file:{tmp_path}/a%20b")
    assert encoded is not None
    assert not encoded.exists()
    assert local_files("s3a://b/c") is None
    assert [scheme_of(text) for text in ("/a:b/c", "S3A://b", "C:/x", "a", "file:/x")] == ["", "s3a", "c", "", "file"]
    assert storage_uri("s3a://b/c") == "s3://b/c"
    assert storage_uri("S3N://b/c") == "s3://b/c"
    assert storage_uri("gs://b/c") == "gs://b/c"


def test_the_worst_comes_first_and_decides() -> None:
    def one(state: State) -> Finding:
        return Finding(state=state, found=f"a {state} thing", expected="peace", advice=f"mend {state}")

    report = AuditReport(pipeline="p", findings=worst_first(map(one, (State.PLANNED, State.AHEAD, State.UNKNOWN))))
    assert report.state is State.AHEAD
    error = failure([report], BAD)
    assert isinstance(error, CheckpointMismatchError)
    assert "p is ahead: a ahead thing; p is unknown" in error.found
    assert "planned" not in str(error)
    assert isinstance(failure([report], [State.UNKNOWN]), CheckpointMismatchError)
    silent = one(State.UNKNOWN).model_copy(update={"passing": True})
    passing = failure([AuditReport(pipeline="p", findings=(silent,))], BAD)
    assert isinstance(passing, TransientError)
    assert passing.retryable
    assert failure([report], [State.LOST]) is None
    assert states(["lost", "ahead"]) == (State.LOST, State.AHEAD)
    with pytest.raises(ConfigError, match="'losst'"):
        states(["lost", "losst"])


@pytest.fixture
def run(database: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", database.airflow_uri)
    monkeypatch.setenv("ETL_CONNECTION", "warehouse")
    monkeypatch.setenv("COLUMNS", "220")
    return lambda *arguments: CliRunner().invoke(_app(), list(arguments))


def _app() -> Any:
    app = cli._typer()
    app.command()(audit_command)
    return app


def test_the_command(watched: Watched, made: CheckpointFolder, folder: Path, run: Any) -> None:
    watched.sql("UPDATE etl.pipeline_query SET checkpoint_location = %s", str(folder))
    watched.batches(0, 1)
    made.batches(0, 1)
    end_run(watched)
    told = run()
    assert told.exit_code == 0, told.output
    assert "consistent" in told.output
    [report] = json.loads(run("orders", "--json").output)
    assert (report["state"], report["pipeline"], report["last_committed"]) == ("consistent", "orders", 1)

    watched.sql("DELETE FROM etl.batch_tracker WHERE batch_id = 1")
    ahead = run("orders", "--json")
    assert json.loads(ahead.output)[0]["findings"][0]["state"] == "ahead"
    assert isinstance(ahead.exception, CheckpointMismatchError)
    assert "orders is ahead: micro-batches 1 committed" in str(ahead.exception)
    assert "bold red" not in run().output
    copy = run("orders", "--checkpoint", str(folder.parent / "nothing"))
    assert "orders is lost" in str(copy.exception)
    for wrong in ([], ["orders", "returns"]):
        assert isinstance(run(*wrong, "--checkpoint", "x").exception, ConfigError)


def test_the_command_ends_with_its_exit_code(
    watched: Watched, folder: Path, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.parent.mkdir()
    watched.sql("UPDATE etl.pipeline_query SET checkpoint_location = %s", str(folder))
    watched.batches(0)
    end_run(watched)
    with pytest.raises(SystemExit) as ended:
        cli.main(["audit"])
    assert ended.value.code == 8
    assert "orders is lost: nothing at" in capsys.readouterr().err


def test_a_ledger_that_does_not_answer(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", "postgres://u:p@127.0.0.1:1/db")
    assert isinstance(run().exception, DatabaseUnreachableError)
