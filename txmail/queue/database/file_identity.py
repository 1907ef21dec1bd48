"""Which file an SQLite database is, so that a running process notices when it is another one.

SQLite goes on with a file that was deleted or replaced, and with a log (``-wal``) that was removed:
what is committed there is gone when the process ends. So each connection knows the files that it
opened, by device and inode, and they are compared with those at its path in every transaction.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

#: Octets that the smallest database has: one page of the smallest size.
SMALLEST = 512

_Inode = tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """A database file and what is beside it: device and inode; None for what is not there."""

    main: _Inode
    #: the ``-wal``, and the ``-shm``: there while anybody has a database in WAL mode open
    log: _Inode
    index: _Inode
    #: True if the file is there and has less in it than any database
    cut: bool
    #: size and time of the last change of the main file: inodes are used again
    stamp: tuple[int, int] = field(default=(0, 0), compare=False)

    @classmethod
    def of(cls, path: str) -> FileIdentity:
        """What is at `path` now."""
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
        """Whether this is another file than `lost`, beside the log of that."""
        same = self.main == lost.main and self.stamp == lost.stamp
        return not same and self.log is not None and self.log == lost.log

    @property
    def usable(self) -> bool:
        """Whether there is a file with something in it."""
        return self.main is not None and not self.cut


def _inode(path: str) -> _Inode:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
