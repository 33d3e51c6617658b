"""Arrow arrays of Python values, without pyarrow's look for pandas. Executor side.

``pa.array``, ``pa.scalar`` and what calls them (records of lists, compute functions with plain numbers) ask whether a
value is one of pandas', and import it for that where it is installed: 0.3 of the 0.75 seconds that a Python worker of
Spark takes to start, and 40 MB.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from itertools import accumulate

import pyarrow as pa


def texts(values: Sequence[str | None]) -> pa.Array:
    """Return a ``string`` array.

    :raises OverflowError: together they take more than 2 GiB. :raises UnicodeEncodeError: a lone surrogate.
    """
    return _of_bytes(pa.string(), [None if value is None else value.encode() for value in values])


def blobs(values: Sequence[bytes | None]) -> pa.Array:
    """Return a ``binary`` array.

    :raises OverflowError: together they take more than 2 GiB.
    """
    return _of_bytes(pa.binary(), values)


def _of_bytes(kind: pa.DataType, values: Sequence[bytes | None]) -> pa.Array:
    given = [value or b"" for value in values]
    offsets = array("i", accumulate(map(len, given), initial=0))
    buffers = [bits(values), pa.py_buffer(offsets), pa.py_buffer(b"".join(given))]
    return pa.Array.from_buffers(kind, len(values), buffers)


def longs(values: Sequence[int | None]) -> pa.Array:
    """Return an ``int64`` array.

    :raises OverflowError: a value is larger.
    """
    numbers = array("q", [value or 0 for value in values])
    return pa.Array.from_buffers(pa.int64(), len(values), [bits(values), pa.py_buffer(numbers)])


def long(value: int) -> pa.Scalar:
    """Return an ``int64`` scalar."""
    return longs([value])[0]


def tiny(value: int) -> pa.Scalar:
    """Return an ``int8`` scalar."""
    return pa.Array.from_buffers(pa.int8(), 1, [None, pa.py_buffer(array("b", [value]))])[0]


def flags(lines: Collection[int], count: int) -> pa.Array:
    """Return ``count`` values of type ``bool``: true are those of which ``lines``, from 1, has the number."""
    held = bytearray((count + 7) // 8)
    for line in lines:
        held[(line - 1) >> 3] |= 1 << ((line - 1) & 7)
    return pa.Array.from_buffers(pa.bool_(), count, [None, pa.py_buffer(bytes(held))])


def bits(values: Sequence[object]) -> pa.Buffer | None:
    """Return the buffer that says which values are not None; None when all are there."""
    if None not in values:
        return None
    bits = bytearray((len(values) + 7) // 8)
    for number, value in enumerate(values):
        if value is not None:
            bits[number >> 3] |= 1 << (number & 7)
    return pa.py_buffer(bytes(bits))
