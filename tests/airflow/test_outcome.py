from __future__ import annotations

import pytest
from airflow.exceptions import AirflowException
from airflow.sdk.exceptions import AirflowFailException

from airflow_etl_provider.hooks.ledger import RunRow
from airflow_etl_provider.outcome import airflow_errors, require_finished
from spark_jobs.contracts.errors import CheckpointMismatchError, EtlError, SourceUnreachableError


def row(state: str, error: EtlError | None = None, exit_code: int | None = None) -> RunRow:
    return RunRow("r1", state, exit_code, error.to_json() if error else None, is_newest=True)


def test_a_finished_run_passes() -> None:
    require_finished(row("finished"), "r1", "")


def test_an_error_that_stays_is_not_retried_and_says_all() -> None:
    error = CheckpointMismatchError("The checkpoint is lost", found="nothing", expected="query 7", cure="resume")
    with pytest.raises(AirflowFailException) as raised:
        require_finished(row("failed", error), "r1", "Error code is: 8")
    text = str(raised.value)
    for part in ("The checkpoint is lost", "nothing", "query 7", "resume", "8 (CHECKPOINT_MISMATCH)"):
        assert part in text


def test_a_passing_error_may_be_retried() -> None:
    with pytest.raises(AirflowException) as raised:
        require_finished(row("failed", SourceUnreachableError("No broker")), "r1", "")
    assert not isinstance(raised.value, AirflowFailException)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("registered", "never started"),
        ("running", "never said how it ended"),
        ("stopped", "stopped on request"),
        ("fenced", "fenced"),
    ],
)
def test_each_end_without_an_error_has_words_of_its_own(state: str, words: str) -> None:
    with pytest.raises(AirflowException, match=words) as raised:
        require_finished(row(state), "r1", "Error code is: 137")
    assert not isinstance(raised.value, AirflowFailException)
    assert "137" in str(raised.value)


def test_a_row_that_is_gone_is_not_retried() -> None:
    with pytest.raises(AirflowFailException, match="not in the ledger"):
        require_finished(None, "r1", "")


def test_the_projects_errors_become_airflows() -> None:
    with pytest.raises(AirflowFailException, match="lost"), airflow_errors():
        raise CheckpointMismatchError("It is lost")
