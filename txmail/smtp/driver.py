"""Drives conversations over one stream: writes, reads, and keeps the time limits.

The driver never writes without reading: a server whose replies are not read stops reading, and then
both sides wait for ever. It writes what the socket does not take at once while it waits for
replies.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator

from .protocol import Protocol
from .stream import Stream
from .transactions import ConnectionEnded, Conversation

#: Seconds that a server may take to close the connection after a 421. It has said before which
#: messages it accepted, so that the client misses nothing but its last words.
CLOSING_TIMEOUT = 5.0
#: Seconds for the first reply on a connection that was kept. A router in between that translates
#: addresses may have forgotten the connection: then neither a reply nor a reset ever comes. The
#: driver waits for at most half of the time that is left, and leaves the rest for a fresh
#: connection.
KEPT_TIMEOUT = 5.0
#: Seconds between two questions whether a reply is still worth waiting for.
TICK = 0.1


class Driver:
    """Moves the octets of one connection, within its time limits."""

    def __init__(
        self,
        stream: Stream,
        protocol: Protocol,
        name: str,
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`name` is the name of the server; `timeout` is in seconds, for each reply."""
        self.stream = stream
        self._protocol = protocol
        self._name = name
        self._timeout = timeout
        self._clock = clock
        self._write_failed = False
        #: False on a connection that was kept, until the server has sent something
        self.proven = True
        #: by the clock: the end of the whole call, and of the wait for the next reply
        self._deadline: float | None = None
        self._patience = 0.0
        self._guard: Callable[[], object] | None = None
        self._rest: Callable[[], object] | None = None

    @contextlib.contextmanager
    def bounded(
        self, timeout: float | None, guard: Callable[[], object] | None = None
    ) -> Iterator[None]:
        """Limit everything inside the context to `timeout` seconds in all.

        `guard` is called before each write; an error that it raises ends sending. If it has a
        method ``rest``, that is called while nothing comes, and may raise in the same way.
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
        """Write what is queued and read what comes, until the protocol is ready."""
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
        """True if the replies that the conversation waits for have come."""
        return self._protocol.ready

    # -- single steps, for a caller that waits for several connections at once

    @property
    def tick(self) -> float:
        """Seconds after which a caller that waits for a reply has to call `rest`."""
        return math.inf if self._rest is None else TICK

    @property
    def carries_content(self) -> bool:
        """True if a content is on its way, so that to stop here would leave it in doubt."""
        return self._protocol.carries_content

    def rest(self) -> None:
        """Call the guard's ``rest``, unless a content is on its way. Nothing came for a moment."""
        if self._rest is not None and not self.carries_content:
            self._rest()

    def expect(self) -> None:
        """Begin to wait for a reply."""
        self._wait_from(self._clock())

    def _wait_from(self, now: float) -> None:
        patience = self._timeout
        if not self.proven:
            patience = min(patience, KEPT_TIMEOUT)
            if self._deadline is not None:
                patience = min(patience, (self._deadline - now) / 2)
        self._patience = now + patience

    def interest(self) -> tuple[bool, float]:
        """True if there is something to write, and the seconds that are left, 0 at least.

        When the time is over the driver writes nothing more, but still reads: a reply that only
        this process was too slow to read saves a message from being in doubt.
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
        """Raise `ConnectionEnded`, because the time is over."""
        if not self.proven:
            raise ConnectionEnded(f"no answer from {self._name} on a connection that was kept")
        raise ConnectionEnded(f"no answer from {self._name} in time", lost=False)

    def receive(self) -> None:
        """Read what has come, perhaps nothing. Raises `ConnectionEnded`."""
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
        """Write what the socket takes now, unless the time is over."""
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
            # Replies to what the server got before may still come: they are read until EOF.
            self._write_failed = True
            taken = 0
        protocol.note_written(taken)
        if taken:
            self._wait_from(now)
