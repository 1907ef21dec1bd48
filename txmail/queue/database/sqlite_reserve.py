"""Reserved room on the disk of an SQLite queue, which is given up when the disk is full.

A worker that drains a queue writes to it: unless it settles what it has sent, that is sent again.
So a file beside the database keeps some room free. When a write fails because the disk is full, and
the write adds no mail, the file gets shorter, and the next try succeeds. No mail is added to the
queue until there is room for the file again.
"""

from __future__ import annotations

import os
from contextlib import suppress

from ...exceptions import QueueFull

#: Octets that are reserved; at most one in so many of the disk.
SIZE, SHARE = 4 * 1024 * 1024, 4
#: The number of parts in which the room is given up.
PARTS = 4
#: Octets that have to be free beside the reserve for mail to be added.
LOW = 64 * 1024
#: Octets of the log from which a checkpoint is made while the room is given up.
SHORT_LOG = 64 * 1024


class Reserve:
    """The file that keeps room beside the database at `path`."""

    def __init__(self, path: str) -> None:
        self._folder = os.path.dirname(path)
        self._name = f"sqlite:///{path}"
        self.path = f"{path}-reserve"
        #: true if this process has given up some of it
        self.given = False

    def keep(self) -> None:
        """Make the file, if it is not there. Raises `QueueFull` if there is no room for it."""
        disk = os.statvfs(self._folder)
        free = disk.f_bavail * disk.f_frsize
        size = _size(disk)
        there = self._is_whole(size)
        if free < (LOW if there else 2 * size):
            raise QueueFull(
                f"{self._name}: the disk is nearly full: the room that is left is for workers, "
                "which empty the queue"
            )
        if there:
            self.given = False
            return
        self._remove()  # a part may be left of it
        try:
            self._make(size)
        except FileExistsError:
            pass  # another process was faster
        except OSError as error:
            self._remove()
            raise QueueFull(f"{self._name}: the disk is full: {error.strerror}") from None
        self.given = False

    def _is_whole(self, size: int) -> bool:
        try:
            return os.lstat(self.path).st_size >= size
        except OSError:
            return False

    def _make(self, size: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o600)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, size)
            else:
                left = size
                while left > 0:
                    # Not zeros: some file systems store none.
                    left -= os.write(descriptor, os.urandom(min(left, 1024 * 1024)))
        finally:
            os.close(descriptor)

    def give(self) -> None:
        """Give up a part of the room, because the disk is full. Never raises."""
        self.given = True
        with suppress(OSError):
            part = -(-_size(os.statvfs(self._folder)) // PARTS)
            left = os.lstat(self.path).st_size - part
            if left > 0:
                os.truncate(self.path, left)
            else:
                os.unlink(self.path)

    def octets_given(self, disk: os.statvfs_result) -> int:
        """How many of the free octets on `disk` were reserved, and are given up."""
        if not self.given:
            return 0
        try:
            return max(_size(disk) - os.lstat(self.path).st_size, 0)
        except OSError:
            return _size(disk)

    def _remove(self) -> None:
        with suppress(OSError):
            os.unlink(self.path)


def _size(disk: os.statvfs_result) -> int:
    return min(SIZE, disk.f_blocks * disk.f_frsize // SHARE)
