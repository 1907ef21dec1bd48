"""Folders for a queue or for mail that other users can neither read nor replace (CWE-732)."""

from __future__ import annotations

import errno
import os
import stat


class WritableByAll(PermissionError):
    """Any user can replace files in a folder; `filename` names the folder."""

    def __init__(self, folder: str) -> None:
        super().__init__(errno.EACCES, "anybody may write to this folder", folder)


def make_private_folder(folder: str) -> None:
    """Make `folder` and its missing parents, with mode 0700 under any umask.

    `folder` is an absolute path; only its last part may be a link. The new names survive a power
    failure. Raises `WritableByAll` if all users may write to it or to a folder above it, unless
    that folder has the sticky bit, as /tmp does. Raises other OSErrors.
    """
    here, missing = folder, []
    while not os.path.lexists(here):
        missing.append(here)
        here = os.path.dirname(here)
    for name in reversed(missing):
        try:
            os.mkdir(name, 0o700)
        except FileExistsError:  # another process has just made it
            continue
        os.chmod(name, 0o700)  # the umask may have removed some bits
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
    """Make new names in `folder` survive a power failure. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
