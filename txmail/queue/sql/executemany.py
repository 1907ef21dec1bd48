"""One statement for many rows, in the words of the driver.

SQLAlchemy takes longer to look through the parameters of a row than SQLite to write it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa

_Key = tuple[sa.Update, type[sa.Dialect], str]
#: By statement, and by the driver that it is for: its text, and what makes parameters of a row.
#: The statements are those of this package, which are made once.
_known: dict[_Key, tuple[str, Callable[[dict[str, Any]], Any]]] = {}


def execute_many(
    connection: sa.Connection, statement: sa.Update, rows: Sequence[dict[str, Any]]
) -> int:
    """Run `statement` with the parameters of each of `rows`; how many rows it has changed.

    Values are given to the driver as they are: numbers, texts and None. Raises what
    `sqlalchemy.Connection.execute` raises.
    """
    if not rows:
        return 0
    dialect = connection.dialect
    key = statement, type(dialect), dialect.driver
    known = _known.get(key)
    if known is None:
        known = _known[key] = _prepared(statement.compile(dialect=dialect))
    text, parameters = known
    return connection.exec_driver_sql(text, [parameters(row) for row in rows]).rowcount


def _prepared(compiled: Any) -> tuple[str, Callable[[dict[str, Any]], Any]]:
    constants = dict(compiled.params)
    if not compiled.positional:
        return compiled.string, lambda row: {**constants, **row}
    names = tuple(compiled.positiontup)

    def in_order(row: dict[str, Any]) -> tuple[Any, ...]:
        values = {**constants, **row}
        return tuple([values[name] for name in names])

    return compiled.string, in_order
