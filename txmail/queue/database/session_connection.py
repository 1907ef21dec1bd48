"""The connection of an application's session, while rows of ours are in its transaction.

SQLAlchemy is not made for exceptions that a signal's handler raises in the middle of it. Observed:

- A COMMIT that is interrupted before it is sent: the connection goes back to the pool with the
  transaction open. Others cannot write to SQLite meanwhile, and the next user of that connection
  commits our rows with its own.
- A session that is interrupted in the middle of a step refuses to be closed
  (`IllegalStateChangeError`), or forgets its connection: the transaction stays open.
- A pool that is interrupted at the end of a ``with`` statement keeps its lock, and no other thread
  gets a connection any more.

So `watch_returns` looks at each connection that goes back to the pool, and
`SessionConnection.release` ends a connection that has not gone back.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

if TYPE_CHECKING:
    from .database import Database

#: The key of the present `SessionConnection` in the `info` of a connection.
_KEY = "txmail_session"


class SessionConnection:
    """The state of `connection`, which a session uses in its present transaction.

    `owned` if the session has taken it from the pool, and gives it back.
    """

    def __init__(self, connection: sa.Connection, database: Database, owned: bool) -> None:
        self.connection = connection
        self._database = database
        self._pooled = connection.connection
        self._driver: Any = self._pooled.dbapi_connection
        self._info = connection.info
        #: true once COMMIT may have been sent
        self._committing = False
        if owned:
            self._info[_KEY] = self
        sa.event.listen(connection, "commit", self._commits)

    def _commits(self, connection: sa.Connection) -> None:
        self._committing = True

    def may_be_committed(self, error: BaseException | None) -> bool:
        """Whether the transaction may have committed, although it has failed with `error`."""
        return self._committing and not _is_answer(error)

    def release(self) -> None:
        """The transaction is over: end it if the connection was not given back. Never raises."""
        _unlock(self.connection.engine.pool)
        if self._info.get(_KEY) is not self:
            return
        del self._info[_KEY]
        if self._database.is_shared:  # closing it would be the end of the database
            with suppress(Exception):
                self._driver.rollback()
            return
        self._database.drop(self._driver)
        with suppress(Exception):
            self.connection.invalidate()
        with suppress(Exception):
            self.connection.close()
        with suppress(Exception):
            if self._pooled.is_valid:  # the other has forgotten it
                self._pooled.invalidate()


def watch_returns(engine: sa.Engine, database: Database) -> None:
    """Have no connection go back to the pool of `engine` with its transaction open."""

    def reset(driver: Any, record: Any, state: Any) -> None:
        # Otherwise the pool rolls back itself; it closes a connection where that fails.
        if state.transaction_was_reset and database.is_open(driver):
            driver.rollback()

    def returned(driver: Any, record: Any) -> None:
        record.info.pop(_KEY, None)

    sa.event.listen(engine, "reset", reset)
    sa.event.listen(engine, "checkin", returned)


def _unlock(pool: Any) -> None:
    """Release the lock of `pool` if this thread, which is not in it now, has it."""
    lock = getattr(getattr(pool, "_pool", None), "mutex", None)
    is_owned = getattr(lock, "_is_owned", None)
    while lock is not None and is_owned is not None and is_owned():
        lock.release()


def _is_answer(error: BaseException | None) -> bool:
    """True if `error` is what the database says to COMMIT: then it has not committed."""
    return isinstance(error, sa.exc.DBAPIError) and not error.connection_invalidated
