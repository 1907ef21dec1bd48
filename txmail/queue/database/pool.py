"""Connections: a pool of our own, and a bound for that of an application."""

from __future__ import annotations

import queue
import threading
from contextlib import suppress
from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import ConnectionPoolEntry, Pool

from ...exceptions import QueueUnavailable

#: Idle connections that are kept.
KEEP = 5


class KeptConnections(Pool):
    """Keeps idle connections, and makes any number of them: no thread waits here.

    The connection that was given back last is taken first. There is no lock that an exception could
    leave locked: a list's `append` and `pop` are one step each.
    """

    #: SQLAlchemy's, for its own words: ours are not about checking connections out
    _sqla_logger_namespace = "sqlalchemy.pool.KeptConnections"

    def __init__(self, creator: Any, **options: Any) -> None:
        super().__init__(creator, **options)
        self._idle: list[ConnectionPoolEntry] = []

    def _do_get(self) -> ConnectionPoolEntry:
        try:
            return self._idle.pop()
        except IndexError:
            return self._create_connection()

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        if len(self._idle) < KEEP:
            self._idle.append(record)
        else:
            record.close()

    def status(self) -> str:
        """For people."""
        return f"{len(self._idle)} idle connection(s)"

    def dispose(self) -> None:
        """End all idle connections."""
        while self._idle:
            self._idle.pop().close()

    def recreate(self) -> KeptConnections:
        """An empty one of the same kind."""
        return type(self)(self._creator, _dispatch=self.dispatch, dialect=self._dialect)


def connect(engine: sa.Engine, seconds: float) -> sa.Connection:
    """A connection of `engine`, within so many `seconds`. Raises `QueueUnavailable`.

    An application's pool has a time-out of its own, which may be longer. Then another thread waits
    for the pool, and gives back a connection that comes too late.
    """
    pool = engine.pool
    if not isinstance(pool, sa.QueuePool) or pool.checkedin() or pool.timeout() <= seconds:
        return engine.connect()
    found: queue.SimpleQueue[sa.Connection | BaseException] = queue.SimpleQueue()
    given_up = threading.Event()

    def ask() -> None:
        try:
            found.put(engine.connect())
        except BaseException as error:
            found.put(error)
        if given_up.is_set():
            _give_back(found)

    threading.Thread(target=ask, name="txmail connect", daemon=True).start()
    got: sa.Connection | BaseException | None = None
    try:
        with suppress(queue.Empty):
            got = found.get(timeout=seconds)
    finally:
        if got is None:
            given_up.set()
            _give_back(found)
    if got is None:
        raise QueueUnavailable(
            f"no connection of the application's pool was free within {seconds:g} seconds"
        )
    if isinstance(got, BaseException):
        raise got
    return got


def _give_back(found: queue.SimpleQueue[sa.Connection | BaseException]) -> None:
    """Give back a connection that has come too late."""
    with suppress(queue.Empty):
        got = found.get_nowait()
        if isinstance(got, sa.Connection):
            got.close()
