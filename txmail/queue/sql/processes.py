"""The table of processes: whether those that hold something are alive."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import sqlalchemy as sa

from ..process_identity import Fate, Identity, fate
from ..schema import process

_OF_THESE = sa.select(process).where(process.c.id.in_(sa.bindparam("ids", expanding=True)))


def fates(connection: sa.Connection, ids: Collection[str]) -> dict[str, Fate]:
    """The fates of the processes with these ids, by id. A process without a row is left out."""
    if not ids:
        return {}
    rows = connection.execute(_OF_THESE, {"ids": list(ids)})
    return {row.id: fate(identity_of(row), row.id) for row in rows}


def identity_of(row: Any) -> Identity:
    """The identity in a row of the table of processes."""
    return Identity(row.host, row.boot, row.pid_namespace, row.pid, row.started)
