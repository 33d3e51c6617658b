"""Two-phase commits: finished after a crash where they were decided, undone where they were not, refused where they
cannot be."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pipeline_runs import CREDENTIAL, VARIABLE, Pipelines, aggregation, file_pipeline, write_lines

from sandbox.postgres import PostgresServer
from spark_jobs.cli import main
from spark_jobs.contracts.errors import DecidedPartMissingError, TransientError, TwoPhaseUnavailableError
from spark_jobs.contracts.tracker import decisions
from spark_jobs.sinks import two_phase_commit
from spark_jobs.sinks.postgres import PostgresSink

SCHEMA = "id INT, name STRING"
MISSING = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() ORDER BY gid"


class _CutShortError(Exception):
    """Stands for the driver's death: nothing that it would still do happens."""


def _config(pipelines: Pipelines, inbox: Path, **load: Any) -> dict[str, Any]:
    return file_pipeline(
        "orders",
        inbox,
        pipelines.checkpoints,
        schema=SCHEMA,
        load={"writeStrategy": "two_phase", **load},
        options={"maxFilesPerTrigger": "4"},
    )


def _write(inbox: Path, number: int, count: int = 10) -> None:
    first = number * count
    write_lines(inbox / f"{number}.json", *({"id": i, "name": f"n{i}"} for i in range(first, first + count)))


def _ids(pipelines: Pipelines) -> list[int]:
    return [row[0] for row in pipelines.rows("SELECT id FROM result ORDER BY id")]


@contextmanager
def _dies(monkeypatch: pytest.MonkeyPatch, point: str) -> Iterator[None]:
    """Let the driver end at a fault point; its sweeps do not happen either, as after kill -9."""

    def reach(reached: str) -> None:
        if reached == point:
            raise _CutShortError(point)

    with monkeypatch.context() as patch:
        patch.setattr(two_phase_commit, "reach", reach)
        patch.setattr(decisions, "reach", reach)
        patch.setattr("spark_jobs.contracts.tracker.recovery.sweep_own", lambda *_, **__: [])
        yield


@pytest.mark.parametrize(
    ("point", "decided"),
    [
        ("two_phase.before_decision", False),
        ("two_phase.before_decision_commit", False),
        ("two_phase.after_decision", True),
        ("two_phase.between_commits", True),
        ("two_phase.before_finish", True),
        ("two_phase.before_finish_commit", True),
    ],
)
def test_the_next_run_finishes_what_was_decided_and_undoes_the_rest(
    pipelines: Pipelines, inbox: Path, monkeypatch: pytest.MonkeyPatch, point: str, decided: bool
) -> None:
    config = _config(pipelines, inbox)
    for number in range(4):
        _write(inbox, number)
    with _dies(monkeypatch, point):
        assert pipelines.run(config).error is not None
    assert pipelines.one("SELECT count(*) FROM etl.batch_tracker") == 0
    assert pipelines.one("SELECT count(*) FROM etl.batch_decision") == int(decided)
    ended = pipelines.finish(config)
    assert (ended.result.batches, ended.result.duplicates) == ((0, 1) if decided else (1, 0))
    assert _ids(pipelines) == list(range(40))
    assert pipelines.rows("SELECT source_rows, written_rows, strategy FROM etl.batch_tracker") == [
        (40, 40, "two_phase")
    ]
    assert pipelines.rows(MISSING) == []
    assert pipelines.rows("SELECT * FROM etl.batch_decision") == pipelines.rows("SELECT * FROM etl.batch_part") == []


