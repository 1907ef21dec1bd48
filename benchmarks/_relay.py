"""A relay that makes loopback slow: what it gets it passes on after a fixed time, in both ways.

Delay is all it adds: order is kept, throughput is not limited, any number of chunks may be under
way. Beginning a connection takes as long as it would over such a line: the target is connected to
one and a half round trips after the client has connected (SYN, SYN-ACK, ACK), so that the greeting
comes after two.

As a program it prints ``listening PORT`` and ends with its standard input. `select.select` is its
timer because it counts microseconds; epoll counts milliseconds.
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Callable

#: Octets under way in one direction beyond which nothing more is read.
_MOST_UNDER_WAY = 64 * 1024 * 1024


class Direction:
    """One way of one connection."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source, self.target = source, target
        #: what is due and not written yet
        self.due = bytearray()
        self.under_way = 0
        self.source_ended = False
        self.end_is_due = False
        self.finished = False

    @property
    def reads(self) -> bool:
        """True if it can take more."""
        return not self.source_ended and self.under_way < _MOST_UNDER_WAY

    def write(self) -> None:
        """Write what is due, as far as the target takes it."""
        try:
            while self.due:
                sent = self.target.send(self.due)
                del self.due[:sent]
                self.under_way -= sent
            if self.end_is_due and not self.finished:
                self.finished = True
                self.target.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        except OSError:
            self.due.clear()
            self.source_ended = self.end_is_due = self.finished = True


class Relay:
    """The loop: all delays are equal or come from one of two, so that a queue each is in order."""

    def __init__(self, target: tuple[str, int], round_trip: float) -> None:
        self._target = target
        self._one_way = round_trip / 2
        self._handshake = 1.5 * round_trip
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._arrivals: deque[tuple[float, Callable[[], None]]] = deque()
        self._connects: deque[tuple[float, Callable[[], None]]] = deque()
        self._directions: list[Direction] = []

    def run(self) -> None:
        """Relay until standard input ends."""
        stdin = sys.stdin.fileno()
        while True:
            reading = {d.source: d for d in self._directions if d.reads}
            writing = {d.target: d for d in self._directions if d.due}
            ready, writable, _ = select.select(
                [stdin, self._listener, *reading], [*writing], [], self._timeout()
            )
            now = time.monotonic()
            for source in ready:
                if source == stdin:
                    if not os.read(stdin, 100):
                        return
                elif source is self._listener:
                    self._accept(now)
                else:
                    self._read(reading[source], now)
            for target in writable:
                writing[target].write()
            self._act()

    def _timeout(self) -> float | None:
        times = [queue[0][0] for queue in (self._arrivals, self._connects) if queue]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _act(self) -> None:
        """Do what is due by now."""
        for queue in (self._arrivals, self._connects):
            while queue and queue[0][0] <= time.monotonic():
                queue.popleft()[1]()
        for direction in [d for d in self._directions if d.finished]:
            self._retire(direction)

    def _accept(self, now: float) -> None:
        client, _ = self._listener.accept()
        self._prepare(client)
        self._connects.append((now + self._handshake, lambda: self._connect(client)))

    def _connect(self, client: socket.socket) -> None:
        server = socket.create_connection(self._target)
        self._prepare(server)
        self._directions += [Direction(client, server), Direction(server, client)]

    def _prepare(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _read(self, direction: Direction, now: float) -> None:
        try:
            octets = direction.source.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            octets = b""
        direction.source_ended = not octets
        direction.under_way += len(octets)

        def arrive() -> None:
            direction.due += octets
            direction.end_is_due = direction.source_ended and not octets
            direction.write()

        self._arrivals.append((now + self._one_way, arrive))

    def _retire(self, direction: Direction) -> None:
        """Close a connection when both its ways are finished."""
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
    relay.run()


if __name__ == "__main__":
    main()
