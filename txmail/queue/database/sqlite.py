"""The backend for SQLite: one file, one writer, and a log that needs checkpoints.

``synchronous=FULL`` has a commit wait for the disk; NORMAL would not. Without mmap, a disk that
fails is an error and not a signal.

In SQLite before 3.44.6, 3.50.7 and 3.51.3 a commit that resets the log (WAL) while another
connection is moving it into the file can leave the file corrupt. There, checkpoints run only while
we hold the right to write. ``wal_checkpoint(TRUNCATE)`` does not do that by itself: if there is a
writer it goes on as PASSIVE beside it (``sqlite3WalCheckpoint`` in its wal.c).
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any
from urllib.parse import unquote

import sqlalchemy as sa

from ...exceptions import (
    ConfigurationError,
    TxmailError,
)
from . import sqlite_errors
from .backend import AUTOCOMMIT, LOOK, VERSION_ROWS, Advice
from .fork_guard import forks
from .inserts import chunks, insert_any, insert_statement, parameters
from .pool import KeptConnections, connect
from .questions import Questions
from .sqlite_file import SqliteFile, roll_back
from .sqlite_path import check_place
from .sqlite_reserve import SHORT_LOG, Reserve

#: What the URL of a queue may begin with.
SCHEMES = ("sqlite", "sqlite+pysqlite")

_RESERVE = sa.text("UPDATE sqlite_sequence SET seq = seq + :count WHERE name = :name RETURNING seq")
_RESERVE_FIRST = sa.text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :count)")
#: The first version with RETURNING.
_OLDEST = (3, 35, 0)
#: Octets of the log from which we make a checkpoint, where SQLite must not do it.
_LONG_LOG = 4 * 1024 * 1024
#: Free octets below which an I/O error counts as a full disk.
_SOME_ROOM = 256 * 1024


def wal_reset_is_fixed(version: tuple[int, int, int] = sqlite3.sqlite_version_info) -> bool:
    """Whether SQLite of this version has the correction of the log's reset."""
    if version[:2] == (3, 44):
        return version >= (3, 44, 6)
    if version[:2] == (3, 50):
        return version >= (3, 50, 7)
    return version >= (3, 51, 3)


def path_of(url: sa.URL, field: str) -> str:
    """The absolute path that `url` names now. Raises `ConfigurationError`."""
    if sqlite3.sqlite_version_info < _OLDEST:
        raise ConfigurationError(
            f"SQLite 3.35 or later is needed, and Python has {sqlite3.sqlite_version}", field=field
        )
    path = unquote(url.database or "")
    if url.query or url.host or path.startswith("file:"):
        raise ConfigurationError(
            "the URL has a host or options: write it as sqlite:////path/of/a/file", field=field
        )
    if path in ("", ":memory:"):
        raise ConfigurationError("a queue in memory would be lost: name a file", field=field)
    if "\0" in path or path.endswith("/"):
        raise ConfigurationError(
            "the URL names a folder: write it as sqlite:////path/of/a/file", field=field
        )
    return os.path.abspath(path)


class SqliteQuestions(Questions):
    """See `Questions`. SQLite waits as its connection was told to."""

    def is_missing(self, error: BaseException) -> bool:
        return sqlite_errors.is_missing_table(error)

    def undecided(self, error: BaseException) -> str:
        if sqlite_errors.is_undecided(error):
            return "still undecided: the database is locked, perhaps by the transaction itself"
        return ""


