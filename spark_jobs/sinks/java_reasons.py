"""Why Spark's writers failed, in one line of what Java says."""

from __future__ import annotations

import re

_REASON = re.compile(r"(?:[A-Za-z_$][\w$]*\.)+[A-Z]\w*(?:Error|Exception)\b.*")
_UNWELCOME = re.compile(r"\.(?:RecordTooLarge|RecordBatchTooLarge|TopicAuthorization|InvalidTopic)Exception\b")
_LONGEST = 400


def root_reason(error: Exception) -> str:
    """Return the last cause that the error names, which is the first thing that went wrong; its first line else."""
    lines = [match.group(0) for match in _REASON.finditer(str(error))]
    text = lines[-1] if lines else (str(error).splitlines() or [type(error).__name__])[0]
    return text[:_LONGEST]


def is_unwelcome(reason: str) -> bool:
    """Tell whether that is what a broker says of the records or of the writer, and will say again."""
    return bool(_UNWELCOME.search(reason))
