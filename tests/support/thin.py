"""The default run, which leaves the sweeps out, takes less time in other ways too.

`one_in` is for loops within a test, and for numbers of examples: they are whole where the sweeps
run. Properties without a number of their own get `EXAMPLES` by default.
"""

from __future__ import annotations

import gc
import os
import tempfile

import pytest
from hypothesis import settings

#: A file system in memory, and how many octets of room the tests want there.
MEMORY, ROOM = "/dev/shm", 2**30
#: How many examples of a property the default run takes.
EXAMPLES = 25

_thin = False


def configure(config: pytest.Config) -> None:
    """Find out whether the sweeps are left out, before any test is imported."""
    global _thin
    _thin = "not sweep" in config.option.markexpr
    if _thin:
        settings.register_profile("thin", settings.default, max_examples=EXAMPLES)
        settings.load_profile("thin")
        _use_memory()


def one_in(every: int) -> int:
    """`every` in the default run, 1 where the sweeps run: the stride of a loop."""
    return every if _thin else 1


def _use_memory() -> None:
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