class Sqlite:
    """SQLite: the file at `path`, or the `engine` of the application."""

    errors: tuple[type[BaseException], ...] = (sqlite3.Error,)
    one_writer = True
    is_in_process = True
    is_file = True
    is_shared = False
    clock_is_local = True
    notifies = False
    tables_place = ""

    def __init__(self, path: str | None = None, *, engine: sa.Engine | None = None) -> None:
        self._path = path
        self._engine = engine
        if engine is not None and not sa.event.contains(engine, "close", roll_back):
            sa.event.listen(engine, "close", roll_back)
        self._own_checkpoints = path is not None and not wal_reset_is_fixed()
        self._file = (
            None if path is None else SqliteFile(path, own_checkpoints=self._own_checkpoints)
        )
        self._reserve = None if path is None else Reserve(path)
        self.name = f"sqlite:///{path if engine is None else engine.url.database}"

    @property
    def creates(self) -> bool:
        return self._path is not None

    def exists(self) -> bool:
        return self._path is None or os.path.lexists(self._path)

    # -- connections

    def engine(self) -> sa.Engine:
        if self._engine is not None:
            return self._engine
        assert self._file is not None
        return sa.create_engine(
            "sqlite://",
            pool=KeptConnections(self._file.connect),
            hide_parameters=True,
        )

    def looking(self) -> sa.Engine | None:
        if self._file is None:
            return None
        return sa.create_engine(
            "sqlite://",
            creator=self._file.connect_to_look,
            poolclass=sa.NullPool,
            hide_parameters=True,
        )

    def begin_looking(self, connection: sa.Connection, seconds: float) -> None:
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {int(seconds * 1000)}")
        connection.exec_driver_sql("BEGIN")

    def connect(self, engine: sa.Engine, seconds: float) -> sa.Connection:
        return connect(engine, seconds)

    def check_place(self) -> None:
        if self._path is not None:
            check_place(self._path)

    # -- transactions

    def begin(
        self, connection: sa.Connection, seconds: float, *, write: bool, durable: bool
    ) -> None:
        driver: Any = connection.connection.dbapi_connection
        if self._path is None:
            # The engine of an application may begin by itself.
            if getattr(driver, "autocommit", None) is True:
                raise ConfigurationError(AUTOCOMMIT, field="engine")
            if write and not driver.in_transaction:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            return
        driver.execute(f"PRAGMA busy_timeout = {max(int(seconds * 1000), 1)}")
        if write:
            wanted = "FULL" if durable else "NORMAL"
            if connection.info.get("synchronous", "FULL") != wanted:
                driver.execute(f"PRAGMA synchronous = {wanted}")
                connection.info["synchronous"] = wanted
        driver.adds = False
        driver.execute("BEGIN IMMEDIATE" if write else "BEGIN")

    def watch(self, key: object, connection: sa.Connection, seconds: float) -> None:
        """Nothing: SQLite waits no longer than it is told to."""

    def unwatch(self, key: object) -> None:
        """Nothing."""

    def drop(self, driver: Any) -> None:
        with suppress(Exception):
            roll_back(driver)
        with suppress(Exception):
            driver.close()

    def is_open(self, driver: Any) -> bool:
        return bool(getattr(driver, "in_transaction", False))

    def differs(self, connection: sa.Connection) -> bool:
        driver: Any = connection.connection.dbapi_connection
        return self._file is not None and self._file.differs(driver)

    def check_same(self, connection: sa.Connection) -> None:
        if self._file is not None:
            self._file.check(connection.connection.dbapi_connection)

    def changed(self, connection: sa.Connection) -> Callable[[], object]:
        assert self._file is not None
        last = self._file.changed(connection.connection.dbapi_connection)
        return (lambda: None) if last is None else last.close

    def store(self) -> object:
        return None if self._file is None else self._file.generation

    def permit_new(self) -> None:
        if self._file is not None:
            self._file.permit_new()

    def is_lost(self, connection: sa.Connection) -> bool:
        return False

    def committed(self, engine: sa.Engine) -> None:
        given = self._reserve is not None and self._reserve.given
        if not self._own_checkpoints and not given:
            return
        # The mail is safe. A problem here comes again where it can be reported.
        with suppress(OSError, sqlite3.Error, sa.exc.DBAPIError, TxmailError):
            longest = SHORT_LOG if given else _LONG_LOG
            if os.stat(f"{self._path}-wal").st_size > longest:
                self.checkpoint(engine, 0.0)

    def keep_room(self, connection: sa.Connection) -> None:
        if self._reserve is not None:
            driver: Any = connection.connection.dbapi_connection
            driver.adds = True
            self._reserve.keep()

    def give_room(self, driver: Any, error: BaseException) -> None:
        adds = getattr(driver, "adds", False)
        code = getattr(error, "sqlite_errorcode", None)
        if self._reserve is None or adds or code is None:
            return
        if self._is_full(code):
            self._reserve.give()

    def failed(self, engine: sa.Engine, error: BaseException) -> None:
        """Take back a commit that is in the log, and perhaps not on the disk.

        It was reported as failed. No process sees it while a process has the file open. But should
        all of them be killed now, the next one would find it in the log, complete (observed). The
        next commit overwrites it, so this makes one at once.
        """
        code = getattr(error, "sqlite_errorcode", 0)
        if self._path is None or sqlite_errors.primary(code) != sqlite3.SQLITE_IOERR:
            return
        with (
            suppress(sqlite3.Error, sa.exc.DBAPIError, TxmailError),
            engine.connect() as connection,
        ):
            driver: Any = connection.connection.dbapi_connection
            if self.differs(connection):
                return
            (number,) = driver.execute("PRAGMA user_version").fetchone()
            driver.execute(f"PRAGMA user_version = {number ^ 1}")

    def checkpoint(self, engine: sa.Engine, seconds: float) -> bool:
        if self._path is None:
            return False
        me = object()
        forks.enter(me)
        try:
            with engine.connect() as holder, engine.connect() as mover:
                holding: Any = holder.connection.dbapi_connection
                moving: Any = mover.connection.dbapi_connection
                if self.differs(holder) or self.differs(mover):
                    return False
                try:
                    return _checkpoint(holding, moving, seconds)
                finally:
                    holding.rollback()
        finally:
            forks.leave(me)

    # -- what is asked of it

    def clock(self, connection: sa.Connection) -> float:
        return time.time()

    def tables(self, connection: sa.Connection) -> bool:
        found = connection.exec_driver_sql(
            "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'txmail_version'"
        )
        return found.first() is not None

    @property
    def look_interval(self) -> float:
        return LOOK if self._path is None else 0.0

    def version_rows(self, connection: sa.Connection) -> Sequence[tuple[Any, ...]]:
        if self._path is None:
            return [tuple(row) for row in connection.exec_driver_sql(VERSION_ROWS)]
        driver: Any = connection.connection.dbapi_connection
        rows: list[tuple[Any, ...]] = driver.execute(VERSION_ROWS).fetchall()
        return rows

    def lock_schema(self, connection: sa.Connection) -> None:
        """Nothing: one process writes at a time."""

    def lock_room(self, connection: sa.Connection) -> None:
        """Nothing: one process writes at a time."""

    def reserve(self, connection: sa.Connection, table: sa.Table, count: int) -> Sequence[int]:
        # An UPDATE that finds nothing takes the right to write, too.
        values = {"count": count, "name": table.name}
        last = connection.execute(_RESERVE, values).scalar()
        if last is None:
            connection.execute(_RESERVE_FIRST, values)
            last = count
        return range(last - count + 1, last + 1)

    def insert(
        self,
        connection: sa.Connection,
        table: sa.Table,
        columns: Sequence[str],
        rows: Iterable[Sequence[Any]],
    ) -> None:
        statement = insert_statement(connection, table, columns, "?")
        for some in chunks(rows):
            if connection.dialect.driver == "pysqlite":
                connection.exec_driver_sql(statement, parameters(some))
            else:
                insert_any(connection, table, columns, some)

    def notify(self, connection: sa.Connection, channel: str) -> None:
        """Nothing: others look at ``PRAGMA data_version``."""

    def listen(
        self, connection: sa.Connection, channel: str, wait: Callable[[int | None], object]
    ) -> Iterator[bool]:
        driver: Any = connection.connection.dbapi_connection
        version = None
        while True:
            self.check_same(connection)
            (found,) = driver.execute("PRAGMA data_version").fetchone()
            yield version is not None and found != version
            version = found
            wait(None)

    def advice(self, read: Callable[[], AbstractContextManager[sa.Connection]]) -> Sequence[Advice]:
        version = sqlite3.sqlite_version
        if wal_reset_is_fixed():
            return [Advice(f"SQLite {version} has the correction of the log's reset", fine=True)]
        return [
            Advice(
                f"SQLite {version} can corrupt a file when its log is reset during a checkpoint; "
                "txmail keeps that from happening in its own file, if no other program opens it. "
                "3.44.6, 3.50.7 and 3.51.3 have the correction"
            )
        ]

    def translated(self, error: BaseException) -> TxmailError:
        return sqlite_errors.translated(self.name, error, self._is_full)

    def _is_full(self, code: int) -> bool:
        """Whether an error comes from a full disk: SQLite calls only some of these errors so."""
        if sqlite_errors.primary(code) == sqlite3.SQLITE_FULL:
            return True
        if self._path is None or sqlite_errors.primary(code) not in (
            sqlite3.SQLITE_IOERR,
            sqlite3.SQLITE_CANTOPEN,
        ):
            return False
        try:
            disk = os.statvfs(os.path.dirname(self._path))
        except OSError:
            return False
        free = disk.f_bavail * disk.f_frsize
        if self._reserve is not None:
            free -= self._reserve.octets_given(disk)  # they were not free a moment ago
        return free < _SOME_ROOM or (disk.f_files > 0 and disk.f_favail == 0)


def _checkpoint(holding: Any, moving: Any, seconds: float) -> bool:
    """Move the log into the file, while `holding` keeps others from writing."""
    holding.execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")
    try:
        holding.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if sqlite_errors.primary(error.sqlite_errorcode) == sqlite3.SQLITE_BUSY:
            return False
        raise
    busy, logged, moved = moving.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    return not busy and logged == moved
