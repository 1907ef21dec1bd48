"""For the `env.py` of an application's Alembic: leave our tables alone.

An application whose queue is in its own database has tables that its own metadata does not know.
``alembic revision --autogenerate`` would propose to drop them::

    from txmail.integrations.alembic import include_object

    context.configure(..., include_object=include_object)

``txmail db init`` and ``txmail db upgrade`` make and change these tables.
"""

from __future__ import annotations

from typing import Any

#: What the names of all our tables begin with, a witness's too.
PREFIX = "txmail_"


def include_object(
    object_: Any, name: str | None, type_: str, reflected: bool, compare_to: Any
) -> bool:
    """False for our tables, and for what belongs to them, as they are found in the database.

    Tables that the application's own metadata has are compared as all others are. To use it beside
    a function of your own: ``include_object(*args) and mine(*args)``. See Alembic's
    ``EnvironmentContext.configure``.
    """
    if not reflected or compare_to is not None:
        return True
    table = object_ if type_ == "table" else getattr(object_, "table", None)
    table_name = name if table is None else table.name
    return not str(table_name).startswith(PREFIX)
