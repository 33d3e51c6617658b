from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from airflow_etl_provider.hooks.ledger import LedgerHook
from spark_jobs.contracts.errors import ConnectionMissingError, FencedError
from spark_jobs.contracts.run_request import RunRequest
from spark_jobs.contracts.tracker.fence import check_fence
from spark_jobs.contracts.tracker.runs import claim_epoch
from spark_jobs.contracts.tracker.statements import application_name

if TYPE_CHECKING:
    from tests.conftest import Database


def request(run_id: str) -> RunRequest:
    return RunRequest(run_id=run_id, pipeline_id="orders", config={}, started_by="test")


@pytest.fixture
def ledger(database: Database, connections: Callable[..., None]) -> LedgerHook:
    connections(warehouse=database.airflow_uri)
    return LedgerHook("warehouse", schema="books")


def test_registering_makes_the_tables(ledger: LedgerHook) -> None:
    ledger.register(request("one"))
    row = ledger.run("one")
    assert row is not None
    assert (row.state, row.is_newest, row.error) == ("registered", True, None)


def test_a_newer_run_takes_the_right_to_commit(ledger: LedgerHook) -> None:
    ledger.register(request("one"))
    with contextlib.closing(ledger.get_conn()) as conn:
        epoch = claim_epoch(conn, "books", "orders", "one")
        ledger.register(request("two"))
        with pytest.raises(FencedError):
            check_fence(conn, "books", "orders", "one", epoch, lock=False)
    row = ledger.run("one")
    assert row is not None
    assert not row.is_newest


def test_a_retired_run_cannot_commit_and_is_not_started_later(ledger: LedgerHook) -> None:
    ledger.register(request("one"))
    with contextlib.closing(ledger.get_conn()) as conn:
        epoch = claim_epoch(conn, "books", "orders", "one")
        ledger.retire("one")
        with pytest.raises(FencedError):
            check_fence(conn, "books", "orders", "one", epoch, lock=False)
        with pytest.raises(FencedError):
            claim_epoch(conn, "books", "orders", "one")
    row = ledger.run("one")
    assert row is not None
    assert (row.state, row.is_newest) == ("fenced", False)


def test_retiring_does_not_wait_for_a_driver_frozen_in_its_commit(ledger: LedgerHook) -> None:
    ledger.register(request("one"))
    with contextlib.closing(ledger.get_conn()) as driver:
        epoch = claim_epoch(driver, "books", "orders", "one")
        driver.execute(
            "SELECT set_config('application_name', %s, false)", (application_name("orders", epoch, "books"),)
        )
        with contextlib.suppress(Exception), driver.transaction():
            check_fence(driver, "books", "orders", "one", epoch, lock=True)
            retiring = threading.Thread(target=ledger.retire, args=("one",))
            retiring.start()
            retiring.join(timeout=4)
            assert not retiring.is_alive()
    row = ledger.run("one")
    assert row is not None
    assert row.state == "fenced"


def test_retiring_an_older_run_leaves_the_newer_one_alone(ledger: LedgerHook) -> None:
    ledger.register(request("one"))
    ledger.register(request("two"))
    ledger.retire("one")
    row = ledger.run("two")
    assert row is not None
    assert (row.state, row.is_newest) == ("registered", True)


def test_an_unknown_run_is_none(ledger: LedgerHook) -> None:
    ledger.register(request("one"))
    assert ledger.run("other") is None


def test_a_missing_connection_names_the_setting_and_the_cure() -> None:
    with pytest.raises(ConnectionMissingError, match=r"load\.credentialId.*'nowhere'.*airflow connections add"):
        LedgerHook("nowhere").database  # noqa: B018


def test_the_password_is_not_shown(ledger: LedgerHook, database: Database) -> None:
    shown: list[Any] = [repr(ledger.database), str(ledger.database), repr(vars(ledger))]
    assert database.server.password not in "".join(shown)
