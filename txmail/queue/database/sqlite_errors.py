"""Our errors for those of SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from ...exceptions import QueueFull, QueueUnavailable, SchemaError, TxmailError

_RESTORE = "restore it from a backup, or move it and its -wal away for a new, empty queue"
#: Our own words: those of SQLite may name what is in a row.
_PRIMARY = {
    sqlite3.SQLITE_BUSY: "it is locked by others for too long",
    sqlite3.SQLITE_LOCKED: "it is locked by others for too long",
    sqlite3.SQLITE_FULL: "the disk or the queue is full",
    sqlite3.SQLITE_IOERR: "reading or writing failed",
    sqlite3.SQLITE_CORRUPT: f"the file is corrupt; {_RESTORE}",
    sqlite3.SQLITE_NOTADB: f"the file is corrupt, or no database; {_RESTORE}",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened",
    sqlite3.SQLITE_READONLY: "it cannot be written to",
    sqlite3.SQLITE_PERM: "access is denied",
    sqlite3.SQLITE_AUTH: "access is denied",
    sqlite3.SQLITE_CONSTRAINT: "a row does not fit",
    sqlite3.SQLITE_TOOBIG: "a message is too large for it",
    sqlite3.SQLITE_NOMEM: "there is no memory left",
}


def primary(code: int) -> int:
    """The primary result code of an extended one."""
    return code & 0xFF


def is_undecided(error: BaseException) -> bool:
    """Whether `error` says that another connection keeps the database locked."""
    return getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY")


def is_missing_table(error: BaseException) -> bool:
    """Whether `error` says that there is no such table."""
    return str(error).startswith("no such table")  # there is no code for that


def translated(name: str, error: BaseException, is_full: Callable[[int], bool]) -> TxmailError:
    """The error of ours for `error` of the database `name`.

    `is_full` says of an extended result code whether it comes from a full disk.
    """
    code = getattr(error, "sqlite_errorcode", None)
    if not isinstance(error, sqlite3.Error) or code is None:
        return QueueUnavailable(f"{name}: {type(error).__name__}")
    what = f"{name}: {_PRIMARY.get(primary(code), 'it failed')} ({error.sqlite_errorname})"
    if is_full(code):
        return QueueFull(what)
    text = str(error)
    if text.startswith(("no such table", "no such column")) or " has no column" in text:
        return SchemaError(f"{name}: {text}")
    return QueueUnavailable(what)
