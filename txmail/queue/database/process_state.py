"""The state that one process has of a database, and the right to write among its threads."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import sqlalchemy as sa


class OpenBlock(Protocol):
    """A transaction that is under way: a `transaction.Block`."""

    #: whether it is one that writes
    writes: bool

    def abandon(self) -> None:
        """Roll back, and give back everything that it holds."""


class Turn:
    """The right to write, among the threads of one process."""

    def __init__(self) -> None:
        # An RLock knows its owner, also if an exception came right behind `acquire`.
        self._lock: Any = threading.RLock()

    def take(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds for the turn; True if this thread has it."""
        return bool(self._lock.acquire(timeout=min(max(timeout, 0.0), threading.TIMEOUT_MAX)))

    def give(self) -> None:
        """Give the turn back, if this thread has it."""
        while self._lock._is_owned():
            self._lock.release()


class ProcessState:
    """The state that one process has of a database: a forked child makes its own."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self.turn = Turn()
        #: by thread: the blocks that it is in
        self.blocks: dict[int, list[weakref.ref[OpenBlock]]] = {}
        #: true if the tables are there, and of the right version
        self.prepared = False
        #: when the version of the tables was last looked at, by `time.monotonic`
        self.looked = -math.inf
        #: the rows of the table of versions, as they were then
        self.version_rows: Sequence[tuple[Any, ...]] = ()
        self.closed = False
        #: how often all connections were dropped because another store has taken the place
        self.generation = 0
        #: milliseconds since 1970: when the machine was started; see `Database.lease_now`
        self.boot_ms: int | None = None

    def enter(self, block: OpenBlock) -> None:
        """This thread is in `block`, until `leave`."""
        self.blocks.setdefault(threading.get_ident(), []).append(weakref.ref(block))

    def leave(self, block: OpenBlock) -> None:
        """This thread is in `block` no more."""
        me = threading.get_ident()
        left = [ref for ref in self.blocks.get(me, ()) if ref() not in (None, block)]
        if left:
            self.blocks[me] = left
        else:
            self.blocks.pop(me, None)

    def abandon(self, *, writing: bool = False) -> None:
        """End the blocks of this thread, with `writing` only those that write."""
        for ref in self.blocks.get(threading.get_ident(), ()):
            block = ref()
            if block is not None and (block.writes or not writing):
                block.abandon()
        self.turn.give()
