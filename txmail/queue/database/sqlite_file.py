"""The SQLite file of a queue: opening it, and noticing when another file is in its place.

A process that has had the file open never makes it again: a person may put back the file, and a
new, empty one would hide that mail is lost. If there is another file, the process uses that.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from ...common.per_process import PerProcess
from ...exceptions import ConfigurationError, QueueUnavailable
from .backend import StoreChanged
from .file_identity import FileIdentity
from .sqlite_path import check_cut, guard, set_log_aside, tighten

log = logging.getLogger("txmail.queue")

#: Seconds between tries to switch a new file to WAL, which SQLite does not wait for.
_PAUSE = 0.01
#: Seconds to wait for that, and for a file that others are replacing.
_PATIENCE = 5.0
_UNSENT = (
    "SELECT count(*) FROM txmail_delivery"
    " WHERE state NOT IN ('sent', 'failed', 'cancelled', 'expired')"
)
#: Finds a table that is neither ours nor SQLite's own.
_OTHERS = (
    "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'txmail\\_%' ESCAPE '\\'"
    " AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' LIMIT 1"
)


class OpenedFile(sqlite3.Connection):
    """A connection that keeps the identity of its file."""

    identity: FileIdentity | None = None
    #: True if it is in WAL mode
    wal = True
    #: True if its transaction adds mail to the queue
    adds = False

    def close(self) -> None:
        """End the transaction, and close. SQLAlchemy calls this, too."""
        roll_back(self)
        super().close()


def roll_back(driver: Any, *_: object) -> None:
    """End the transaction of `driver`, a connection that is about to be closed.

    A connection with a statement that an exception has interrupted lives on after `close`, until
    the statement is collected, and keeps all its locks until then.
    """
    with suppress(sqlite3.Error):
        driver.rollback()


class SqliteFile:
    """The file at `path`. Shared by threads, and copied by forks."""

    def __init__(self, path: str, *, own_checkpoints: bool) -> None:
        """With `own_checkpoints`, we make checkpoints, and SQLite does not."""
        self.path = path
        self.name = f"sqlite:///{path}"
        self._own_checkpoints = own_checkpoints
        self._telling = PerProcess(threading.Lock)
        #: the file that was opened last; None if none was opened
        self._known: FileIdentity | None = None
        #: the last file that was found to be gone
        self._lost: FileIdentity | None = None
        #: how often another file was found in its place
        self.generation = 0

    def permit_new(self) -> None:
        """Permit the file to be made, although this process has had one."""
        self._known = None

    # -- opening

    def connect(self) -> OpenedFile:
        """A new connection; the file is made if this process has never seen one.

        Raises `QueueUnavailable` if the file that was there is gone, and what `guard` raises.
        """
        deadline = time.monotonic() + _PATIENCE
        while True:
            known, there = self._known, FileIdentity.of(self.path)
            if known is not None and not there.usable:
                self._tell(None, known, there)
                raise QueueUnavailable(self._missing())
            if self._lost is not None and there.has_log_of(self._lost):
                set_log_aside(self.path)
            guard(self.path, create=known is None)
            connection = self._open()
            if connection is not None:
                self._adopt(connection.identity)
                return connection
            if time.monotonic() > deadline:
                raise QueueUnavailable(
                    f"{self.name}: other processes keep replacing the file: stop them"
                )
            time.sleep(_PAUSE)

    def _adopt(self, identity: FileIdentity | None) -> None:
        assert identity is not None
        with self._telling.get():
            known, self._known = self._known, identity
            if known is None or known.main in (None, identity.main):
                return
            self.generation += 1
        log.critical("%s: the file was replaced since this process closed it", self.name)

    def _open(self) -> OpenedFile | None:
        """A connection; None if the file was replaced meanwhile."""
        before = FileIdentity.of(self.path)
        connection = sqlite3.connect(
            # Transactions begin where we say so.
            self.path,
            isolation_level=None,
            check_same_thread=False,
            factory=OpenedFile,
        )
        try:
            self._set_up(connection)
            connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()  # opens the log
            identity = FileIdentity.of(self.path)
        except BaseException:
            connection.close()
            raise
        # Another thread may have a removed log open, which SQLite shares with this connection.
        complete = not connection.wal or (identity.log and identity.index)
        if identity.main != before.main or not complete:
            connection.close()
            return None
        connection.identity = identity
        return connection

    def _set_up(self, connection: OpenedFile) -> None:
        # Octets that are not UTF-8 must not make a whole query fail.
        connection.text_factory = _text
        if connection.execute(_OTHERS).fetchone():
            # An application has tables here: its settings stay.
            (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
            connection.wal = mode == "wal"
        else:
            tighten(self.path)
            _switch_to_wal(connection)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA mmap_size = 0")
        if self._own_checkpoints:
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            # SQLite cuts the log when it begins again, so that its size tells how much is in it.
            connection.execute("PRAGMA journal_size_limit = 0")

    def connect_to_look(self) -> OpenedFile:
        """A connection that changes nothing and makes no file. Raises `QueueUnavailable`."""
        check_cut(self.path)
        # With "ro" SQLite leaves a log behind where there was none.
        mode = "ro" if os.path.lexists(f"{self.path}-wal") else "rw"
        connection = sqlite3.connect(
            f"file:{quote(self.path)}?mode={mode}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            factory=OpenedFile,
        )
        connection.text_factory = _text
        connection.execute("PRAGMA query_only = ON")
        return connection

    # -- still the same

    def differs(self, driver: Any) -> bool:
        """Whether there is another file at the path than the connection has open."""
        there = FileIdentity.of(self.path)
        if driver.identity != there:
            return True
        self._known = there  # with the time of its last change
        return False

    def check(self, driver: Any) -> None:
        """Raise `StoreChanged` if there is."""
        if self.differs(driver):
            raise StoreChanged(
                f"{self.name}: the file was deleted or replaced, or its -wal or -shm was: nothing "
                "was written; try again"
            )

    def changed(self, driver: Any) -> sqlite3.Connection | None:
        """Log that the file of a connection was replaced, and save what can be saved.

        Returns a connection that has to stay open until all others are closed, or None. Raises
        `QueueUnavailable` if this has to wait for other processes.
        """
        with suppress(sqlite3.Error):
            driver.rollback()
        known, there = driver.identity, FileIdentity.of(self.path)
        if known.main != there.main or there.cut:
            self._tell(driver, known, there)
            return None
        if {there.log, there.index} <= {known.log, known.index, None}:
            self._save(driver)
            return None
        log.critical(
            "%s: its -wal or -shm was removed while several processes used it; mail may be lost. "
            "Stop all of them, and run PRAGMA integrity_check",
            self.name,
        )
        # As long as it is open, no other connection moves its log into the file.
        return self.connect()

    def _save(self, driver: Any) -> None:
        """Move the log, which has no name any more, into the file.

        No process has opened a new log yet: all that use the file have the same log and index.
        """
        busy = driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if busy:
            raise QueueUnavailable(
                f"{self.name}: its -wal or -shm was removed, and others are in the middle of using "
                "it: try again"
            )
        log.warning(
            "%s: its -wal or -shm was removed while this process used it; what was in it is now in "
            "the file",
            self.name,
        )

    def _tell(
        self, driver: sqlite3.Connection | None, known: FileIdentity, there: FileIdentity
    ) -> None:
        with self._telling.get():
            if known.main is None or self._known is None or self._known.main != known.main:
                return  # it was logged before, perhaps by another thread
            if there.main != known.main:
                self._lost = self._known
            self._known = FileIdentity(None, None, None, False)
            self.generation += 1
        count: Any = "an unknown number of"
        with suppress(sqlite3.Error):
            if driver is not None:
                count = driver.execute(_UNSENT).fetchone()[0]
        log.critical(
            "%s: the file was %s while this process used it; it held %s unsent mails. %s",
            self.name,
            "cut" if there.cut else "deleted" if there.main is None else "replaced",
            count,
            "The file that is there now is used" if there.usable else _WAY_OUT,
        )

    def _missing(self) -> str:
        what = "it is empty" if FileIdentity.of(self.path).cut else "it is gone"
        return f"{self.name}: this process had the file open, and now {what}. {_WAY_OUT}"


_WAY_OUT = (
    "Put it back, with its -wal; or run txmail db init, or start the process again, for a new, "
    "empty queue"
)


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "surrogateescape")


def _switch_to_wal(connection: OpenedFile) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            # A process that makes the file locks it for a moment; SQLite does not wait for it.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE)
            continue
        if mode != "wal":
            raise ConfigurationError(
                "SQLite cannot keep its log (WAL) there: put the file on a disk of this machine",
                field="queue_url",
            )
        return
