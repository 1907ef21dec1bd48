"""For the `env.py` of an application's Alembic: leave txmail's tables alone.

An application whose queue is in its own database has tables that its own metadata does not know.
``alembic revision --autogenerate`` would propose to drop them::

    from txmail.integrations.alembic import include_object

    context.configure(..., include_object=include_object)

``txmail db init`` and ``txmail db upgrade`` make and change these tables.
"""

from __future__ import annotations

from typing import Any

#: The names of all tables of txmail begin with this, also that of a witness.
PREFIX = "txmail_"


def include_object(
    object_: Any, name: str | None, type_: str, reflected: bool, compare_to: Any
) -> bool:
    """False for txmail's tables in the database, and for their indexes and columns.

    Alembic still compares tables of the application's own metadata. To combine it with a function
    of your own, write ``include_object(*args) and mine(*args)``. See Alembic's
    ``EnvironmentContext.configure``.
    """
    if not reflected or compare_to is not None:
        return True
    table = object_ if type_ == "table" else getattr(object_, "table", None)
    table_name = name if table is None else table.name
    return not str(table_name).startswith(PREFIX)
