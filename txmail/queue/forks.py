"""Has forks wait until nobody in this process is in the middle of SQLite.

SQLite knows the locks that it has on a file by process, and a forked child inherits what it knows:
a lock of a thread that is not in the child is never given back there, and the child could not
write any more. Between transactions there are none.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

#: Seconds that a fork waits at most.
PATIENCE = 5.0


class Forks:
    """The forks of this process, and what they wait for."""

    def __init__(self) -> None:
        self.in_child()

    def in_child(self) -> None:
        """There is no thread but this: a fork has been, and this is the child."""
        self._changed = threading.Condition()
        #: by thread: how often it is in the middle
        self._busy: Counter[int] = Counter()
        self._waiting = 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have forks wait for the end of the block."""
        me = threading.get_ident()
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting or self._busy[me], PATIENCE)
            self._busy[me] += 1
        try:
            yield
        finally:
            with self._changed:
                self._busy[me] -= 1
                if not self._busy[me]:
                    del self._busy[me]
                self._changed.notify_all()

    def before(self) -> None:
        """A fork comes; until it is over, nobody gets in."""
        self._changed.acquire()
        self._waiting += 1
        me = threading.get_ident()
        # This thread is in the child, and ends there what it is in the middle of.
        self._changed.wait_for(lambda: not (self._busy.keys() - {me}), PATIENCE)

    def after(self) -> None:
        """It has been, and this is the parent."""
        self._waiting -= 1
        self._changed.notify_all()
        self._changed.release()


forks = Forks()
os.register_at_fork(before=forks.before, after_in_parent=forks.after, after_in_child=forks.in_child)
