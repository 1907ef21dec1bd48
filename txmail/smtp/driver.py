"""Drives conversations over one stream: writes what is due, reads what comes, minds the time.

It never writes without reading: a server that is not read stops reading, and then both wait for
ever. What the socket does not take at once is written while waiting for replies.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator

from .protocol import Protocol
from .stream import Stream
from .transactions import ConnectionEnded, Conversation

#: Seconds that a server may take to close the connection after a 421. What it has accepted before
#: it has said before, so that nothing but its last words is missed.
CLOSING_TIMEOUT = 5.0
#: Seconds for the first reply on a connection that was kept. A router in between that translates
#: addresses may have forgotten it, and then nothing ever comes: neither a reply nor a reset. It is
#: at most half of the time that is left, so that there is some for a fresh connection.
KEPT_TIMEOUT = 5.0
#: Seconds between two questions whether a reply is still worth waiting for.
TICK = 0.1


class Driver:
    """The octets of one connection."""

    def __init__(
        self,
        stream: Stream,
        protocol: Protocol,
        name: str,
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`name` is the server's; `timeout` in seconds is for each reply."""
        self.stream = stream
        self._protocol = protocol
        self._name = name
        self._timeout = timeout
        self._clock = clock
        self._write_failed = False
        #: False on a connection that was kept, until something comes on it
        self.proven = True
        #: by the clock: the end of all patience, and that with the next reply
        self._deadline: float | None = None
        self._patience = 0.0
        self._guard: Callable[[], object] | None = None
        self._rest: Callable[[], object] | None = None

    @contextlib.contextmanager
    def bounded(
        self, timeout: float | None, guard: Callable[[], object] | None = None
    ) -> Iterator[None]:
        """Within it, everything together takes `timeout` seconds at most.

        `guard` is called before each write; what it raises ends everything. So does what its
        method ``rest`` raises, if it has one, which is called while nothing comes.
        """
        self._deadline = None if timeout is None else self._clock() + timeout
        self._guard, self._rest = guard, getattr(guard, "rest", None)
        try:
            yield
        finally:
            self._deadline = self._guard = self._rest = None

    def run(self, conversation: Conversation) -> None:
        """Drive `conversation` to its end. Raises `TransportError`."""
        for _ in conversation:
            self.bring_reply(conversation)

    def bring_reply(self, conversation: Conversation) -> None:
        """Write what is due and read what comes, until the protocol is ready."""
        protocol = self._protocol
        if protocol.ready:
            return
        self.expect()
        self.write()
        try:
            while not protocol.ready:
                writing, left = self.interest()
                if self.stream.wait(writing, min(left, self.tick)):
                    self.receive()
                elif left <= self.tick:
                    self.give_up()
                else:
                    self.rest()
                if protocol.unwritten and not protocol.ready:
                    self.write()
        except ConnectionEnded as ended:
            conversation.throw(ended)

    @property
    def ready(self) -> bool:
        """True if what is waited for has come."""
        return self._protocol.ready

    # -- the steps of it, for one who waits for several connections at once

    @property
    def tick(self) -> float:
        """Seconds after which who waits for a reply has to `rest`."""
        return math.inf if self._rest is None else TICK

    @property
    def carries_content(self) -> bool:
        """True if there is a content on its way of which nobody knows what becomes of it."""
        return self._protocol.carries_content

    def rest(self) -> None:
        """Nothing has come for a moment. Raises what ends the waiting where that does no harm."""
        if self._rest is not None and not self.carries_content:
            self._rest()

    def expect(self) -> None:
        """From now on a reply is waited for."""
        self._wait_from(self._clock())

    def _wait_from(self, now: float) -> None:
        patience = self._timeout
        if not self.proven:
            patience = min(patience, KEPT_TIMEOUT)
            if self._deadline is not None:
                patience = min(patience, (self._deadline - now) / 2)
        self._patience = now + patience

    def interest(self) -> tuple[bool, float]:
        """Whether there is something to write, and the seconds that are left, 0 at least.

        When time is up nothing is written any more, and what has come is still read: replies late
        by nothing but our own slowness spare us a doubt.
        """
        left = self.left
        writing = left > 0 and self._protocol.unwritten and not self._write_failed
        return writing, left

    @property
    def left(self) -> float:
        """Seconds for the next reply, 0 at least."""
        now = self._clock()
        if self._protocol.closing:
            self._patience = min(self._patience, now + CLOSING_TIMEOUT)
        deadline = self._deadline
        end = self._patience if deadline is None else min(self._patience, deadline)
        return end - now if end > now else 0.0

    def give_up(self) -> None:
        """Raises `ConnectionEnded`: the time is up."""
        if not self.proven:
            raise ConnectionEnded(f"no answer from {self._name} on a connection that was kept")
        raise ConnectionEnded(f"no answer from {self._name} in time", lost=False)

    def receive(self) -> None:
        """Read what has come, if anything. Raises `ConnectionEnded`."""
        try:
            data = self.stream.receive()
        except OSError as error:
            reason = error.strerror or error
            raise ConnectionEnded(f"connection to {self._name} lost: {reason}") from error
        if data == b"":
            raise ConnectionEnded(f"{self._name} closed the connection")
        if data:
            self.proven = True
            self._protocol.receive(data)

    def write(self) -> None:
        """Write what the socket takes now, unless time is up."""
        protocol = self._protocol
        if self._write_failed or not protocol.unwritten:
            return
        now = self._clock()
        if self._deadline is not None and now >= self._deadline:
            return
        outgoing = protocol.outgoing()
        if self._guard is not None:
            self._guard()
        try:
            taken = self.stream.send(outgoing)
        except OSError:
            # Replies to what arrived before may still be there: they are read until EOF.
            self._write_failed = True
            taken = 0
        protocol.took(taken)
        if taken:
            self._wait_from(now)
