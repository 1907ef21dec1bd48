"""Which version the tables of a database have, and what there is to be done about it."""

from __future__ import annotations

from ..exceptions import SchemaError
from .schema import VERSION


def is_older(found: str) -> bool:
    """Whether tables of version `found` can be brought up to ours."""
    return found.isdigit() and int(found) < int(VERSION)


def check(name: str, found: str | None) -> None:
    """Raise `SchemaError`, which says what to do, if `found` is not the version we need.

    `name` is the database's; `found` is None if there are no tables, and empty if they do not say.
    """
    if found == VERSION:
        return
    if found is None:
        raise SchemaError(f"{name}: there are no tables of a queue: run txmail db init")
    if not found:
        raise SchemaError(
            f"{name}: the table txmail_version has to have one row, with the version of "
            f"the other tables: {VERSION} if they are those of this txmail"
        )
    if is_older(found):
        raise SchemaError(
            f"{name}: its tables have version {found} and this txmail needs {VERSION}: "
            "run txmail db upgrade"
        )
    raise SchemaError(
        f"{name}: its tables have version {found}, and this txmail knows none after "
        f"{VERSION}: update it on this machine"
    )
