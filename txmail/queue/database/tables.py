"""The tables of a queue in one database: whether they are there, and of which version."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from ...exceptions import SchemaError
from ..schema import metadata
from . import version
from .connections import Connections
from .fork_guard import forks
from .process_state import ProcessState
from .transaction import Block
from .version import TableVersion

#: Names in the `info` of a connection that the version was looked at over it.
_LOOKED = "txmail_looked"


class Tables:
    """The tables of a queue, as `connections` lead to them. See `transaction.Checks`."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def prepare(self, timeout: float) -> None:
        """See to it that the tables are there and of this version. Cheap after the first time."""
        state = self._connections.state
        if state.prepared:
            return
        found = self.version(timeout)
        if found is None and self._connections.backend.creates:
            found = self._create(timeout)
        self.check(found)
        state.prepared = True

    def _create(self, timeout: float) -> TableVersion | None:
        with Block(self._connections, timeout, write=True) as connection:
            # Another process may have been faster.
            if self.version_in(connection) is None:
                metadata.create_all(connection)
            return self.version_in(connection)

    def verify(self, state: ProcessState, connection: sa.Connection) -> None:
        """Raise `SchemaError` if the tables are not those that we know: others may upgrade them.

        The version is looked at over each new connection, and after each `look_interval`.
        """
        backend = self._connections.backend
        now = time.monotonic()
        known = state.prepared and connection.info.get(_LOOKED, False)
        if known and now - state.looked < backend.look_interval:
            return
        if not (known and backend.version_rows(connection) == state.version_rows):
            try:
                self.check(self.version_in(connection))
            except SchemaError:
                state.prepared = False  # an administrator may upgrade the tables
                raise
            state.version_rows = backend.version_rows(connection)
        connection.info[_LOOKED] = state.prepared = True
        state.looked = now

    def look_again(self) -> None:
        """See `Database.look_again`."""
        self._connections.state.looked = -math.inf

    def check(self, found: TableVersion | None) -> None:
        """See `Database.check`."""
        connections = self._connections
        version.check(connections.name, found, connections.backend.tables_place)

    def version(self, timeout: float, *, look: bool = False) -> TableVersion | None:
        """See `Database.table_version`."""
        connections = self._connections
        if not connections.backend.exists():
            return None
        reading = self.look if look else self._read
        with reading(timeout) as connection:
            return self.version_in(connection)

    def version_in(self, connection: sa.Connection) -> TableVersion | None:
        """See `Database.version_in`."""
        backend = self._connections.backend
        if not backend.tables(connection):
            return None
        return TableVersion.of(backend.version_rows(connection))

    def _read(self, timeout: float) -> Block:
        return Block(self._connections, timeout, write=False)

    @contextmanager
    def look(self, timeout: float) -> Iterator[sa.Connection]:
        """See `Database.look`."""
        backend = self._connections.backend
        engine = backend.looking()
        if engine is None:
            with self._read(timeout) as connection:
                yield connection
            return
        me = object()
        forks.enter(me)
        try:
            with self._connections.errors(), engine.connect() as connection:
                backend.begin_looking(connection, timeout)
                yield connection
                connection.rollback()
        finally:
            forks.leave(me)
