"""`IsAmong`: the condition that a row is one of those that a query finds.

A backend whose planner needs other words has its own form, by ``sqlalchemy.ext.compiler.compiles``.
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
