"""Rows that PostgreSQL refuses: told from faults of the server, and turned into dead letters. Executor side."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from spark_jobs.contracts.errors import TooManyDeadLettersError
from spark_jobs.sinks.origins import Origin
from spark_jobs.sinks.plain_arrow import texts
from spark_jobs.sinks.sorting import LetterSpool
from spark_jobs.sinks.strict_json import DEEPEST, is_jsonb

# 22 data exceptions, 23 integrity constraints; what a trigger or a view's check option says about a row.
_DATA_CLASSES = ("22", "23")
_DATA_STATES = ("P0001", "44000")
DATA_CONDITIONS = ("data_exception", "integrity_constraint_violation", "raise_exception", "with_check_option_violation")
"""The same as PL/pgSQL names them; the first two stand for their classes."""

ABOUT_THE_QUESTION = ("22", "2F", "38", "39", "42", "P0")
"""Classes of what a question over rows may end with: data exceptions, names that are not there, nothing to look at for
this role, errors of a function that a check calls."""

# A value of a wrong length breaks the protocol of COPY's binary form; with a line it is that row's fault.
_PROTOCOL = "08P01"
_DOCUMENTS = ("json", "jsonb")
RECORD = {"raw_key", "raw_value", "raw_headers"}
_LINE = re.compile(r", \D*(\d+)(?:, \w+ (.+))?$")
# As many refused rows as may be looked for, one by one, before their share of the rows seen so far counts.
_PATIENCE = 10_000
_NAMES: Mapping[str, str] = {
    "22001": "StringDataRightTruncation",
    "22003": "NumericValueOutOfRange",
    "22007": "InvalidDatetimeFormat",
    "22008": "DatetimeFieldOverflow",
    "22021": "CharacterNotInRepertoire",
    "22P02": "InvalidTextRepresentation",
    "22P03": "InvalidBinaryRepresentation",
    "22P05": "UntranslatableCharacter",
    "23502": "NotNullViolation",
    "23503": "ForeignKeyViolation",
    "23505": "UniqueViolation",
    "23514": "CheckViolation",
    "23P01": "ExclusionViolation",
    "44000": "WithCheckOptionViolation",
    "P0001": "RaiseException",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """What PostgreSQL said about a row.

    :param line: number of the row within its COPY, from 1; None where the server does not tell.
    """

    sqlstate: str
    message: str
    column: str | None = None
    constraint: str | None = None
    line: int | None = None


def refusal(error: BaseException) -> Refusal | None:
    """Return what an ADBC error says about a row; None when the fault is not in the data."""
    state = str(getattr(error, "sqlstate", None) or "")
    said = {_text(name): _text(value) for name, value in getattr(error, "details", None) or ()}
    line, column = _place(said.get("PG_DIAG_CONTEXT", ""))
    if not (is_about_data(state) or (state == _PROTOCOL and line)):
        return None
    message = said.get("PG_DIAG_MESSAGE_PRIMARY") or " ".join(str(error).split())
    detail = said.get("PG_DIAG_MESSAGE_DETAIL")
    column = said.get("PG_DIAG_COLUMN_NAME") or column
    return refusal_of(state, message, detail, column, said.get("PG_DIAG_CONSTRAINT_NAME"), line)


def refusal_of(
    state: str, message: str, detail: str | None, column: str | None, constraint: str | None, line: int | None = None
) -> Refusal:
    """Return the refusal of these diagnostics; what there is not is empty or None."""
    if state.startswith("23") and state not in ("23502", "23514") and detail:
        # Which key it was. Other details repeat the row, which the letter holds anyway.
        message = f"{message}: {detail}"
    return Refusal(state, message, column or None, constraint or None, line)


def is_about_data(sqlstate: str) -> bool:
    """Tell whether a SQLSTATE blames a row. Only for statements that write the target's rows."""
    return sqlstate[:2] in _DATA_CLASSES or sqlstate in _DATA_STATES


def _place(context: str) -> tuple[int | None, str | None]:
    # A trigger's own context may stand before; the words are in the server's language, the form is not.
    for text in reversed(context.splitlines()):
        if text.startswith("COPY ") and (match := _LINE.search(text)):
            column = (match[2] or "").split(":")[0].strip()
            return int(match[1]), column or None
    return None, None


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


@dataclass(frozen=True, slots=True)
class Limit:
    """How many dead letters a batch may have before the fault is not in its rows.

    :param fraction: of the rows, from 0 to 1. :param least: smaller batches are never stopped.
    """

    fraction: float = 1.0
    least: int = 0

    def check(self, dead: int, rows: int, words: str) -> None:
        """Raise :class:`TooManyDeadLettersError` when ``dead`` of ``rows`` are too many."""
        if dead and rows >= self.least and dead > self.fraction * rows:
            raise TooManyDeadLettersError(
                "Too many rows of the micro-batch are bad: the fault is not in the rows",
                found=f"{dead} of {rows} rows {words}",
                expected=f"at most {self.fraction:.0%}, which is load.maxDeadLetterFraction",
                cure="Nothing was written. Compare the target's types and constraints (or the source's format) with "
                "the pipeline; if the rows really are that bad, raise load.maxDeadLetterFraction",
            )


