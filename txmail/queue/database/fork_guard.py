"""Makes forks wait until no other thread is in a transaction of SQLite.

SQLite keeps a list of the locks that a process has on a file, and a forked child inherits the list.
Nobody gives back a lock there whose thread is not in the child, so the child could never write.
Between transactions there are no locks.

There is no lock in this module, because an exception out of the blue could leave it locked. A
thread enters its name before it looks for forks, and a fork enters its name before it looks for
threads.
"""

from __future__ import annotations

import threading
import time

from ...common.system import at_fork

#: Seconds that a fork waits at most for threads, and a thread for forks.
PATIENCE = 5.0
#: Seconds between two looks: forks are rare.
_LOOK = 0.001


class Forks:
    """The threads of this process that fork, and those that are in a transaction."""

    def __init__(self) -> None:
        self.in_child()

    def in_child(self) -> None:
        """This is a child after a fork: it has no thread but this one."""
        #: by the `id` of an object that is in a transaction: its thread
        self._busy: dict[int, int] = {}
        #: the threads that fork
        self._forking: dict[int, bool] = {}

    def enter(self, who: object) -> None:
        """Make forks wait until `leave`."""
        me = threading.get_ident()
        deadline = time.monotonic() + PATIENCE
        inside = me in self._busy.copy().values()
        self._busy[id(who)] = me
        while self._forking and not inside and time.monotonic() < deadline:
            self._busy.pop(id(who), None)
            time.sleep(_LOOK)
            self._busy[id(who)] = me

    def leave(self, who: object) -> None:
        """End `enter`, if `who` has entered."""
        self._busy.pop(id(who), None)

    def before(self) -> None:
        """A fork begins: until it is over, no thread enters."""
        me = threading.get_ident()
        self._forking[me] = True
        deadline = time.monotonic() + PATIENCE
        # The thread that forks is in the child, and ends its transaction there.
        while set(self._busy.copy().values()) - {me} and time.monotonic() < deadline:
            time.sleep(_LOOK)

    def after(self) -> None:
        """The fork is over, and this is the parent."""
        self._forking.pop(threading.get_ident(), None)


forks = Forks()
at_fork(before=forks.before, in_parent=forks.after, in_child=forks.in_child)
