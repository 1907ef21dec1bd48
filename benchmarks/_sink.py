"""A fast SMTP sink: takes every message, keeps none, counts them.

It is meant to be no obstacle to a client that is measured: one thread, one selector, no work for a
message beyond finding its end. It takes valid input only; for anything else there is
`txmail.testing.ScriptedServer`.

As a program it prints ``listening PORT``, then answers each line on its standard input with the
number of messages so far, and ends with its standard input.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import selectors
import socket
import sys

_EXTENSIONS = ("PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "SIZE 26214400")
_GREETING = b"220 sink ESMTP\r\n"
_REPLIES = {
    b"MAIL": b"250 2.1.0 Ok\r\n",
    b"RCPT": b"250 2.1.5 Ok\r\n",
    b"DATA": b"354 Go ahead\r\n",
    b"RSET": b"250 2.0.0 Ok\r\n",
    b"NOOP": b"250 2.0.0 Ok\r\n",
    b"HELO": b"250 sink\r\n",
    b"QUIT": b"221 2.0.0 Bye\r\n",
}
_QUEUED = b"250 2.0.0 Ok: queued\r\n"
_CHUNK = b"250 2.0.0 Ok\r\n"
_UNKNOWN = b"502 5.5.1 What?\r\n"


class Connection:
    """What has come over one connection and is not answered yet."""

    def __init__(self, connected: socket.socket, ehlo: bytes) -> None:
        self.socket = connected
        self.replies = bytearray(_GREETING)
        self.ended = False
        self._ehlo = ehlo
        self._buffer = b""
        self._in_content = False
        self._skip = 0  # octets of a BDAT chunk that are still to come
        self._last = False

    def receive(self, octets: bytes) -> int:
        """Answer `octets`; the number of messages that became complete with them."""
        if self._skip:
            octets = self._skip_chunk(octets)
            if self._skip:
                return 0
        data = self._buffer + octets if self._buffer else octets
        return self._consume(data)

    def _skip_chunk(self, octets: bytes) -> bytes:
        taken = min(self._skip, len(octets))
        self._skip -= taken
        if not self._skip:
            self.replies += _QUEUED if self._last else _CHUNK
        return octets[taken:]

    def _consume(self, data: bytes) -> int:
        at, messages, end = 0, 0, len(data)
        replies = self.replies
        while at < end:
            if self._in_content:
                # Two octets further back: the line end before the dot may be that of DATA.
                found = data.find(b"\r\n.\r\n", at)
                if found < 0:
                    at = max(at, end - 4)
                    break
                at = found + 5
                self._in_content = False
                messages += 1
                replies += _QUEUED
                continue
            found = data.find(b"\r\n", at)
            if found < 0:
                break
            verb = data[at : at + 4]
            reply = _REPLIES.get(verb) or _REPLIES.get(verb.upper())
            if reply is not None:
                replies += reply
                if reply is _REPLIES[b"DATA"]:
                    self._in_content = True
                    at = found  # the line end may be the one before the dot
                    continue
                self.ended = self.ended or reply is _REPLIES[b"QUIT"]
                at = found + 2
            elif verb.upper() == b"BDAT":
                words = data[at:found].split()
                size, self._last = int(words[1]), len(words) == 3
                messages += self._last
                at = found + 2 + size
                if at > end:
                    self._skip = at - end
                else:
                    replies += _QUEUED if self._last else _CHUNK
            else:
                replies += self._ehlo if verb.upper() == b"EHLO" else _UNKNOWN
                at = found + 2
        self._buffer = data[at:]
        return messages


class Sink:
    """The selector loop."""

    def __init__(self, extensions: tuple[str, ...]) -> None:
        lines = ["sink", *extensions]
        marks = ["-"] * (len(lines) - 1) + [" "]
        reply = "".join(f"250{mark}{line}\r\n" for mark, line in zip(marks, lines, strict=True))
        self._ehlo = reply.encode("ascii")
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._selector = selectors.DefaultSelector()
        self.port = self._listener.getsockname()[1]
        self.messages = 0

    def run(self) -> None:
        """Serve until standard input ends."""
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        while True:
            for key, events in self._selector.select():
                if key.data is not None:
                    self._serve(key.data, events)
                elif key.fileobj is self._listener:
                    self._accept()
                elif not self._report():
                    return

    def _report(self) -> bool:
        asked = os.read(sys.stdin.fileno(), 100)
        if asked:
            print(self.messages, flush=True)
        return bool(asked)

    def _accept(self) -> None:
        connected, _ = self._listener.accept()
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setblocking(False)
        connection = Connection(connected, self._ehlo)
        self._selector.register(connected, selectors.EVENT_READ, connection)
        self._serve(connection, 0)

    def _serve(self, connection: Connection, events: int) -> None:
        try:
            if events & selectors.EVENT_READ:
                octets = connection.socket.recv(65536)  # more would be mapped anew each time
                if not octets:
                    self._close(connection)
                    return
                self.messages += connection.receive(octets)
            self._flush(connection)
        except OSError:
            self._close(connection)

    def _flush(self, connection: Connection) -> None:
        replies = connection.replies
        if not replies:
            return
        waiting = self._selector.get_key(connection.socket).events != selectors.EVENT_READ
        with contextlib.suppress(BlockingIOError):
            del replies[: connection.socket.send(replies)]
        if replies and not waiting:
            both = selectors.EVENT_READ | selectors.EVENT_WRITE
            self._selector.modify(connection.socket, both, connection)
        elif waiting and not replies:
            self._selector.modify(connection.socket, selectors.EVENT_READ, connection)
        if connection.ended and not replies:
            self._close(connection)

    def _close(self, connection: Connection) -> None:
        self._selector.unregister(connection.socket)
        connection.socket.close()


def main() -> None:
    """Listen on a free loopback port."""
    parser = argparse.ArgumentParser(description="A fast SMTP sink on loopback.")
    parser.add_argument("--chunking", action="store_true", help="offer CHUNKING (BDAT)")
    parser.add_argument("--no-pipelining", action="store_true", help="do not offer PIPELINING")
    arguments = parser.parse_args()
    extensions = _EXTENSIONS[1:] if arguments.no_pipelining else _EXTENSIONS
    sink = Sink((*extensions, "CHUNKING") if arguments.chunking else extensions)
    print("listening", sink.port, flush=True)
    sink.run()


if __name__ == "__main__":
    main()
