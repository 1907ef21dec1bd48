"""One transaction on a connection of ours, and the way to give back everything that it holds.

An exception can come between any two instructions: the handler of a signal raises wherever the main
thread happens to be. So a block notes each thing before it takes it, `abandon` gives back what is
noted, and doing so twice does no harm. Each lock knows its owner. When a thread comes back after
such an exception, it first ends the block that it has left behind.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import Any, Protocol

import sqlalchemy as sa

from ...exceptions import QueueUnavailable, TxmailError
from ...secret import raise_alone
from .backend import StoreChanged
from .connections import Connections, cause_of
from .fork_guard import forks
from .process_state import ProcessState


class Checks(Protocol):
    """The checks before a transaction uses the tables of a queue: `tables.Tables`."""

    def prepare(self, timeout: float) -> None:
        """Before the transaction: see to it that the tables are there."""

    def verify(self, state: ProcessState, connection: sa.Connection) -> None:
        """In the transaction: see to it that they are of a version that we know."""


class Block(AbstractContextManager["sa.Connection"]):
    """A transaction of `Database.write` or `Database.read`: see there. Entered once."""

    def __init__(
        self,
        connections: Connections,
        timeout: float,
        *,
        write: bool,
        durable: bool = True,
        checks: Checks | None = None,
    ) -> None:
        self._connections = connections
        self._timeout = timeout
        #: true if it writes
        self.writes = write
        self._durable = durable
        self._checks = checks
        self._connection: sa.Connection | None = None
        #: the connection of the driver
        self._driver: Any = None
        self._committed = False
        #: the generation of connections when this one was taken
        self._generation = 0
        #: None before the beginning, and once everything is given back
        self._state: ProcessState | None = None

    def __enter__(self) -> sa.Connection:
        try:
            if self._checks is not None:
                self._checks.prepare(self._timeout)
            return self._begun()
        except BaseException as error:
            self._ended(error)
            if (problem := self._connections.translated(error)) is None:
                raise
        raise problem from None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        state = self._state
        try:
            if error is None and self._connection is not None:
                if self.writes:
                    self._connections.backend.check_same(self._connection)
                self._connection.commit()
                self._committed = True
        except BaseException as raised:
            error = raised
            if self._connections.translated(error) is None:
                raise
        finally:
            # Twice: another exception may interrupt the first call.
            try:
                self._ended(error)
            finally:
                self._ended(error)
        problem = None if error is None else self._connections.translated(error)
        if problem is not None:
            del error, traceback  # they have mail or a password in them
            raise_alone(problem)
        if error is None and self.writes and state is not None:
            self._connections.backend.committed(state.engine)

    # -- the beginning

    def _begun(self) -> sa.Connection:
        """Take what is needed and begin the transaction."""
        self._state = state = self._connections.state
        backend = self._connections.backend
        left = self._timeout
        if self.writes and backend.one_writer:
            # This thread would wait in vain for a block that an exception has interrupted.
            state.abandon(writing=True)
        state.enter(self)
        if self.writes and backend.one_writer:
            left = self._wait(state, left)
        if backend.one_writer:
            forks.enter(self)
        deadline = time.monotonic() + left
        while True:
            left = max(deadline - time.monotonic(), 0.0)
            self._connection = connection = backend.connect(state.engine, left)
            self._driver = connection.connection.dbapi_connection
            self._generation = state.generation
            backend.watch(self, connection, left)
            kept = connection.info.get("txmail_used", False)
            connection.info["txmail_used"] = True
            connection.begin()
            try:
                backend.begin(connection, left, write=self.writes, durable=self._durable)
                backend.check_same(connection)
            except self._connections.unexpected as error:
                if kept and backend.differs(connection):
                    self._drop_all(state, connection)
                    continue
                over = time.monotonic() >= deadline or isinstance(error, StoreChanged)
                if over or not kept or not backend.is_lost(connection):
                    raise
                # The server was started again since the last use. Trying is cheaper than asking
                # each time whether the connection is still alive.
                self._close(state, error)
                continue
            if self._checks is not None:
                self._checks.verify(state, connection)
            return connection

    def _drop_all(self, state: ProcessState, connection: sa.Connection) -> None:
        """End this and all other connections, because the store has changed."""
        last = self._connections.backend.changed(connection)
        state.generation += 1
        state.prepared = False
        self._close(state, StoreChanged(""))
        state.engine.dispose()
        last()

    def _wait(self, state: ProcessState, timeout: float) -> float:
        """Wait for the turn to write; the seconds that are left.

        Waiting for SQLite would be polling, with pauses of up to 100 ms; a lock wakes at once.
        """
        started = time.monotonic()
        if not state.turn.take(timeout):
            raise QueueUnavailable(
                f"{self._connections.name}: other threads have been writing for {timeout:g} seconds"
            )
        return max(timeout - (time.monotonic() - started), 0.0)

    # -- the end

    def abandon(self) -> None:
        """Roll back, and give back everything: an exception has interrupted the block."""
        self._ended(KeyboardInterrupt())

    def _ended(self, error: BaseException | None) -> None:
        """Give back what it still has; `error` is the reason if it did not commit."""
        state = self._state
        if state is None:
            return
        backend = self._connections.backend
        if error is not None and isinstance(error, self._connections.foreign):
            backend.give_room(self._driver, cause_of(error))
        if self._connection is not None:
            self._close(state, error)
            if error is not None and isinstance(error, self._connections.foreign):
                backend.failed(state.engine, cause_of(error))
        forks.leave(self)
        if self.writes:
            state.turn.give()
        state.leave(self)
        self._state = None

    def _close(self, state: ProcessState, error: BaseException | None) -> None:
        """Give the connection back, or end it; the transaction ends first."""
        connection, driver, backend = self._connection, self._driver, self._connections.backend
        assert connection is not None
        keep = error is None or isinstance(error, TxmailError)
        if keep and not (error is None and self._committed):
            keep = _is_rolled_back(driver)
        keep = keep and not state.closed and self._generation == state.generation
        if not keep and driver is not None:
            # After a failed commit or an interruption, the state of the driver is not known.
            backend.drop(driver)
        backend.unwatch(self)
        with suppress(Exception):
            if not keep:
                connection.invalidate()
        with suppress(Exception):
            connection.close()
        self._connection = self._driver = None

    def __del__(self) -> None:
        if getattr(self, "_state", None) is not None:
            self.abandon()


def _is_rolled_back(driver: Any) -> bool:
    """Roll back; True if that succeeds."""
    try:
        driver.rollback()
    except Exception:
        return False
    return True
