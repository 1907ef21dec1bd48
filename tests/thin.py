"""The default run: what is different where the sweeps are left out, besides the sweeps."""

from __future__ import annotations

import gc
import os
import tempfile

import pytest

#: A file system in memory, and how many octets of room the tests want there.
MEMORY, ROOM = "/dev/shm", 2**30


def is_thin(config: pytest.Config) -> bool:
    """True if the sweeps are left out."""
    return "not sweep" in config.option.markexpr


def use_memory() -> None:
    """Have all temporary files in memory, if there is room: to wait for the disk takes long.

    What a test writes is there until the machine fails, which no test can have it do. A user's
    TMPDIR and pytest's --basetemp go before this.
    """
    try:
        found = os.statvfs(MEMORY)
    except OSError:
        return
    runs = not found.f_flag & os.ST_NOEXEC  # tests write programs
    if runs and os.access(MEMORY, os.W_OK) and found.f_bavail * found.f_frsize >= ROOM:
        os.environ.setdefault("TMPDIR", MEMORY)
        tempfile.tempdir = None


def forget_the_collected() -> None:
    """Have the garbage collector leave alone what pytest has collected: it stays to the end."""
    gc.collect()
    gc.freeze()
