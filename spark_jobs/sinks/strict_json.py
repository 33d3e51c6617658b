"""What PostgreSQL takes as jsonb for certain: less than its own parser does, and much less than Python's."""

from __future__ import annotations

import json
import re

DEEPEST = 100
_MOST_DIGITS = 1_000
# Far below the 256 MB that jsonb holds; what is larger is kept as bytes.
_LARGEST = 64 << 20
_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)


def is_jsonb(text: str, deepest: int = DEEPEST) -> bool:
    """Tell whether a text may be cast to jsonb without looking whether the server likes it.

    No NaN or infinity, no U+0000, no half of a surrogate pair, no huge numbers, no deep nesting.
    """
    if "\\u0000" in text or len(text) > _LARGEST or _is_deeper(text, deepest):
        return False
    try:
        # Members as pairs: of a key that comes twice, PostgreSQL reads both values.
        value = json.loads(
            text, parse_constant=_refused, parse_float=_number, parse_int=_number, object_pairs_hook=list
        )
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False
    return True


def _is_deeper(text: str, deepest: int) -> bool:
    if text.count("[") + text.count("{") <= deepest:
        return False
    depth = 0
    for character in _TEXT.sub("", text):
        depth += (character in "[{") - (character in "]}")
        if depth > deepest:
            return True
    return False


def _refused(text: str) -> None:
    raise ValueError(text)


def _number(text: str) -> int:
    digits, _, exponent = text.lower().partition("e")
    if len(digits) > _MOST_DIGITS or len(exponent) > 4 or abs(int(exponent or 0)) > _MOST_DIGITS:
        raise ValueError(text)
    return 0
