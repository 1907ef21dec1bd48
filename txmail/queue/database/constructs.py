"""Parts of statements that kinds of database say in their own words.

The statements of the queue are made of them, and name no kind of database. What stands here is what
most kinds understand. A backend that needs other words registers them for its dialect, in its own
file, with ``sqlalchemy.ext.compiler.compiles``.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class IsAmong(FunctionElement[bool]):
    """True of the rows whose `column` has one of the values that `some` finds."""

    name = "txmail_is_among"
    type = sa.Boolean()
    inherit_cache = True

    def __init__(self, column: sa.ColumnElement[Any], some: sa.Select[Any]) -> None:
        super().__init__(column, some.scalar_subquery())

    def self_group(self, against: Any = None) -> Any:
        """Itself: it needs no ``= 1`` where a database has no booleans."""
        return self


@compiles(IsAmong)
def _in(element: IsAmong, compiler: Any, **options: Any) -> str:
    column, some = element.clauses
    text: str = compiler.process(column.in_(some), **options)
    return text


class InsertIfAbsent(sa.Insert):
    """An INSERT that does nothing where there is a row with its primary key: `insert_if_absent`."""

    inherit_cache = True


def insert_if_absent(table: sa.Table) -> sa.Insert:
    """The statement that inserts rows into `table`, but those whose primary key is there."""
    return InsertIfAbsent(table).inline()


@compiles(InsertIfAbsent)
def _do_nothing(element: InsertIfAbsent, compiler: Any, **options: Any) -> str:
    table: Any = element.table
    names = ", ".join(compiler.preparer.format_column(column) for column in table.primary_key)
    return f"{compiler.visit_insert(element, **options)} ON CONFLICT ({names}) DO NOTHING"
