"""Inserting many rows, by the driver itself or by SQLAlchemy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import sqlalchemy as sa

#: Rows that are given to the driver at once.
_CHUNK = 5000


def insert_statement(
    connection: sa.Connection, table: sa.Table, columns: Sequence[str], mark: str
) -> str:
    """The INSERT of one row, with `mark` for each value."""
    quote = connection.dialect.identifier_preparer
    names = ", ".join(quote.quote(name) for name in columns)
    marks = ", ".join([mark] * len(columns))
    return f"INSERT INTO {quote.format_table(table)} ({names}) VALUES ({marks})"  # noqa: S608


def insert_any(
    connection: sa.Connection,
    table: sa.Table,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
) -> None:
    """Insert `rows` with any driver: slower, for SQLAlchemy looks at each value."""
    values = [dict(zip(columns, row, strict=True)) for row in rows]
    connection.execute(table.insert(), values)


def chunks(rows: Iterable[Sequence[Any]]) -> Iterable[list[Sequence[Any]]]:
    """`rows` in lists of some thousands."""
    remaining = iter(rows)
    while some := list(islice(remaining, _CHUNK)):
        yield some


def parameters(rows: list[Sequence[Any]]) -> Any:
    """`rows` as SQLAlchemy takes them for a driver: one is no list."""
    return rows if len(rows) > 1 else tuple(rows[0])
