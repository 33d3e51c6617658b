"""The two forms of a log line: plain text, and JSON with one object a line. Both carry the ids, neither a secret."""

from __future__ import annotations

import json
import logging
import math
import re
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from spark_jobs.contracts.log_settings import LogFormat
from spark_jobs.contracts.redaction import MASK, mask, masked
from spark_jobs.logs import ids
from spark_jobs.logs.events import Event, rendered

# Characters that end a line, move the cursor, or cannot be written.
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_TRACE_CONTROL: Final = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_OWN: Final = frozenset(("ts", "level", "logger", "event", "message", "exception", "stack"))
_OF_A_RECORD: Final = frozenset((*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"))


def formatter(form: LogFormat, *, traces: bool = True) -> logging.Formatter:
    """Return the formatter of a form.

    :param traces: False leaves an exception's trace out of plain text; JSON always has it.
    """
    return JsonFormatter() if form == "json" else PlainFormatter(traces=traces)


class PlainFormatter(logging.Formatter):
    """``time LEVEL logger message pipeline=… run=… epoch=… query=… batch=…``, a line each.

    Lines of a trace are indented: no text within it, a row's for instance, can pass for a line of its own. An id that
    the event has as a field is not said twice.
    """

    def __init__(self, *, traces: bool = True) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")
        self._traces = traces

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and a trace's lines."""
        said = record.msg.fields if isinstance(record.msg, Event) else {}
        known = ids.current()
        shown = [f"{name}={rendered(known[name])}" for name in ids.NAMES if name in known and name not in said]
        words = (self.formatTime(record), record.levelname, record.name, _plain_text(record), *shown)
        line = _CONTROL.sub(_escaped, " ".join(words))
        traces = (_trace(record), mask(record.stack_info or "")) if self._traces else ()
        lines = [part for trace in traces if trace for part in _TRACE_CONTROL.sub(_escaped, trace).split("\n")]
        return "\n    ".join((line, *lines))


class JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII: ``ts`` (UTC), ``level``, ``logger``, the ids, then the event and its fields.

    Other lines have ``message``, and what the caller gave as ``extra``. A field of an event wins over an id of its
    name; one that is called like a key of the line itself gets a ``_`` behind its name. ``exception`` holds type,
    message and trace.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the object, without a line break."""
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")[:-6] + "Z",
            "level": record.levelname,
            "logger": record.name,
        }
        if isinstance(record.msg, Event):
            line["event"] = record.msg.name
            fields: Mapping[str, Any] = record.msg.fields
        else:
            line["message"] = mask(_message(record))
            fields = {key: value for key, value in vars(record).items() if key not in _OF_A_RECORD}
        line |= {name: value for name, value in ids.current().items() if name in ids.NAMES}
        line |= {f"{key}_" if key in _OWN else key: _masked(value, key) for key, value in fields.items()}
        if trace := _trace(record):
            kind, error, _ = record.exc_info or (None, None, None)
            line["exception"] = {"type": getattr(kind, "__name__", None), "message": masked(error), "trace": trace}
        if record.stack_info:
            line["stack"] = mask(record.stack_info)
        return json.dumps(_json_value(line), allow_nan=False, separators=(", ", ": "))


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - logging's own way out would print the arguments past the mask
        return f"{masked(record.msg)} {masked(record.args)}"


def _plain_text(record: logging.LogRecord) -> str:
    if not isinstance(record.msg, Event):
        return mask(_message(record))
    fields = {key: _masked(value, key) for key, value in record.msg.fields.items()}
    return str(Event(record.msg.name, fields))


def _masked(value: Any, key: str) -> Any:
    try:
        return masked(value, key)
    except RecursionError:
        return MASK


def _trace(record: logging.LogRecord) -> str:
    if record.exc_info and record.exc_info[0] is not None:
        try:
            return mask("".join(traceback.format_exception(*record.exc_info)).rstrip("\n"))
        except Exception as error:  # noqa: BLE001 - an exception whose own text fails must not cost the line
            return f"{record.exc_info[0].__name__}, whose trace cannot be shown: {type(error).__name__}"
    return mask(record.exc_text or "")


def _json_value(value: Any) -> Any:
    """Return what JSON can say of a masked value: NaN and infinities become texts."""
    match value:
        case float() if not math.isfinite(value):
            return str(value)
        case dict():
            return {str(key): _json_value(item) for key, item in value.items()}
        case list():
            return [_json_value(item) for item in value]
        case _:
            return value


def _escaped(found: re.Match[str]) -> str:
    return found.group().encode("unicode_escape", "surrogatepass").decode("ascii")
