"""A log line is one line, whatever is in it: JSON that gives back what was said, or plain text that none can forge."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from spark_jobs.contracts.errors import ConfigError, DataError
from spark_jobs.contracts.log_settings import LogFormat, log_format, log_level
from spark_jobs.logs import ids
from spark_jobs.logs.ending import tell_error
from spark_jobs.logs.events import log_event
from spark_jobs.logs.formats import formatter

ANY_TEXT = some.text(some.characters(), max_size=60)
# Masking is another test's affair: here no name or text may look like a secret.
NAMES = some.text("abcdefgh_", min_size=1, max_size=8)
TEXTS = ANY_TEXT.filter(lambda text: not re.search(r"[=:]|Bearer", text, re.IGNORECASE))
VALUES = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


def said(form: LogFormat, say: Callable[[logging.Logger], object]) -> str:
    """Return what a logger of its own writes."""
    output = io.StringIO(newline="")
    handler = logging.StreamHandler(output)
    handler.setFormatter(formatter(form))
    log = logging.Logger("etl.test", logging.DEBUG)
    log.addHandler(handler)
    say(log)
    text = output.getvalue()
    assert text.endswith("\n")
    return text[:-1]


def parsed(say: Callable[[logging.Logger], object]) -> dict[str, Any]:
    line = said("json", say)
    assert len(line.splitlines()) == 1
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


@contextmanager
def a_run(**known: str | int) -> Iterator[None]:
    with ids.run_scope():
        ids.begin(**known)
        yield


@given(fields=some.dictionaries(NAMES, VALUES, max_size=5), name=NAMES)
def test_an_event_in_json_gives_back_its_fields(fields: dict[str, Any], name: str) -> None:
    line = parsed(lambda log: log_event(log, logging.INFO, name, **fields))
    assert {key: line[key] for key in fields} == fields
    assert (line["event"], line["level"], line["logger"]) == (name, "INFO", "etl.test")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["ts"])


@given(text=TEXTS)
def test_a_text_in_json_is_given_back(text: str) -> None:
    assert parsed(lambda log: log.info(text))["message"] == text
    assert parsed(lambda log: log.info("%s", text))["message"] == text
    assert parsed(lambda log: log.info("a text", extra={"more": [text, 1]}))["more"] == [text, 1]


@given(text=ANY_TEXT, names=some.lists(ANY_TEXT, min_size=5, max_size=5))
def test_plain_text_is_one_line_that_a_terminal_can_show(text: str, names: list[str]) -> None:
    with a_run(**dict(zip(ids.NAMES, names, strict=True))):
        for line in (
            said("plain", lambda log: log.info(text)),
            said("plain", lambda log: log_event(log, logging.INFO, "named", text=text, more={"of": [text]})),
        ):
            assert len(line.splitlines()) == 1
            assert not re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", line)
            line.encode()


def test_an_event_in_plain_text() -> None:
    with a_run(pipeline="or ders", run="r-1", epoch=4, query="q", batch=7):
        line = said(
            "plain",
            lambda log: log_event(
                log, logging.INFO, "done", batch=3, reason="it's over", file="a b", at={"p": 1}, ok=True
            ),
        )
    assert re.sub(r"^\S+ \S+ ", "", line) == (
        'INFO etl.test event=done batch=3 reason="it\'s over" file=\'a b\' at={"p":1} ok=True '
        "pipeline='or ders' run=r-1 epoch=4 query=q"
    )


def test_no_text_can_pass_for_a_line_of_its_own() -> None:
    forged = "2026-01-01 00:00:00,000 INFO etl.batch event=batch_committed batch=9"

    def fail(log: logging.Logger) -> None:
        try:
            raise DataError(f"a row\n{forged}\r{forged}")
        except DataError:
            log.exception("%s", f"not written\n{forged}")

    with a_run(pipeline=f"orders\n{forged}", run="r-1"):
        lines = said("plain", fail).splitlines()
        told = parsed(fail)
    assert not [line for line in lines if line.startswith("2026-01-01")]
    assert len([line for line in lines if not line.startswith("    ")]) == 1
    assert told["pipeline"] == f"orders\n{forged}"
    assert told["exception"]["type"] == "DataError"
    assert forged in told["exception"]["message"]
    assert told["exception"]["trace"].startswith("Traceback (most recent call last)")


class _Wordless:
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize(
    ("say", "key", "value"),
    [
        (lambda log: log_event(log, logging.INFO, "odd", it=float("nan")), "it", "nan"),
        (lambda log: log_event(log, logging.INFO, "odd", it=[float("-inf")]), "it", ["-inf"]),
        (lambda log: log_event(log, logging.INFO, "odd", it=b"\x00"), "it", "b'\\x00'"),
        (lambda log: log_event(log, logging.INFO, "odd", it=Path("a")), "it", "a"),
        (lambda log: log_event(log, logging.INFO, "odd", it={1: {"b"}}), "it", {"1": ["b"]}),
        (
            lambda log: log_event(log, logging.INFO, "odd", it=_Wordless()),
            "it",
            "<_Wordless without a text: ValueError>",
        ),
        (lambda log: log_event(log, logging.INFO, "odd", level="of its own"), "level_", "of its own"),
        (lambda log: log.info("%d rows", "no number"), "message", "%d rows ['no number']"),
        (lambda log: log.info(_Wordless()), "message", "<_Wordless without a text: ValueError> []"),
    ],
)
def test_what_json_cannot_say_costs_no_line(say: Callable[[logging.Logger], object], key: str, value: Any) -> None:
    assert parsed(say)[key] == value
    assert said("plain", say)


def test_a_value_without_an_end_costs_no_line() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert parsed(lambda log: log_event(log, logging.INFO, "odd", it=endless))["it"] == "***"
    assert "event=odd it=***" in said("plain", lambda log: log_event(log, logging.INFO, "odd", it=endless))


@pytest.mark.parametrize("form", ["plain", "json"])
def test_the_error_at_the_end(form: LogFormat, capsys: pytest.CaptureFixture[str]) -> None:
    error = ConfigError("It is wrong", found="this", expected="that", cure="change it")
    log = logging.Logger("etl.test")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(form))
    log.addHandler(handler)
    with a_run(pipeline="orders", run="r-1"):
        tell_error(log, error, form, "Look there")
    shown = capsys.readouterr().err
    if form == "plain":
        assert shown == "Error: It is wrong. Found: this. Expected: that. What to do: change it.\nLook there\n"
        return
    line = json.loads(shown)
    assert (line["event"], line["what"], line["cure"], line["exit_code"]) == ("error", "It is wrong", "change it", 2)
    assert (line["pipeline"], line["run"]) == ("orders", "r-1")


# -- ids --------------------------------------------------------------------------------------------------------------


def in_a_thread(work: Callable[[], object]) -> Any:
    """Return what ``work`` returns in a thread that was given no ids."""
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def test_a_run_begins_without_the_ids_of_the_one_before() -> None:
    with ids.run_scope():
        ids.begin(pipeline="a", run="1")
        ids.add(epoch=1, query="q")
        assert dict(ids.current()) == {"pipeline": "a", "run": "1", "epoch": 1, "query": "q"}
        ids.begin(pipeline="b", run="2")
        assert dict(ids.current()) == {"pipeline": "b", "run": "2"}
    assert dict(ids.current()) == {}


def test_a_scope_within_another_leaves_the_ids_to_it() -> None:
    with ids.run_scope():
        with ids.run_scope():
            ids.begin(run="1")
        assert dict(ids.current()) == {"run": "1"}
    assert dict(ids.current()) == {}


def test_a_batchs_ids_are_gone_after_it() -> None:
    with a_run(run="1"):
        with ids.batch_scope(run="1", batch=3):
            assert dict(ids.current()) == {"run": "1", "batch": 3}
        assert dict(ids.current()) == {"run": "1"}


def test_two_runs_at_once_do_not_mix() -> None:
    meet = threading.Barrier(2, timeout=30)
    seen: dict[str, list[dict[str, Any]]] = {}

    def work(name: str) -> None:
        with ids.run_scope():
            ids.begin(pipeline=name, run=name)
            meet.wait()
            ids.add(query=f"query of {name}")
            meet.wait()
            with ids.batch_scope(pipeline=name, run=name, batch=1):
                meet.wait()
                seen[name] = [dict(ids.current())]
                meet.wait()
            seen[name].append(dict(ids.current()))
            meet.wait()

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in ("a", "b"):
        own = {"pipeline": name, "run": name}
        assert seen[name] == [{**own, "batch": 1}, {**own, "query": f"query of {name}"}]


def test_a_thread_without_ids_has_those_of_the_only_run() -> None:
    with a_run(run="1"):
        assert dict(in_a_thread(ids.current)) == {"run": "1"}

        def another() -> tuple[Any, Any]:
            with a_run(run="2"):
                return dict(ids.current()), dict(in_a_thread(ids.current))

        assert in_a_thread(another) == ({"run": "2"}, {})
    assert dict(in_a_thread(ids.current)) == {}


# -- settings ---------------------------------------------------------------------------------------------------------


def test_what_is_given_comes_before_the_environment() -> None:
    assert log_format(None, "--log-format", {}) == "plain"
    assert log_format(None, "--log-format", {"ETL_LOG_FORMAT": "json"}) == "json"
    assert log_format("plain", "--log-format", {"ETL_LOG_FORMAT": "json"}) == "plain"
    assert log_level(None, "--log-level", {}) == "INFO"
    assert log_level("debug", "--log-level", {"ETL_LOG_LEVEL": "ERROR"}) == "DEBUG"


@pytest.mark.parametrize("environ", [{}, {"ETL_LOG_FORMAT": "jsno"}])
def test_a_form_that_there_is_not_is_named(environ: dict[str, str]) -> None:
    given = None if environ else "jsno"
    with pytest.raises(ConfigError, match="jsno") as raised:
        log_format(given, "--log-format", environ)
    assert raised.value.what.startswith("ETL_LOG_FORMAT" if environ else "--log-format")
    assert "plain, json" in raised.value.expected


def test_events_are_logged_as_events() -> None:
    """A line ``event=… name=%s`` by hand would have no fields in JSON: use ``log_event``."""
    root = Path(__file__).resolve().parents[2] / "spark_jobs"
    by_hand = [
        f"{path.relative_to(root)}:{number}"
        for path in sorted(root.rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"""["']event=\w""", line)
    ]
    assert by_hand == []
