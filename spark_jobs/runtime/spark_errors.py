"""Spark's failures in the project's words: what failed, what to do. The full trace stays in the log."""

from __future__ import annotations

import re

from spark_jobs.contracts.errors import (
    DataError,
    EtlError,
    SourceUnreachableError,
    TransientError,
)

_FIRST = 400
_EXCEPTION = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception): \S")


def translate(error: BaseException) -> EtlError:
    """Return the project's error for one that Spark raised; an :class:`EtlError` stays as it is."""
    if isinstance(error, EtlError):
        return error
    text = str(error)
    for pattern, make in _KNOWN:
        if match := re.search(pattern, text):
            return make(match.group(0), text)
    return EtlError(
        "Spark ended the query",
        found=telling_line(error)[:_FIRST],
        cure="See the trace in the log above; nothing of the micro-batch under way was written",
    )


def telling_line(error: BaseException) -> str:
    """Return the line that says what happened: the last exception of a Python trace, else the first line."""
    lines = [line.strip().removeprefix("Caused by: ") for line in str(error).splitlines() if line.strip()]
    raised = [line for line in lines if _EXCEPTION.match(line)]
    return raised[-1] if raised else next(iter(lines), type(error).__name__)


def _data_loss(_match: str, text: str) -> EtlError:
    return SourceLossError(
        "The source no longer has offsets that the pipeline still needs",
        found=_sentence(text, "offset") or _short(text),
        expected="every offset since the last committed micro-batch",
        cure="Find out what was deleted (retention? a new topic of the same name?). To go on without it, knowingly and "
        "recorded as a gap in the ledger, set extract.connectionParams.failOnDataLoss to false",
    )


def _header(match: str, text: str) -> EtlError:
    file = re.search(r"CSV file: (\S+)", text)
    details = re.search(r"Header: [^\n]*\n? ?Schema: [^\n]*\n?(?:Expected: [^\n]*)?", text)
    return DataError(
        f"The header of {file.group(1) if file else 'a CSV file'} is not the schema's",
        found=(details.group(0) if details else match).replace("\n", "; "),
        expected="the schema's columns, in its order",
        cure="Correct the schema or the file (or remove it); nothing of the micro-batch was written",
    )


def _file(_match: str, text: str) -> EtlError:
    return SourceUnreachableError(
        "A source file cannot be read",
        found=_sentence(text, "file") or _short(text),
        expected="every file that was there when the micro-batch was planned, unchanged",
        cure="Restore the file; nothing of the micro-batch was written",
    )


def _broker(_match: str, text: str) -> EtlError:
    return SourceUnreachableError(
        "The Kafka broker does not answer",
        found=_short(text),
        cure="Check the brokers and the network, then run again; nothing of the micro-batch was written",
    )


def _lost_executors(_match: str, text: str) -> EtlError:
    return ExecutorsLostError("Executors were lost", found=_short(text), cure="Run the pipeline again")


def _two_queries(_match: str, text: str) -> EtlError:
    return CheckpointSharedError(
        "Another driver wrote to the pipeline's checkpoint",
        found=_short(text),
        expected="one query at a time; an older driver may have woken up, and is fenced by now",
        cure="Run the pipeline again; nothing of the micro-batch was written",
    )


class SourceLossError(SourceUnreachableError):
    """Offsets are gone for good; the same work will not succeed later."""

    retryable = False


class ExecutorsLostError(TransientError):
    """Spark's own fault; no system outside is to blame."""

    blames_system = False


class CheckpointSharedError(TransientError):
    """Two drivers wrote to one checkpoint; no system outside is to blame."""

    blames_system = False


_KNOWN = (
    (r"CSV header does not conform to the schema", _header),
    (r"Number of column in CSV header is not equal", _header),
    (r"Some data may have been lost|KAFKA_DATA_LOSS|OffsetOutOfRange|Cannot fetch offset", _data_loss),
    (r"FileNotFoundException|FAILED_READ_FILE|does not exist", _file),
    (r"TimeoutException: Timeout (?:of \d+ms )?expired|Failed to construct kafka|NoResolvableBootstrap", _broker),
    (r"CONCURRENT_STREAM_LOG_UPDATE|Multiple streaming (?:jobs|queries) (?:detected|are concurrently)", _two_queries),
    (r"ExecutorLostFailure|Slave lost|worker lost|Executor heartbeat timed out", _lost_executors),
)


def _short(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line[:_FIRST]


def _sentence(text: str, word: str) -> str:
    lines = [line.strip() for line in text.splitlines() if word in line.lower() and not line.strip().startswith("at ")]
    return lines[-1][:_FIRST] if lines else ""
