"""How closely a batch is written: each way costs more than the one before it, and finds more refused rows."""

from __future__ import annotations

from enum import IntEnum


class Care(IntEnum):
    """A batch begins with the way that the batch before it needed, and is done again with a closer one."""

    QUICK = 0
    """The first refused row fails the attempt."""
    ROWS = 1
    """Rows that COPY refuses are found. One that a merge refuses fails the attempt: staged rows have no origin."""
    MERGE = 2
    """Rows that a merge refuses are found as well: each staged row carries its origin."""
    EACH = 3
    """The same, where the merge is known to refuse some: it is not tried as a whole before."""

    def closer(self, *, in_merge: bool) -> Care | None:
        """Return the way that finds what this one failed on; None where there is none.

        :param in_merge: whether it was a merge that refused a row.
        """
        if self >= Care.MERGE:
            return None
        return Care.EACH if in_merge or self is Care.ROWS else Care.ROWS