def test_others_prepared_transactions_are_left_alone(
    pipelines: Pipelines, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(pipelines, inbox)
    _write(inbox, 0)
    _write(inbox, 1)
    with _dies(monkeypatch, "two_phase.before_decision"):
        pipelines.run(config)
    names = ["somebody elses", "etl:0123456789abcdef01234567:q:0:1:1:0:0"]
    with pipelines.database.connect(autocommit=True) as conn:
        for name in names:
            conn.execute("BEGIN")
            conn.execute("CREATE TABLE " + psycopg.sql.Identifier(name).as_string(conn) + " (id int)")
            conn.execute("PREPARE TRANSACTION " + psycopg.sql.Literal(name).as_string(conn))
    try:
        pipelines.finish(config)
        assert sorted(row[0] for row in pipelines.rows(MISSING)) == sorted(names)
    finally:
        with pipelines.database.connect(autocommit=True) as conn:
            for name in names:
                conn.execute("ROLLBACK PREPARED " + psycopg.sql.Literal(name).as_string(conn))
    assert _ids(pipelines) == list(range(20))


def _command(pipelines: Pipelines, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, pipelines.database.airflow_uri)
        with pytest.raises(SystemExit) as ended:
            main(["prepared", *words, "--connection", CREDENTIAL])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out + captured.err


def test_the_command_shows_and_resolves_what_was_left(
    pipelines: Pipelines, inbox: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = _config(pipelines, inbox)
    _write(inbox, 0)
    with _dies(monkeypatch, "two_phase.before_decision"):
        pipelines.run(config)
    _, shown = _command(pipelines, capsys, "list", "--json")
    [item] = json.loads(shown)
    assert (item["pipeline_id"], item["batch_id"], item["state"]) == ("orders", 0, "undecided")
    _, shown = _command(pipelines, capsys, "resolve", "--json")
    assert [item["state"] for item in json.loads(shown)] == ["rolled back"]
    with _dies(monkeypatch, "two_phase.after_decision"):
        pipelines.run(config)
    _, shown = _command(pipelines, capsys, "list")
    assert "decided" in shown
    assert _ids(pipelines) == []
    _, shown = _command(pipelines, capsys, "resolve", "--json")
    assert [item["state"] for item in json.loads(shown)] == ["committed"]
    assert _ids(pipelines) == list(range(10))
    assert pipelines.finish(config).result.duplicates == 1
    assert json.loads(_command(pipelines, capsys, "list", "--json")[1]) == []


def test_a_part_that_was_rolled_back_by_hand_stops_the_run_until_somebody_decides(
    pipelines: Pipelines, inbox: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = _config(pipelines, inbox, writeParallelism=2)
    for number in range(4):
        _write(inbox, number)
    with _dies(monkeypatch, "two_phase.after_decision"):
        pipelines.run(config)
    names = [row[0] for row in pipelines.rows(MISSING)]
    assert len(names) == 2
    with pipelines.database.connect(autocommit=True) as conn:
        conn.execute("ROLLBACK PREPARED " + psycopg.sql.Literal(names[0]).as_string(conn))
    for _ in range(2):
        ended = pipelines.run(config)
        assert isinstance(ended.error, DecidedPartMissingError)
        assert "etl-pipeline prepared resolve --accept-missing" in str(ended.error)
        assert pipelines.one("SELECT count(*) FROM etl.batch_tracker") == 0
    code, shown = _command(pipelines, capsys, "resolve")
    assert code != 0
    assert names[0] in shown
    assert _command(pipelines, capsys, "resolve", "--accept-missing")[0] == 0
    [(written, source)] = pipelines.rows("SELECT written_rows, source_rows FROM etl.batch_tracker")
    [(missing, reason)] = pipelines.rows("SELECT missing_rows, reason FROM etl.source_gap")
    assert written + missing == 40
    # A winner that says what it read takes that along.
    assert source == written
    assert "by hand" in reason
    assert pipelines.one("SELECT count(*) FROM result") == written
    assert pipelines.finish(config).result.duplicates == 1


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("id int PRIMARY KEY, name text", "unique key"),
        ("id int, name text, EXCLUDE USING btree (id WITH =)", "unique key"),
    ],
)
def test_forced_where_a_key_forbids_it_is_refused(pipelines: Pipelines, inbox: Path, table: str, words: str) -> None:
    with pipelines.database.connect(autocommit=True) as conn:
        conn.execute(f"CREATE TABLE result ({table})")
    _write(inbox, 0)
    ended = pipelines.run(_config(pipelines, inbox))
    assert isinstance(ended.error, TwoPhaseUnavailableError)
    assert words in str(ended.error)
    assert _ids(pipelines) == []


def test_forced_where_a_trigger_notifies_is_refused_and_leaves_nothing(pipelines: Pipelines, inbox: Path) -> None:
    with pipelines.database.connect(autocommit=True) as conn:
        conn.execute("CREATE TABLE result (id int, name text)")
        conn.execute(
            "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_notify('told', NEW.id::text); RETURN NULL; END $$"
        )
        conn.execute("CREATE TRIGGER tell AFTER INSERT ON result FOR EACH ROW EXECUTE FUNCTION tell()")
    _write(inbox, 0)
    ended = pipelines.run(_config(pipelines, inbox))
    assert isinstance(ended.error, TwoPhaseUnavailableError)
    assert "notifies" in str(ended.error)
    assert _ids(pipelines) == []
    assert pipelines.rows(MISSING) == []
    pipelines.finish(_config(pipelines, inbox, writeStrategy="auto"))
    assert _ids(pipelines) == list(range(10))


def test_auto_prepares_parts_of_a_large_append_and_says_why(
    pipelines: Pipelines, inbox: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="etl.batch")
    # Large, and quickly read: blanks around the objects.
    lines = [json.dumps({"id": number, "name": "a"}) + " " * (1 << 20) for number in range(65)]
    (inbox / "large.json").write_text("\n".join(lines))
    pipelines.finish(_config(pipelines, inbox, writeStrategy="auto"))
    assert _ids(pipelines) == list(range(65))
    [(strategy, reason)] = pipelines.rows("SELECT strategy, strategy_reason FROM etl.batch_tracker")
    assert strategy == "two_phase"
    assert reason.endswith("bytes of files: several tasks write it, in at most 2 parts")
    assert f"strategy={strategy} reason={reason!r}" in caplog.text


def test_more_parts_than_the_server_has_room_for_are_refused(pipelines: Pipelines, inbox: Path) -> None:
    _write(inbox, 0)
    ended = pipelines.run(_config(pipelines, inbox, writeParallelism=5000))
    assert isinstance(ended.error, TwoPhaseUnavailableError)
    assert "max_prepared_transactions" in str(ended.error)


def _sums(pipelines: Pipelines, inbox: Path, **options: str) -> dict[str, Any]:
    return file_pipeline(
        "sums",
        inbox,
        pipelines.checkpoints,
        schema="id INT, at TIMESTAMP",
        transforms=[aggregation(windowDuration="1 hour", aggregations="id:sum")],
        load={"writeStrategy": "two_phase"},
        streaming={"outputMode": "append", "watermark": {"eventTimeColumn": "at", "delayThreshold": "1 minute"}},
        options=options,
    )


def test_the_results_of_an_aggregation_and_its_dead_letters_are_prepared_together(
    pipelines: Pipelines, inbox: Path
) -> None:
    config = _sums(pipelines, inbox)
    rows = [{"id": hour, "at": f"2026-01-01T{hour:02}:00:00Z"} for hour in range(10)]
    write_lines(inbox / "0.json", *rows, "not json at all")
    pipelines.finish(config)
    # The window from 08:00 to 09:00 ends after the watermark, 08:59.
    assert pipelines.one("SELECT count(*) FROM result") == 8
    assert pipelines.one("SELECT count(*) FROM etl.dead_letter") == 1
    assert pipelines.rows("SELECT DISTINCT strategy FROM etl.batch_tracker") == [("two_phase",)]
    assert pipelines.rows("SELECT * FROM etl.batch_part") == pipelines.rows(MISSING) == []


@contextmanager
def _server(slots: int, database: Any, spark: Any, folder: Path) -> Iterator[Pipelines]:
    with PostgresServer(settings={"max_prepared_transactions": str(slots)}) as server:
        server.create_database("small")
        yield Pipelines(type(database)(server, "small"), folder, spark)


def test_the_dead_letters_of_an_aggregation_have_a_slot_of_their_own(
    database: Any, spark: Any, tmp_path: Path, inbox: Path
) -> None:
    with _server(2, database, spark, tmp_path) as pipelines:
        config = _sums(pipelines, inbox, maxFilesPerTrigger="1")
        for day in range(1, 4):
            rows = [{"id": hour, "at": f"2026-01-0{day}T{hour:02}:00:00Z"} for hour in range(24)]
            write_lines(inbox / f"{day}.json", *rows, "not json at all")
            # Files of the same instant would come in any order, and an earlier day behind a later one is late.
            os.utime(inbox / f"{day}.json", (1_767_225_600 + day, 1_767_225_600 + day))
        pipelines.finish(config)
        # The watermark is 22:59 of the last day.
        assert pipelines.one("SELECT count(*) FROM result") == 3 * 24 - 2
        assert pipelines.one("SELECT count(*) FROM etl.dead_letter") == 3
        reasons = pipelines.rows("SELECT DISTINCT strategy, strategy_reason FROM etl.batch_tracker")
        assert reasons == [
            ("two_phase", "forced by writeStrategy, in one part: no more prepared transactions are free")
        ]
        config["load"]["writeParallelism"] = 2
        write_lines(inbox / "4.json", {"id": 1, "at": "2026-01-05T00:00:00Z"})
        ended = pipelines.run(config)
        assert isinstance(ended.error, TwoPhaseUnavailableError), ended.error
        assert "room for 2 prepared transactions, and one for the dead letters" in str(ended.error)


def test_a_slot_that_somebody_takes_before_a_part_is_prepared_is_a_passing_fault(
    database: Any, spark: Any, tmp_path: Path, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _server(2, database, spark, tmp_path) as pipelines, monkeypatch.context() as patched:
        means = PostgresSink.means

        def taken(sink: PostgresSink) -> Any:
            found = means(sink)
            for number in range(2):
                pipelines.execute("BEGIN", f"CREATE TABLE taken_{number} ()", f"PREPARE TRANSACTION 'taken {number}'")
            return found

        patched.setattr(PostgresSink, "means", taken)
        _write(inbox, 0)
        config = _config(pipelines, inbox)
        ended = pipelines.run(config)
        assert isinstance(ended.error, TransientError), ended.error
        assert ended.error.retryable
        assert "no free slot" in str(ended.error)
        assert "Raise max_prepared_transactions" in str(ended.error)
        assert _ids(pipelines) == []
        patched.undo()
        pipelines.execute("ROLLBACK PREPARED 'taken 0'", "ROLLBACK PREPARED 'taken 1'")
        pipelines.finish(config)
        assert _ids(pipelines) == list(range(10))
