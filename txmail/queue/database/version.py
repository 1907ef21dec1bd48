"""Which version the tables of a database have, and what there is to be done about it.

A revision of the tables names the oldest version that may go on with them (`min_version`), which is
stored beside the version: an upgrade stops only the processes that are older than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...common.ascii_text import is_digits
from ...exceptions import SchemaError
from ..schema import VERSION


@dataclass(frozen=True, slots=True)
class TableVersion:
    """What the table txmail_version says."""

    #: empty if it does not have exactly one row
    number: str
    #: the oldest version whose processes may use the tables; empty: only `number`
    minimum: str = ""

    @classmethod
    def of(cls, rows: Sequence[tuple[Any, ...]]) -> TableVersion:
        """From the rows of the table, which older versions have without its second column."""
        if len(rows) != 1:
            return cls("")
        number, minimum = (*rows[0], None)[:2]
        return cls(str(number), str(minimum or ""))

    @property
    def permits_ours(self) -> bool:
        """Whether this txmail may use the tables."""
        if self.number == VERSION:
            return True
        return _is_above(self.number, VERSION) and (
            self.minimum == VERSION or _is_above(VERSION, self.minimum)
        )


def _is_above(one: str, other: str) -> bool:
    return is_digits(one) and is_digits(other) and int(one) > int(other)


def is_older(found: str) -> bool:
    """Whether tables of version `found` can be brought up to ours."""
    return _is_above(VERSION, found)


def check(name: str, found: TableVersion | None, where: str = "") -> None:
    """Raise `SchemaError`, which says what to do, if we may not use tables of version `found`.

    `name` is the database's; `found` is None if there are no tables `where` they are looked for.
    """
    if found is None:
        raise SchemaError(f"{name}: there are no tables of a queue{where}: run txmail db init")
    if found.permits_ours:
        return
    if not found.number:
        raise SchemaError(
            f"{name}: the table txmail_version has to have one row, with the version of "
            f"the other tables: {VERSION} if they are those of this txmail"
        )
    if is_older(found.number):
        raise SchemaError(
            f"{name}: its tables have version {found.number} and this txmail needs {VERSION}: "
            "run txmail db upgrade"
        )
    raise SchemaError(
        f"{name}: its tables have version {found.number}, and this txmail knows none after "
        f"{VERSION}: update it on this machine, and start this process again",
        outdated=True,
    )
