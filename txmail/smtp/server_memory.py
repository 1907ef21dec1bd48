"""Remembers what the connections of one transport have learned about its server."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from ..reply import Reply
from .shared_evidence import SharedEvidence

#: Seconds for which a reply counts as it is after a fresh connection got it, too.
REPEATED_FOR = 600.0
#: Replies remembered at once: a server may say something else each time.
_MOST = 64
#: Characters of a reply that are compared.
_LENGTH = 200

#: Addresses and numbers: they differ between replies that say the same.
_VARIABLE = re.compile(r"<[^<>]*>|[0-9]+", re.ASCII)


class ServerMemory:
    """Shared by all threads and connections of one transport. A copied transport begins anew."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: whose fault refusals are, as commits have heard them
        self.evidence = SharedEvidence(clock)
        #: True once the server has refused RSET: an open mail transaction ends with its connection
        self.no_reset = False
        #: replies that a connection got after it had carried messages
        self._asked: dict[tuple[int, str], float] = {}
        #: replies that a fresh connection got, too, and until when they count as they are
        self._same: dict[tuple[int, str], float] = {}

    def may_reconnect_for(self, reply: Reply) -> bool:
        """True if a fresh connection may get another answer than `reply`. The caller asks one."""
        key = _key(reply)
        if self._clock() < self._same.get(key, 0.0):
            return False
        _put(self._asked, key, self._clock())
        return True

    def note_answer(self, reply: Reply) -> None:
        """Note that a fresh connection got `reply`: then the age of a connection is no reason."""
        key = _key(reply)
        if key in self._asked:
            _put(self._same, key, self._clock() + REPEATED_FOR)


def _key(reply: Reply) -> tuple[int, str]:
    return reply.code, _VARIABLE.sub("#", reply.text[:_LENGTH])


def _put(found: dict[tuple[int, str], float], key: tuple[int, str], value: float) -> None:
    found.pop(key, None)
    found[key] = value
    for old in list(found)[:-_MOST]:
        found.pop(old, None)
