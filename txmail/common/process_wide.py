"""Objects that a process shares, although it loads them from a database several times.

Each connection of a database loads the mailer of a persistent object, and loads it again after
another process changes it. All these mailers find their connections to the mail server and their
queue here, by their settings, and so share them.
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
#: The most objects that are kept; those of old settings may be out of use.
MOST = 64

_known: dict[Hashable, Any] = {}
_lock = PerProcess(threading.Lock)


def is_of_a_database(protocol: SupportsIndex) -> bool:
    """Whether a pickle of this protocol is for ZODB, where all loads mean the same object.

    ZODB uses protocol 3, which no other program uses by default. Any other pickle is a copy.
    """
    return operator.index(protocol) == _PROTOCOL


def the_one(key: Hashable, make: Callable[[], T]) -> T:
    """The object for `key`, which the first call makes by `make`."""
    with _lock.get():
        if key not in _known:
            _known[key] = make()
            while len(_known) > MOST:
                del _known[next(iter(_known))]
        return cast("T", _known[key])


def the_one_like(thing: T) -> T:
    """The first object of this process with the same pickle as `thing`; perhaps `thing` itself.

    A pickle contains the settings, but only the source of a password. An object whose password has
    no source is not shared: an object that is loaded from its pickle has no password.
    """
    octets = io.BytesIO()
    pickler = _Pickler(octets)
    try:
        pickler.dump(thing)
    except Exception:  # pickling it where it matters raises again
        return thing
    if pickler.loses_something:
        return thing
    return the_one((type(thing), octets.getvalue()), lambda: thing)


class _Pickler(pickle.Pickler):
    """Finds out whether the pickle leaves something out."""

    loses_something = False

    def persistent_id(self, thing: Any) -> None:
        """Always None: this only looks at each object."""
        # Look at the class first: other objects may have a `__getattr__` that answers any name.
        if hasattr(type(thing), "is_lost_in_pickles") and thing.is_lost_in_pickles:
            self.loses_something = True
