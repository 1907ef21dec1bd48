"""Records the messages and connections of a scripted server."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..common.ascii_text import ascii_strip, ascii_upper


@dataclass(frozen=True, slots=True)
class Received:
    """A message that the server has accepted, even if the client did not get the reply."""

    #: the address of the reverse-path, empty for the null sender
    sender: str
    #: the accepted recipients, in their order
    recipients: tuple[str, ...]
    #: the content octets, dots unstuffed
    content: bytes
    #: the number of its connection
    connection: int
    #: the parameters of MAIL, keywords in upper case; a keyword without a value has an empty one
    parameters: Mapping[str, str] = field(default_factory=dict)


class Connection:
    """The record of one connection, which grows while the connection lasts. Lists are copies."""

    def __init__(self, number: int, condition: threading.Condition) -> None:
        self._number = number
        self._condition = condition
        self._commands: list[str] = []
        self._octets: list[tuple[float, str, bytes]] = []
        self._closed = False
        self._tls = False

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<Connection {self._number}: {state}, {len(self.commands)} commands>"

    @property
    def number(self) -> int:
        """1 for the server's first connection, and so on."""
        return self._number

    @property
    def commands(self) -> list[str]:
        """The command lines, without their line ends. Content and AUTH answers are not commands."""
        with self._condition:
            return list(self._commands)

    @property
    def ehlos(self) -> list[str]:
        """The names the client gave itself in EHLO and HELO."""
        lines = (line.partition(" ") for line in self.commands)
        return [name for verb, _, name in lines if ascii_upper(verb) in ("EHLO", "HELO")]

    @property
    def octets(self) -> list[tuple[float, str, bytes]]:
        """All octets of the connection: `time.monotonic` seconds, sender ("C" or "S"), octets.

        The time is when the server read the client's octets, or gave its own to the kernel. Under
        TLS they are the clear text.
        """
        with self._condition:
            return list(self._octets)

    @property
    def closed(self) -> bool:
        """True if the client or the server has closed the connection."""
        with self._condition:
            return self._closed

    @property
    def ended_by_quit(self) -> bool:
        """True if the client said QUIT."""
        return any(ascii_strip(ascii_upper(line)) == "QUIT" for line in self.commands)

    @property
    def tls(self) -> bool:
        """True if the connection is encrypted."""
        with self._condition:
            return self._tls

    def add_command(self, line: str) -> None:
        with self._condition:
            self._commands.append(line)
            self._condition.notify_all()

    def add_octets(self, direction: str, octets: bytes) -> None:
        with self._condition:
            self._octets.append((time.monotonic(), direction, octets))
            self._condition.notify_all()

    def mark(self, *, closed: bool = False, tls: bool = False) -> None:
        with self._condition:
            self._closed |= closed
            self._tls |= tls
            self._condition.notify_all()


class Records:
    """All records of a server. Its `condition` guards them, and is notified of every change."""

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self._messages: list[Received] = []
        self._connections: list[Connection] = []

    def connect(self) -> Connection:
        """The record of a new connection."""
        with self.condition:
            connection = Connection(len(self._connections) + 1, self.condition)
            self._connections.append(connection)
            self.condition.notify_all()
            return connection

    def receive(self, message: Received) -> None:
        """Record an accepted message."""
        with self.condition:
            self._messages.append(message)
            self.condition.notify_all()

    @property
    def messages(self) -> list[Received]:
        """A copy."""
        with self.condition:
            return list(self._messages)

    @property
    def connections(self) -> list[Connection]:
        """A copy."""
        with self.condition:
            return list(self._connections)
