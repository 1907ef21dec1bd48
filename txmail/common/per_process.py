"""State that a forked child must not share with its parent.

A child has a copy of everything that its parent had in memory, and none of its parent's threads: a
lock that another thread held stays locked in the child, and a connection there is the parent's.
So an object that lives in both keeps what belongs to one process here, and makes it anew in a
child. `this_process` tells two processes apart.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

from .system import at_fork

T = TypeVar("T")

#: Tells one process from its ancestors: the process id, and the forks between the first and this.
ProcessMark = tuple[int, int]

#: A process id can be used again by a descendant; the number of forks cannot.
_forks = 0


def this_process() -> ProcessMark:
    """A mark of the running process. It differs in each forked child.

    The process id is in it for forks that Python does not notice, such as those of an extension.
    """
    return os.getpid(), _forks


class PerProcess(Generic[T]):
    """One value for each process, made by `make` when the process asks for it first.

    The values of ancestors are kept, and never used: to forget a parent's connection would end it
    for the parent, too.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: dict[ProcessMark, T] = {}

    def get(self) -> T:
        """This process's value."""
        mark = this_process()
        if mark in self._values:
            return self._values[mark]
        # Of two threads that come here at once, one gets the value that the other has made.
        return self._values.setdefault(mark, self._make())

    def known(self) -> T | None:
        """This process's value, or None if it has none yet."""
        return self._values.get(this_process())

    def forget(self) -> T | None:
        """Drop this process's value, so that `get` makes another, and return it."""
        return self._values.pop(this_process(), None)


def _in_child() -> None:
    global _forks
    _forks += 1


at_fork(in_child=_in_child)
