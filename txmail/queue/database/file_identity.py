"""The identity of an SQLite file, by which a process notices that another file is in its place.

SQLite goes on with a file that was deleted or replaced, and with a log (``-wal``) that was removed:
its commits are gone when the process ends. So each connection keeps device and inode of the files
that it has opened, and each transaction compares them with the files at the path.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

#: Octets that the smallest database has: one page of the smallest size.
SMALLEST = 512

_Inode = tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """Device and inode of a database file and the files beside it; None where a file is missing."""

    main: _Inode
    #: the ``-wal`` and the ``-shm``: they exist while a process has a database in WAL mode open
    log: _Inode
    index: _Inode
    #: true if the file is smaller than any database
    cut: bool
    #: size and time of the last change of the main file, because inodes are used again
    stamp: tuple[int, int] = field(default=(0, 0), compare=False)

    @classmethod
    def of(cls, path: str) -> FileIdentity:
        """The identity of the files at `path` now."""
        try:
            status = os.lstat(path)
        except OSError:
            return cls(None, _inode(path + "-wal"), _inode(path + "-shm"), False)
        return cls(
            (status.st_dev, status.st_ino),
            _inode(path + "-wal"),
            _inode(path + "-shm"),
            status.st_size < SMALLEST,
            (status.st_size, status.st_mtime_ns),
        )

    def has_log_of(self, lost: FileIdentity) -> bool:
        """Whether this is another file than `lost`, beside the log of `lost`."""
        same = self.main == lost.main and self.stamp == lost.stamp
        return not same and self.log is not None and self.log == lost.log

    @property
    def usable(self) -> bool:
        """Whether there is a file that is not empty."""
        return self.main is not None and not self.cut


def _inode(path: str) -> _Inode:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
