"""Has forks wait until nobody in this process is in the middle of SQLite.

SQLite knows the locks that it has on a file by process, and a forked child inherits what it knows:
a lock of a thread that is not in the child is never given back there, and the child could not
write any more. Between transactions there are none.

There is no lock here, which an exception out of the blue could leave behind. Who comes in says so
before it looks for a fork, and a fork says so before it looks for who is in.
"""

from __future__ import annotations

import threading
import time

from ...common.system import at_fork

#: Seconds that a fork waits at most, and that it is waited for.
PATIENCE = 5.0
#: Seconds between two looks: forks are rare.
_LOOK = 0.001


class Forks:
    """The forks of this process, and what they wait for."""

    def __init__(self) -> None:
        self.in_child()

    def in_child(self) -> None:
        """There is no thread but this: a fork has been, and this is the child."""
        #: who is in the middle, by `id`, and in which thread
        self._busy: dict[int, int] = {}
        #: the threads that fork
        self._forking: dict[int, bool] = {}

    def enter(self, who: object) -> None:
        """Have forks wait until `leave`."""
        me = threading.get_ident()
        deadline = time.monotonic() + PATIENCE
        inside = me in self._busy.copy().values()
        self._busy[id(who)] = me
        while self._forking and not inside and time.monotonic() < deadline:
            self._busy.pop(id(who), None)
            time.sleep(_LOOK)
            self._busy[id(who)] = me

    def leave(self, who: object) -> None:
        """The end of that, if it was the beginning of anything."""
        self._busy.pop(id(who), None)

    def before(self) -> None:
        """A fork comes; until it is over, nobody gets in."""
        me = threading.get_ident()
        self._forking[me] = True
        deadline = time.monotonic() + PATIENCE
        # This thread is in the child, and ends there what it is in the middle of.
        while set(self._busy.copy().values()) - {me} and time.monotonic() < deadline:
            time.sleep(_LOOK)

    def after(self) -> None:
        """It has been, and this is the parent."""
        self._forking.pop(threading.get_ident(), None)


forks = Forks()
at_fork(before=forks.before, in_parent=forks.after, in_child=forks.in_child)
