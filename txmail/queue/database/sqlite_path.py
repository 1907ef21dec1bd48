"""The file of an SQLite queue and its folder, which nobody else gets at.

They are made with modes that keep others out, whatever the umask, and refused if somebody else
could put his own in their place. SQLite gives what it makes beside the file the mode of the file.
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

#: What is wrong with a folder, and what to do.
_OPEN_TO_ALL = (
    "anybody may write to this folder, and put another file in the place of the queue: take that "
    "right away (chmod o-w), or let only owners delete files (chmod +t); a Kubernetes emptyDir "
    "needs an initContainer that does it"
)
#: Held while a file is made.
_making = PerProcess(threading.Lock)
#: What is beside a database file, and is as secret.
_BESIDE = ("-wal", "-shm", "-journal")


def guard(path: str, *, create: bool = True) -> None:
    """Make the file and its folders if they are missing; see to it that they are for us alone.

    Without `create`, they are not made. `tighten` takes the rights of others, once the file has
    been looked into. Raises `ConfigurationError` for what others could have put there, `QueueFull`,
    and `QueueUnavailable` if the disk fails or the file was cut to nothing.
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
    """The id of its owner: us, or the owner of the folder, whom root may serve."""
    if not os.path.lexists(path):
        _keep_log(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    # Nobody in this process opens it before our descriptor is closed: see `_check`.
    with _making.get():
        try:
            descriptor = os.open(path, flags, 0o600)
        except FileExistsError:
            return _check(path, _owner(os.path.dirname(path)))
        try:
            os.fchmod(descriptor, 0o600)  # the umask may have taken some of it
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
    """Keep the log by another name: SQLite would write what is in it into a file it is not of."""
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
    """Take the rights of all others to a file with only our mail in it, and what is beside it.

    Raises OSError.
    """
    for name in (path, *(path + suffix for suffix in _BESIDE)):
        with suppress(FileNotFoundError):
            if stat.S_IMODE(os.lstat(name).st_mode) & 0o077:
                os.chmod(name, 0o600)


def check_place(path: str) -> None:
    """Raise `ConfigurationError` if a file that is not there yet would be refused there."""
    here = os.path.realpath(os.path.dirname(path))
    while not os.path.lexists(here):
        here = os.path.dirname(here)
    mode = os.stat(here).st_mode
    if not stat.S_ISDIR(mode):
        raise _refused(here, "it is no folder")
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise _refused(here, _OPEN_TO_ALL)


def _check(path: str, *owners: int) -> int:
    """The id of the owner of a file, who has to be we or one of `owners`.

    Never opens the file: closing it would end the locks that SQLite has on it in this process, in
    another thread (POSIX fcntl). Between looking and changing only he and we could exchange it.
    """
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        raise _refused(path, "it is a symbolic link")
    if not stat.S_ISREG(status.st_mode):
        raise _refused(path, "it is no file")
    if status.st_uid not in (os.geteuid(), *owners):
        raise _refused(path, "it belongs to somebody else")
    return status.st_uid


def _refused(path: str, problem: str) -> ConfigurationError:
    return ConfigurationError(f"{path}: {problem}", field="queue_url")
