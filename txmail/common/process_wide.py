"""What a process has once, however often it is loaded.

A mailer on a persistent object is loaded by each connection of its database, and again after each
change by others. What it holds (connections to a mail server, a queue) is found here by its
settings, so that all of them use one.
"""

from __future__ import annotations

import io
import operator
import pickle
import threading
from collections.abc import Callable, Hashable
from typing import Any, SupportsIndex, TypeVar, cast

from .per_process import PerProcess

T = TypeVar("T")

_PROTOCOL = 3
#: How many are kept that nobody may be using any more, such as those of settings that have changed.
MOST = 64

_known: dict[Hashable, Any] = {}
_lock = PerProcess(threading.Lock)


def is_of_a_database(protocol: SupportsIndex) -> bool:
    """Whether a pickle of this protocol is ZODB's, which has all load the same object.

    ZODB says 3, and nobody else does by default; another pickle is a copy.
    """
    return operator.index(protocol) == _PROTOCOL


def the_one(key: Hashable, make: Callable[[], T]) -> T:
    """What `make` has returned for `key` the first time."""
    with _lock.get():
        if key not in _known:
            _known[key] = make()
            while len(_known) > MOST:
                del _known[next(iter(_known))]
        return cast("T", _known[key])


def the_one_like(thing: T) -> T:
    """The first one that was stored or loaded with the pickle of `thing`; perhaps `thing`.

    Its pickle has its settings, and of a password the source only. One whose password has no
    source is none of them: whoever loads it has no password.
    """
    octets = io.BytesIO()
    pickler = _Pickler(octets)
    try:
        pickler.dump(thing)
    except Exception:  # it says so itself, where that matters
        return thing
    if pickler.loses_something:
        return thing
    return the_one((type(thing), octets.getvalue()), lambda: thing)


class _Pickler(pickle.Pickler):
    """Finds out whether something stays behind."""

    loses_something = False

    def persistent_id(self, thing: Any) -> None:
        """Nothing is stored elsewhere."""
        # Asked of the class first: `Secret` has it, and others may answer anything to any name.
        if hasattr(type(thing), "is_lost_in_pickles") and thing.is_lost_in_pickles:
            self.loses_something = True
