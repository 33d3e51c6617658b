"""Rules between the settings of the sink."""

from __future__ import annotations

from datetime import timedelta

from spark_jobs.contracts.config.durations import parse_duration
from spark_jobs.contracts.config.enumerations import WriteMode, WriteStrategy
from spark_jobs.contracts.config.keys import Document
from spark_jobs.contracts.config.load import CONNECTION_PARAMS, LONGEST_IDENTIFIER, PLANNED_SINKS, SINKS, Load
from spark_jobs.contracts.config.parts import Parts
from spark_jobs.contracts.config.problems import Location, any_of, nearest, quoted

_PARAMS: Location = ("load", "connectionParams")
_LONGEST_TAKEOVER = timedelta(days=1)
_RESERVED = {
    "application_name": "it carries the fence against older runs",
    "options": "a pooler in transaction mode cannot keep session settings",
    "dsn": "give host, port and database one by one",
    "url": "give host, port and database one by one",
}


def check(parts: Parts, document: Document) -> None:
    """Note what does not fit together in ``load``."""
    load = parts.load
    if load is None:
        return
    if load.sink_type not in (*SINKS, *PLANNED_SINKS):
        hint = nearest(load.sink_type, (*SINKS, *PLANNED_SINKS))
        document.note(("load", "sinkType"), f"the unknown sink {quoted(load.sink_type)}", any_of(SINKS), hint)
    fraction = load.max_dead_letter_fraction
    if fraction is not None and fraction > 1:
        document.note(("load", "maxDeadLetterFraction"), f"{fraction!r}", "a share from 0 to 1, for example 0.1")
    if parse_duration(load.takeover_timeout) > _LONGEST_TAKEOVER:
        document.note(("load", "takeoverTimeout"), quoted(load.takeover_timeout), "at most 1 day")
    if load.write_strategy is WriteStrategy.TWO_PHASE and load.write_mode is not WriteMode.APPEND:
        found = f"two_phase with writeMode {load.write_mode}"
        hint = "parts that become visible one after the other cannot merge or replace rows; use auto, single or staged"
        document.note(("load", "writeStrategy"), found, "writeMode append", hint)
    _check_batch_column(load, document)
    if load.sink_type in SINKS:
        _check_connection(load, document)


def _check_batch_column(load: Load, document: Document) -> None:
    column = load.batch_column
    if column is None:
        return
    if load.write_mode is not WriteMode.APPEND:
        found = f"batchColumn with writeMode {load.write_mode}"
        expected = "writeMode append: a row that is merged or replaced is no longer of one micro-batch"
        document.note(("load", "batchColumn"), found, expected)
    if len(column.encode(errors="replace")) > LONGEST_IDENTIFIER or column.startswith("_"):
        expected = "a column's name of at most 63 bytes that does not begin with an underscore"
        document.note(("load", "batchColumn"), quoted(column), expected)


def _check_connection(load: Load, document: Document) -> None:
    params = load.connection_params
    if not load.credential_id and not {"host", "hostaddr"} & params.keys():
        hint = 'for example "credentialId": "warehouse", with an Airflow connection of that name'
        document.note(("load", "credentialId"), "nothing", "the connection of the database", hint)
    for name, value in params.items():
        if name not in CONNECTION_PARAMS:
            hint = _RESERVED.get(name) or nearest(name, CONNECTION_PARAMS)
            document.note((*_PARAMS, name), f"the unknown setting {quoted(name)}", any_of(CONNECTION_PARAMS), hint)
        elif not value.strip():
            document.note((*_PARAMS, name), "an empty text", "a value, or leave it out")
    port = params.get("port", "1").strip()
    if port and not (port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536):
        document.note((*_PARAMS, "port"), quoted(port), "a port: a whole number from 1 to 65535")
    if "database" in params and "dbname" in params and params["database"] != params["dbname"]:
        document.note((*_PARAMS, "dbname"), "database and dbname differ", "one of them: they mean the same")
