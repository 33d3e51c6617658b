"""The operators that clean the ledger: parameters as templates give them, results, logs, what fails the task."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from airflow.serialization.serialized_objects import DagSerialization

from airflow_etl_provider.hooks.ledger import LedgerHook
from airflow_etl_provider.operators.batch_tracker_cleanup import BatchTrackerCleanupOperator
from airflow_etl_provider.operators.orphan_cleanup import OrphanCleanupOperator
from spark_jobs.contracts.cleanup import MINIMUM_BATCHES
from spark_jobs.contracts.run_request import RunRequest
from spark_jobs.contracts.tracker.connect import Connection
from spark_jobs.contracts.tracker.runs import claim_epoch, finish_run
from spark_jobs.contracts.tracker.staging_names import staging_prefix

if TYPE_CHECKING:
    from tests.conftest import Database

_BATCHES = """
INSERT INTO etl.batch_tracker (
    pipeline_id, query_id, batch_id, processed_at, record_count, checkpoint_location, run_id, epoch, duration_ms,
    source_rows, passed_rows, rejected_rows, dead_lettered_rows, late_rows, filtered_rows, deduplicated_rows,
    sink_rows, written_rows, write_dead_lettered_rows, write_deduplicated_rows, strategy, strategy_reason
)
SELECT 'orders', 'q', n, now() - interval '40 days', 7, '/c', 'r1', 1, 5, 7, 7, 0, 0, 0, 0, 0, 7, 7, 0, 0, 'single', ''
FROM generate_series(0, %s - 1) AS n"""


@pytest.fixture
def ledger(database: Database, connections: Callable[..., None]) -> Any:
    """A ledger with a run that has ended and ten batches more than any cleanup keeps; its session."""
    connections(warehouse=database.airflow_uri)
    hook = LedgerHook("warehouse")
    hook.register(RunRequest(run_id="r1", pipeline_id="orders", config={}, started_by="test"))
    with closing(hook.get_conn()) as conn:
        claim_epoch(conn, "etl", "orders", "r1")
        finish_run(conn, "etl", "r1", "failed", 1)
        conn.execute(_BATCHES, (MINIMUM_BATCHES + 10,))
        yield conn


def batches(conn: Connection) -> int:
    row = conn.execute("SELECT count(*) FROM etl.batch_tracker").fetchone()
    assert row is not None
    return int(row[0])


def cleanup(**given: Any) -> BatchTrackerCleanupOperator:
    return BatchTrackerCleanupOperator(task_id="clean", **{"keep_batches": MINIMUM_BATCHES, **given})


def sweep(**given: Any) -> OrphanCleanupOperator:
    return OrphanCleanupOperator(task_id="sweep", **given)


def test_parameters_as_templates_give_them(ledger: Connection, context: Any) -> None:
    given = {"days": "{{ params.days }}", "dry_run": "{{ params.dry }}", "pipelines": "{{ params.pipelines }}"}
    op = cleanup(letter_days="{{ params.none }}", **given)
    op.render_template_fields({**context, "params": {"days": 39, "dry": True, "none": None, "pipelines": "orders, "}})
    request = op.request()
    assert (request.days, request.dry_run, request.letter_days, request.pipelines) == (39, True, None, ("orders",))
    assert op.execute(context)["totals"] == {"batches": 10}
    assert batches(ledger) == MINIMUM_BATCHES + 10


def test_the_result_says_what_went_and_why_the_rest_stays(
    ledger: Connection, context: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    told = cleanup().execute(context)
    assert batches(ledger) == MINIMUM_BATCHES
    assert told["by_pipeline"] == {"orders": {"batches": 10}}
    (query,) = told["queries"]
    assert (query["through_batch"], query["kept_from_batch"], query["why"]) == (9, 10, "count")
    assert "orders: removed 10 batches" in capsys.readouterr().out


def test_what_cannot_be_removed_fails_the_task_after_all_else_with_a_list(
    ledger: Connection, context: Any, pushed: dict[str, Any]
) -> None:
    ledger.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF OLD.pipeline_id <> 'returns' THEN RAISE 'this one stays'; END IF; RETURN OLD; END $$"
    )
    copy = (
        "INSERT INTO etl.batch_tracker SELECT (jsonb_populate_record(NULL::etl.batch_tracker, "
        "to_jsonb(b) || jsonb_build_object('pipeline_id', %s::text))).* FROM etl.batch_tracker b "
        "WHERE pipeline_id = 'orders'"
    )
    for other in ("refunds", "returns"):
        LedgerHook("warehouse").register(RunRequest(run_id=other, pipeline_id=other, config={}, started_by="test"))
        ledger.execute(copy, (other,))
    ledger.execute("CREATE TRIGGER refuse BEFORE DELETE ON etl.batch_tracker FOR EACH ROW EXECUTE FUNCTION refuse()")
    with pytest.raises(AirflowFailException, match=r"2 problems\n  orders: .*this one stays.*\n  refunds: .*stays"):
        cleanup().execute(context)
    assert pushed["cleanup"]["totals"] == {"batches": 10}
    assert set(pushed["cleanup"]["problems"]) == {"orders", "refunds"}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"keep_batches": "5"}, "keep_batches"),
        ({"days": "soon"}, "days"),
        ({"pipelines": "nobody"}, "'nobody'"),
        ({"tracker_schema": "other"}, "etl-pipeline migrate --schema other"),
    ],
    ids=str,
)
def test_what_cannot_get_better_fails_the_task_at_once(
    ledger: Connection, context: Any, given: dict[str, Any], named: str
) -> None:
    with pytest.raises(AirflowFailException, match=named):
        cleanup(**given).execute(context)
    assert batches(ledger) == MINIMUM_BATCHES + 10


def test_the_constructors_only_assign() -> None:
    assert cleanup(days="{{ x }}", ledger_conn_id="nowhere").days == "{{ x }}"
    assert sweep(older_than_minutes="{{ x }}", ledger_conn_id="nowhere").older_than_minutes == "{{ x }}"


def test_orphans_are_cleared_away_and_told(
    ledger: Connection, context: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{staging_prefix('orders', 'etl')}1_1_rows"
    ledger.execute(f'CREATE TABLE etl."{name}" ()'.encode())
    told = sweep(dry_run="true").execute(context)
    assert f"orders: staging {name} would be dropped" in capsys.readouterr().out
    assert [(orphan["name"], orphan["state"]) for orphan in told["orphans"]] == [(name, "dropped")]
    assert sweep().execute(context) == {**told, "dry_run": False}
    assert sweep().execute(context)["orphans"] == []


def test_what_needs_a_person_fails_the_task_after_all_else(
    ledger: Connection, context: Any, pushed: dict[str, Any]
) -> None:
    ledger.execute(
        "INSERT INTO etl.batch_decision (pipeline_id, query_id, batch_id, epoch, run_id, winners, record, event, "
        "decided_at) VALUES ('orders', 'q', 500, 1, 'r1', %s, '{}', '{}', now() - interval '1 day')",
        ('[{"name": "gone", "rows": 1, "books": null}]',),
    )
    name = f"{staging_prefix('orders', 'etl')}1_1_rows"
    ledger.execute(f'CREATE TABLE etl."{name}" ()'.encode())
    with pytest.raises(AirflowFailException, match="--accept-missing"):
        sweep().execute(context)
    assert set(pushed["sweep"]["problems"]) == {"orders"}
    assert [orphan["name"] for orphan in pushed["sweep"]["orphans"] if orphan["state"] == "dropped"] == [name]


def test_a_server_that_does_not_answer_may_be_tried_again(context: Any, connections: Callable[..., None]) -> None:
    connections(warehouse="postgres://u:p@127.0.0.1:1/d")
    for op in (cleanup(), sweep()):
        with pytest.raises(AirflowException) as raised:
            op.execute(context)
        assert not isinstance(raised.value, AirflowFailException)


def test_the_dag_file_is_a_dag_that_runs_both_each_day(repository: Path) -> None:
    path = repository / "dags" / "etl_batch_tracker_cleanup.py"
    dag = runpy.run_path(str(path))["dag"]
    assert isinstance(dag, DAG)
    stored = DagSerialization.to_dict(dag)["dag"]
    assert stored["dag_id"] == "etl_batch_tracker_cleanup"
    assert {task.task_id: type(task) for task in dag.tasks} == {
        "orphans": OrphanCleanupOperator,
        "retention": BatchTrackerCleanupOperator,
    }
    params = dag.params.dump()
    for task in dag.tasks:
        task.render_template_fields({"params": params}, jinja_env=dag.get_template_env(force_sandboxed=False))
        # What the form offers, and what the operator does by itself, are the same.
        assert task.request() == type(task)(task_id=f"{task.task_id}_alone").request()
