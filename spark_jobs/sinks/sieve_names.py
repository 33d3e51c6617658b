"""The names of what a sieve is made of. Driver side."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from psycopg import sql

# With a part's and an attempt's number behind it, no name of the table's or its index's is cut off.
_DIGITS = 16


@dataclass(frozen=True, slots=True)
class SieveNames:
    """What a sieve is made of.

    :param schema: unquoted, as is ``mark``. :param mark: stands in each name where every part has its own; else empty.
    """

    schema: str
    mark: str

    @classmethod
    def of(cls, lasting: str | None) -> SieveNames:
        """Return new names in this schema, or the temporary ones."""
        return cls(lasting, uuid.uuid4().hex[:_DIGITS]) if lasting else cls("pg_temp", "")

    def name(self, what: str) -> str:
        """Return one name, unquoted."""
        return f"etl_{what}_{self.mark}" if self.mark else f"etl_{what}"

    def _quoted(self, what: str) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name(what))

    @property
    def table(self) -> sql.Identifier:
        """Where the rows wait."""
        return self._quoted("sieve")

    @property
    def probe(self) -> sql.Identifier:
        """What is asked about them before."""
        return self._quoted("probe")

    @property
    def function(self) -> sql.Identifier:
        """What brings them on."""
        return self._quoted("sift")

    @property
    def place(self) -> sql.Identifier:
        """The sequence that tells how far it has come."""
        return self._quoted("place")
