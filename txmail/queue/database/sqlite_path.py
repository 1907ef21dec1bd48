"""The file of an SQLite queue and its folder, kept from other users.

Both are made with modes that keep other users out, whatever the umask. They are refused if another
user could put a file of their own in their place. SQLite makes the files beside the database with
the mode of the database.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
import time
from contextlib import suppress

from ...common import system
from ...common.per_process import PerProcess
from ...common.private_folder import WritableByAll, make_private_folder, sync_folder
from ...exceptions import ConfigurationError, QueueFull, QueueUnavailable
from .file_identity import SMALLEST

log = logging.getLogger("txmail.queue")

#: The problem with a folder that any user may write to, and what to do.
_OPEN_TO_ALL = (
    "anybody may write to this folder, and put another file in the place of the queue: take that "
    "right away (chmod o-w), or let only owners delete files (chmod +t); a Kubernetes emptyDir "
    "needs an initContainer that does it"
)
#: Held while a file is made.
_making = PerProcess(threading.Lock)
#: The files beside a database file, which are as secret.
_BESIDE = ("-wal", "-shm", "-journal")


def guard(path: str, *, create: bool = True) -> None:
    """Make the file and its folders if they are missing, and check that they are ours alone.

    Without `create`, nothing is made. `tighten` takes away the rights of other users, once the file
    has been looked into. Raises `ConfigurationError` for a file that another user could have put
    there, `QueueFull`, and `QueueUnavailable` if the disk fails or the file was cut to nothing.
    """
    if problem := system.lacks("O_DIRECTORY", "geteuid"):
        raise ConfigurationError(problem, field=f"sqlite:///{path}")
    try:
        if create:
            make_private_folder(os.path.realpath(os.path.dirname(path)))
        owner = _make_file(path) if create else _check(path, _owner(os.path.dirname(path)))
        check_cut(path)
        for suffix in _BESIDE:
            with suppress(FileNotFoundError):
                _check(path + suffix, owner, 0)
    except WritableByAll as error:
        raise _refused(error.filename, _OPEN_TO_ALL) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise QueueFull(f"sqlite:///{path}: {error.strerror}") from None
        if error.errno == errno.EIO:
            raise QueueUnavailable(f"sqlite:///{path}: {error.strerror}") from None
        raise _refused(path, error.strerror or type(error).__name__) from None


def _make_file(path: str) -> int:
    """Make the file; the id of its owner: ours, or that of the owner of the folder."""
    if not os.path.lexists(path):
        _keep_log(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    # No thread may open it before our descriptor is closed: see `_check`.
    with _making.get():
        try:
            descriptor = os.open(path, flags, 0o600)
        except FileExistsError:
            return _check(path, _owner(os.path.dirname(path)))
        try:
            os.fchmod(descriptor, 0o600)  # the umask may have removed some rights
        finally:
            os.close(descriptor)
    sync_folder(os.path.dirname(path))
    return os.geteuid()


def _owner(path: str) -> int:
    return os.stat(path).st_uid


def _keep_log(path: str) -> None:
    """Move the log of a file that is gone out of the way: SQLite would delete it."""
    with suppress(FileNotFoundError):
        _check(f"{path}-wal", _owner(os.path.dirname(path)), 0)
        if os.lstat(f"{path}-wal").st_size:
            set_log_aside(path)


def set_log_aside(path: str) -> None:
    """Rename the log: SQLite would write it into another file than it belongs to."""
    kept = f"{path}-wal.orphan-{time.time_ns()}"
    with suppress(FileNotFoundError):
        os.rename(f"{path}-wal", kept)
        log.error("sqlite:///%s: the log of the file that is gone is kept as %s", path, kept)
    with suppress(FileNotFoundError):
        os.unlink(f"{path}-shm")


def check_cut(path: str) -> None:
    """Raise `QueueUnavailable` if the file is empty and its log is not, which SQLite deletes."""
    with suppress(FileNotFoundError):
        if os.lstat(path).st_size < SMALLEST and os.lstat(f"{path}-wal").st_size:
            raise QueueUnavailable(
                f"sqlite:///{path}: the file is empty, and its -wal is not: it was cut to nothing. "
                "Restore it from a backup, or move both away for a new, empty queue"
            )


def tighten(path: str) -> None:
    """Take away the rights of other users to the file and to those beside it.

    Raises OSError.
    """
    for name in (path, *(path + suffix for suffix in _BESIDE)):
        with suppress(FileNotFoundError):
            if stat.S_IMODE(os.lstat(name).st_mode) & 0o077:
                os.chmod(name, 0o600)


def check_place(path: str) -> None:
    """Raise `ConfigurationError` if `guard` would refuse a new file at `path`."""
    here = os.path.realpath(os.path.dirname(path))
    while not os.path.lexists(here):
        here = os.path.dirname(here)
    mode = os.stat(here).st_mode
    if not stat.S_ISDIR(mode):
        raise _refused(here, "this is a file and not a folder: name another path in mail.queue_url")
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise _refused(here, _OPEN_TO_ALL)


def _check(path: str, *owners: int) -> int:
    """The id of the owner of a file, which has to be ours or one of `owners`.

    It never opens the file: closing it would end the locks that SQLite has on it in other threads
    (POSIX fcntl). Only we and the owner could replace the file after this.
    """
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        raise _refused(path, "this is a symbolic link: name the file itself in mail.queue_url")
    if not stat.S_ISREG(status.st_mode):
        raise _refused(path, "this is not a regular file: name another path in mail.queue_url")
    if status.st_uid not in (os.geteuid(), *owners):
        raise _refused(
            path, "this file belongs to another user: run txmail as its owner, or name another path"
        )
    return status.st_uid


def _refused(path: str, problem: str) -> ConfigurationError:
    return ConfigurationError(f"{path}: {problem}", field="queue_url")