@dataclass(slots=True)
class RefusedRows:
    """The rows of one part that PostgreSQL refused: counted, limited and spooled as dead letters."""

    letters: LetterSpool
    limit: Limit
    count: int = 0
    last: str = ""
    _seen: int = field(default=0)

    def see(self, rows: int) -> None:
        """Count rows that were given to the server."""
        self._seen += rows

    def add(
        self,
        said: Refusal,
        row: str,
        origin: Origin,
        event_time: str | None = None,
        *,
        keep_raw: bool = False,
    ) -> None:
        """Keep a row, as JSON, with what the server said about it; see :func:`envelope`."""
        self.count += 1
        self.last = f"{said.sqlstate} {said.message}"
        self.letters.add(texts([envelope(said, row, origin, event_time, keep_raw=keep_raw)]))
        if self.count >= _PATIENCE:
            self.limit.check(self.count, self._seen, f"so far were refused by the target, the last with {self.last}")


def envelope(said: Refusal, row: str, origin: Origin, event_time: str | None = None, *, keep_raw: bool = False) -> str:
    """Return the dead letter of a refused row, as :func:`spark_jobs.rows.letter` makes them.

    :param row: JSON; bytes that are no UTF-8 stand in it as surrogates.
    :param keep_raw: whether the row's bytes are kept even if jsonb can hold it.
    """
    exact = row.encode(errors="surrogateescape")
    shown = _without_nul(exact.decode(errors="replace"))
    coordinates = _without_nul(origin.get("source", "{}"))
    # A letter that cannot be stored would stop the pipeline for ever: the bytes can be.
    stored = is_jsonb(shown, DEEPEST + 1)
    # What jsonb cannot hold is kept byte for byte beside it, unless the record is there, of which it was made.
    own = base64.b64encode(exact).decode() if keep_raw or shown != row or not stored else None
    recorded = RECORD & origin.keys()
    return json.dumps(
        {
            "stage": "write",
            "error_class": _NAMES.get(said.sqlstate)
            or ("DataException" if said.sqlstate.startswith("22") else "IntegrityConstraintViolation"),
            "sqlstate": said.sqlstate,
            "message": said.message,
            "column_name": said.column,
            "constraint_name": said.constraint,
            "raw_key": origin.get("raw_key"),
            "raw_value": origin.get("raw_value") if recorded else own,
            "raw_headers": origin.get("raw_headers"),
            "parsed_row": shown if stored else None,
            "source": coordinates if is_jsonb(coordinates) else "{}",
            "event_time": event_time,
        }
    )


def _without_nul(text: str) -> str:
    return text.replace("\\u0000", "\\ufffd")


def row_text(row: Mapping[str, Any], bases: Mapping[str, str]) -> str:
    """Return a row of Arrow values as a JSON object, without losing digits.

    :param bases: PostgreSQL type of each column, without its modifier: some values travel in a form of their own.
    """
    members = (f"{json.dumps(name)}: {_json(value, bases.get(name, ''))}" for name, value in row.items())
    return "{" + ", ".join(members) + "}"


# What ``json.dumps`` with arguments makes anew for each value.
_exact = json.JSONEncoder(ensure_ascii=False).encode


def _json(value: Any, base: str) -> str:
    if isinstance(value, Decimal):
        return f"{value:f}" if value.is_finite() else json.dumps(str(value))
    if isinstance(value, bytes):
        return _bytes(value, base)
    if isinstance(value, list):
        return "[" + ", ".join(_json(item, "") for item in value) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(str(value))
    if value is None or isinstance(value, bool | int | float | str):
        return _exact(value)
    return json.dumps(value.isoformat() if isinstance(value, datetime | date | time) else str(value))


def _bytes(value: bytes, base: str) -> str:
    if base in _DOCUMENTS:
        text = _document(value)
        return text if is_jsonb(text) else _text_of(text)
    if base == "uuid":
        # What is no UUID travels between bytes that make its length wrong; see types.to_sent.
        return json.dumps(str(UUID(bytes=value))) if len(value) == 16 else _text_of(_escaped(value[16:-1]))
    return json.dumps(base64.b64encode(value).decode()) if base == "bytea" else _text_of(_escaped(value))


def has_odd_document(row: Mapping[str, Any], bases: Mapping[str, str]) -> bool:
    """Tell whether a JSON column of the row holds what jsonb cannot: it stands in the row's JSON as a text."""
    documents = (value for name, value in row.items() if bases.get(name) in _DOCUMENTS and isinstance(value, bytes))
    return any(not is_jsonb(_document(value)) for value in documents)


def _document(value: bytes) -> str:
    return _escaped(value.removeprefix(b"\x01"))


def _escaped(value: bytes) -> str:
    # Bytes that are no UTF-8 come out again in the envelope, as they were.
    return value.decode(errors="surrogateescape")


def _text_of(text: str) -> str:
    return _exact(text)
