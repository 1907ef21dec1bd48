"""A database of SQLite in memory, with one connection for everybody (`StaticPool`).

The queue borrows the connection of the application: a commit, a rollback or a close of ours reaches
it only in a transaction of ours. This is for tests, and for one thread at a time: nothing keeps
apart what two threads do on one connection at the same moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy as sa

from ...exceptions import QueueUnavailable
from .sqlite import Sqlite

#: Seconds that a transaction of ours waits at most for one of the application.
_PATIENCE = 1.0
_PAUSE = 0.01


class Borrowed:
    """The application's connection, as the driver's connection of an engine of ours."""

    def __init__(self, real: Any) -> None:
        self._real = real
        #: True while a transaction of ours is open
        self.ours = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def create_function(self, *_: Any, **__: Any) -> None:
        """Nothing: what the application's connection has stays as it is."""

    def commit(self) -> None:
        """Commit, if the transaction is ours."""
        if self.ours:
            self._real.commit()
            self.ours = False

    def rollback(self) -> None:
        """Roll back, if the transaction is ours."""
        if self.ours:
            self.ours = False
            self._real.rollback()

    def close(self) -> None:
        """Give it back: closing it would be the end of the database."""
        self.rollback()


class SharedSqlite(Sqlite):
    """SQLite behind an `engine` of the application that has one connection for all."""

    is_shared = True
    is_file = False

    def __init__(self, engine: sa.Engine) -> None:
        super().__init__(engine=engine)
        if engine.url.database in (None, "", ":memory:"):
            self.name = "sqlite:// (in memory)"
        pool: Any = engine.pool
        self._borrowing = sa.create_engine(
            "sqlite://",
            creator=lambda: Borrowed(pool.connection.dbapi_connection),
            poolclass=sa.NullPool,
            hide_parameters=True,
        )

    def engine(self) -> sa.Engine:
        return self._borrowing

    def begin(
        self, connection: sa.Connection, seconds: float, *, write: bool, durable: bool
    ) -> None:
        if not write:
            return  # as in SQLite's own way, a reader sees what is there
        driver: Any = connection.connection.dbapi_connection
        deadline = time.monotonic() + min(seconds, _PATIENCE)
        while driver.in_transaction:
            if time.monotonic() >= deadline:
                raise QueueUnavailable(
                    f"{self.name}: the application has a transaction open on the only connection: "
                    "end it"
                )
            time.sleep(_PAUSE)
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        driver.ours = True

    def listen(
        self, connection: sa.Connection, channel: str, wait: Callable[[int | None], object]
    ) -> Iterator[bool]:
        """No other process has this database."""
        while True:
            yield False
            wait(None)

    def failed(self, engine: sa.Engine, error: BaseException) -> None:
        """Nothing: what is in memory is gone after a crash anyway."""
