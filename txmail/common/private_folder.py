"""Folders that nobody else may read or exchange (CWE-732): those of a queue and of kept mail."""

from __future__ import annotations

import errno
import os
import stat


class WritableByAll(PermissionError):
    """Anybody could put something else in the place of what we write; `filename` is where."""

    def __init__(self, folder: str) -> None:
        super().__init__(errno.EACCES, "anybody may write to this folder", folder)


def make_private_folder(folder: str) -> None:
    """Make `folder` and its parents if they are missing, mode 0700 whatever the umask.

    `folder` is an absolute path of which no part but the last is a link. Its names outlive a power
    failure. Raises `WritableByAll` if it, or a folder above it, belongs to everybody (a folder with
    the sticky bit, such as /tmp, does not), and other OSErrors.
    """
    here, missing = folder, []
    while not os.path.lexists(here):
        missing.append(here)
        here = os.path.dirname(here)
    for name in reversed(missing):
        try:
            os.mkdir(name, 0o700)
        except FileExistsError:  # by another process, which does the same
            continue
        os.chmod(name, 0o700)  # the umask may have taken some of it
        sync_folder(os.path.dirname(name))
    _check(folder)


def _check(folder: str) -> None:
    here, above = folder, os.path.dirname(folder)
    while True:
        mode = os.stat(here).st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise WritableByAll(here)
        if here == above:
            return
        here, above = above, os.path.dirname(above)


def sync_folder(folder: str) -> None:
    """Have a new name in `folder` outlive a power failure. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
