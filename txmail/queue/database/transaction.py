"""One transaction on a connection of ours, and the way to give back everything that it holds.

An exception can come between any two instructions: the handler of a signal raises wherever the main
thread happens to be. So a block notes what it takes before that can be lost, `abandon` gives back
what it finds noted, and doing so twice does no harm. A lock is never taken for longer than its
owner can be asked for, and where a thread comes back after such an exception, it ends the block it
left behind first.
"""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from ...exceptions import QueueUnavailable, TxmailError
from ...secret import raise_alone
from .backend import StoreChanged
from .fork_guard import forks
from .pool import connect
from .postgresql_connect import patience

if TYPE_CHECKING:
    from .database import Database, Process


class Turn:
    """The right to write, among the threads of one process."""

    def __init__(self) -> None:
        # It knows its owner, also if an exception came right behind `acquire`.
        self._lock: Any = threading.RLock()

    def take(self, timeout: float) -> bool:
        """Wait for it, at most `timeout` seconds; True if this thread has it."""
        return bool(self._lock.acquire(timeout=min(max(timeout, 0.0), threading.TIMEOUT_MAX)))

    def give(self) -> None:
        """Give it back, if this thread has it."""
        while self._lock._is_owned():
            self._lock.release()


class Block(AbstractContextManager["sa.Connection"]):
    """What `Database.write` and `Database.read` return: see there. Entered once."""

    def __init__(
        self, database: Database, timeout: float, *, write: bool, durable: bool, prepared: bool
    ) -> None:
        self._database = database
        self._timeout = timeout
        #: whether it is one that writes
        self.writes = write
        self._durable = durable
        self._prepared = prepared
        self._connection: sa.Connection | None = None
        #: the driver's own
        self._driver: Any = None
        self._committed = False
        #: of the process's connections, when this one was taken
        self._generation = 0
        #: until it has given back everything
        self._process: Process | None = None

    def __enter__(self) -> sa.Connection:
        try:
            if self._prepared:
                self._database.prepare(timeout=self._timeout)
            return self._begun()
        except BaseException as error:
            self._ended(error)
            if (problem := self._database.translated(error)) is None:
                raise
        raise problem from None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        process = self._process
        try:
            if error is None and self._connection is not None:
                if self.writes:
                    self._database._backend.check_same(self._connection)
                self._connection.commit()
                self._committed = True
        except BaseException as raised:
            error = raised
            if self._database.translated(error) is None:
                raise
        finally:
            # Once more: the first call may be where an exception comes.
            try:
                self._ended(error)
            finally:
                self._ended(error)
        problem = None if error is None else self._database.translated(error)
        if problem is not None:
            del error, traceback  # they have mail or a password in them
            raise_alone(problem)
        if error is None and self.writes and process is not None:
            self._database._backend.committed(process.engine)

    # -- the beginning

    def _begun(self) -> sa.Connection:
        """Take what is needed and begin the transaction."""
        self._process = process = self._database._process()
        backend = self._database._backend
        left = self._timeout
        if self.writes and backend.one_writer:
            # One that an exception has kept from its end would be waited for in vain.
            process.abandon(writing=True)
        process.enter(self)
        if self.writes and backend.one_writer:
            left = self._wait(process, left)
        if backend.one_writer:
            forks.enter(self)
        deadline = time.monotonic() + left
        while True:
            left = max(deadline - time.monotonic(), 0.0)
            with patience(left):
                self._connection = connect(process.engine, left)
            connection = self._connection
            self._driver = connection.connection.dbapi_connection
            self._generation = process.generation
            backend.watch(self, connection, left)
            kept = connection.info.get("txmail_used", False)
            connection.info["txmail_used"] = True
            connection.begin()
            try:
                backend.begin(connection, left, write=self.writes, durable=self._durable)
                backend.check_same(connection)
            except self._database.unexpected as error:
                if kept and backend.differs(connection):
                    self._drop_all(process, connection)
                    continue
                over = time.monotonic() >= deadline or isinstance(error, StoreChanged)
                if over or not kept or not backend.is_lost(connection):
                    raise
                # The server was started anew since it was used last. So we notice without
                # asking each time whether it is still there.
                self._close(process, error)
                continue
            if self._prepared:
                self._database._look(process, connection)
            return connection

    def _drop_all(self, process: Process, connection: sa.Connection) -> None:
        """End this and all other connections: the store is not the same any more."""
        last = self._database._backend.changed(connection)
        process.generation += 1
        process.prepared = False
        self._close(process, StoreChanged(""))
        process.engine.dispose()
        last()

    def _wait(self, process: Process, timeout: float) -> float:
        """Wait for the turn to write; the seconds that are left.

        SQLite lets those that wait poll, with pauses of up to 100 ms; a lock wakes them.
        """
        started = time.monotonic()
        if not process.turn.take(timeout):
            raise QueueUnavailable(
                f"{self._database.name}: other threads have been writing for {timeout:g} seconds"
            )
        return max(timeout - (time.monotonic() - started), 0.0)

    # -- the end

    def abandon(self) -> None:
        """An exception has kept it from its end: roll it back, and give back what it has."""
        self._ended(KeyboardInterrupt())

    def _ended(self, error: BaseException | None) -> None:
        """Give back what it still has; `error` is why it ends, if it did not commit."""
        process = self._process
        if process is None:
            return
        backend = self._database._backend
        if error is not None and isinstance(error, self._database.foreign):
            backend.give_room(self._driver, self._database.cause(error))
        if self._connection is not None:
            self._close(process, error)
            if error is not None and isinstance(error, self._database.foreign):
                backend.failed(process.engine, self._database.cause(error))
        forks.leave(self)
        if self.writes:
            process.turn.give()
        process.leave(self)
        self._process = None

    def _close(self, process: Process, error: BaseException | None) -> None:
        """Give the connection back, or end it. The transaction is over before anything else."""
        connection, driver, backend = self._connection, self._driver, self._database._backend
        assert connection is not None
        keep = error is None or isinstance(error, TxmailError)
        if keep and not (error is None and self._committed):
            keep = _is_rolled_back(driver)
        keep = keep and not process.closed and self._generation == process.generation
        if not keep and driver is not None:
            # After a commit that failed, or an exception out of the blue, nobody knows what the
            # driver is in the middle of.
            backend.drop(driver)
        backend.unwatch(self)
        with suppress(Exception):
            if not keep:
                connection.invalidate()
        with suppress(Exception):
            connection.close()
        self._connection = self._driver = None

    def __del__(self) -> None:
        if getattr(self, "_process", None) is not None:
            self.abandon()


def _is_rolled_back(driver: Any) -> bool:
    """Roll back; True if that went well."""
    try:
        driver.rollback()
    except Exception:
        return False
    return True
