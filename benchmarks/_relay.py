"""A relay that makes loopback slow: what it gets it passes on after a fixed time, in both ways.

Delay is all it adds: order is kept, throughput is not limited, any number of chunks may be under
way. Beginning a connection takes as long as it would over such a line: the target is connected to
one and a half round trips after the client has connected (SYN, SYN-ACK, ACK), so that the greeting
comes after two. What a line has and this has not is a congestion window: a new connection carries
any amount in one round trip, where TCP would begin with some 14 kilobytes and double them.

As a program it prints ``listening PORT`` and ends with its standard input. A number on a line of
it is a new delay, in seconds both ways, for what comes from then on: so the time that the relay
itself takes, once it is measured, can be taken off what it adds. `select.select` is its timer
because it counts microseconds; epoll counts milliseconds.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import select
import socket
import sys
import time
from collections import deque
from pathlib import Path

#: Octets under way in one direction beyond which nothing more is read.
_MOST_UNDER_WAY = 64 * 1024 * 1024
#: Octets asked of the kernel at once; more than 128 KiB would be mapped anew each time.
_RECEIVE = 120 * 1024
#: Chunks in one `sendmsg`, far below the kernel's limit of 1024.
_CHUNKS = 64
#: Where Linux lets a process say how late its timers may be, in nanoseconds; usually 50,000.
_TIMER_SLACK = Path("/proc/self/timerslack_ns")


class Direction:
    """One way of one connection. All delays are equal, so that its chunks are in order."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source, self.target = source, target
        #: when each chunk is due, and the chunk; an empty one is the end
        self.chunks: deque[tuple[float, bytes]] = deque()
        self.under_way = 0
        self.source_ended = self.finished = False
        #: the target takes nothing now
        self.full = False

    @property
    def reads(self) -> bool:
        """True if it can take more."""
        return not self.source_ended and self.under_way < _MOST_UNDER_WAY

    def read(self, delay: float) -> None:
        """Take what there is; it is due in `delay` seconds."""
        try:
            octets = self.source.recv(_RECEIVE)
        except BlockingIOError:
            return
        except OSError:
            octets = b""
        self.source_ended = not octets
        self.under_way += len(octets)
        self.chunks.append((time.monotonic() + delay, octets))

    def write(self) -> None:
        """Write what is due, as far as the target takes it."""
        now, chunks = time.monotonic(), self.chunks
        self.full = False
        try:
            while chunks and chunks[0][0] <= now and not self.full:
                if not chunks[0][1]:
                    self.finished = True
                    self.target.shutdown(socket.SHUT_WR)
                    return
                due = []
                for when, octets in chunks:
                    if when > now or len(due) == _CHUNKS:
                        break
                    due.append(octets)
                self._taken(self.target.sendmsg(due))
        except BlockingIOError:
            self.full = True
        except OSError:
            chunks.clear()
            self.source_ended = self.finished = True

    def _taken(self, sent: int) -> None:
        self.under_way -= sent
        while sent:
            when, octets = self.chunks.popleft()
            if sent < len(octets):
                self.chunks.appendleft((when, octets[sent:]))
                self.full = True
                return
            sent -= len(octets)


class Relay:
    """The loop."""

    def __init__(self, target: tuple[str, int], round_trip: float) -> None:
        self._target = target
        self._round_trip = round_trip
        self._handshake = 1.5 * round_trip
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        #: clients whose handshake is under way
        self._clients: deque[tuple[float, socket.socket]] = deque()
        self._directions: list[Direction] = []

    def run(self) -> None:
        """Relay until standard input ends."""
        stdin = sys.stdin.fileno()
        while True:
            reading = {d.source: d for d in self._directions if d.reads}
            writing = {d.target: d for d in self._directions if d.full}
            ready, writable, _ = select.select(
                [stdin, self._listener, *reading], list(writing), [], self._timeout()
            )
            for source in ready:
                if source == stdin:
                    if not self._told(os.read(stdin, 100)):
                        return
                elif source is self._listener:
                    self._accept()
                else:
                    reading[source].read(self._round_trip / 2)
            for target in writable:
                writing[target].write()
            self._act()

    def _told(self, line: bytes) -> bool:
        """Take a new delay; False if there is nobody any more."""
        if line:
            self._round_trip = max(0.0, float(line))
        return bool(line)

    def _timeout(self) -> float | None:
        times = [d.chunks[0][0] for d in self._directions if d.chunks and not d.full]
        if self._clients:
            times.append(self._clients[0][0])
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _act(self) -> None:
        """Do what is due by now."""
        now = time.monotonic()
        while self._clients and self._clients[0][0] <= now:
            self._connect(self._clients.popleft()[1])
        finished = False
        for direction in self._directions:
            if direction.chunks and not direction.full and direction.chunks[0][0] <= now:
                direction.write()
            finished = finished or direction.finished
        if finished:
            for direction in [d for d in self._directions if d.finished]:
                self._retire(direction)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        self._prepare(client)
        self._clients.append((time.monotonic() + self._handshake, client))

    def _connect(self, client: socket.socket) -> None:
        server = socket.create_connection(self._target)
        self._prepare(server)
        self._directions += [Direction(client, server), Direction(server, client)]

    def _prepare(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _retire(self, direction: Direction) -> None:
        """Close a connection when both its ways are finished."""
        direction.chunks.clear()  # its end has been passed on
        pair = [d for d in self._directions if d.source in (direction.source, direction.target)]
        if all(d.finished for d in pair):
            self._directions = [d for d in self._directions if d not in pair]
            direction.source.close()
            direction.target.close()


def main() -> None:
    """Listen on a free loopback port."""
    parser = argparse.ArgumentParser(description="A delaying relay on loopback.")
    parser.add_argument("port", type=int, help="the target's port on 127.0.0.1")
    parser.add_argument("--round-trip", type=float, default=0.010, help="in seconds")
    arguments = parser.parse_args()
    relay = Relay(("127.0.0.1", arguments.port), arguments.round_trip)
    print("listening", relay.port, flush=True)
    with contextlib.suppress(OSError):
        _TIMER_SLACK.write_text("1")
    gc.disable()  # a pause would be a client's; nothing here makes cycles
    relay.run()


if __name__ == "__main__":
    main()
