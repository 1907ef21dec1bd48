"""The file of an SQLite queue and its folder, which nobody else gets at.

They are made with modes that keep others out, whatever the umask, and refused if somebody else
could put his own in their place. SQLite gives what it makes beside the file the mode of the file.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from .. import system
from ..exceptions import ConfigurationError, QueueFull, QueueUnavailable
from ..private_folder import WritableByAll, make_private_folder, sync_folder

#: What is beside a database file, and is as secret.
_BESIDE = ("-wal", "-shm", "-journal")


def guard(path: str) -> None:
    """Make the file and its folders if they are missing; see to it that they are for us alone.

    Raises `ConfigurationError` for what others could have put there, `QueueFull`, and
    `QueueUnavailable` if the disk fails.
    """
    system.require(f"sqlite:///{path}", "O_DIRECTORY", "geteuid")
    try:
        make_private_folder(os.path.realpath(os.path.dirname(path)))
        owner = _make_file(path)
        for suffix in _BESIDE:
            with suppress(FileNotFoundError):
                _tighten(path + suffix, owner, 0)
    except WritableByAll as error:
        raise _refused(error.filename, "anybody may write to this folder") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise QueueFull(f"sqlite:///{path}: {error.strerror}") from None
        if error.errno == errno.EIO:
            raise QueueUnavailable(f"sqlite:///{path}: {error.strerror}") from None
        raise _refused(path, error.strerror or type(error).__name__) from None


def _make_file(path: str) -> int:
    """The id of its owner: us, or the owner of the folder, whom root may serve."""
    try:
        # Exclusive, as O_EXCL is, and without a descriptor: see `_tighten`.
        os.mknod(path, stat.S_IFREG | 0o600)
    except FileExistsError:
        return _tighten(path, os.stat(os.path.dirname(path)).st_uid)
    os.chmod(path, 0o600)  # the umask may have taken some of it
    sync_folder(os.path.dirname(path))
    return os.geteuid()


def _tighten(path: str, *owners: int) -> int:
    """Take the rights of all others; the id of the owner, who has to be we or one of `owners`.

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
    if stat.S_IMODE(status.st_mode) & 0o077:
        os.chmod(path, 0o600)
    return status.st_uid


def _refused(path: str, problem: str) -> ConfigurationError:
    return ConfigurationError(f"{path}: {problem}", field="queue_url")
