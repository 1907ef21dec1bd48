"""A fast SMTP sink: takes every message, keeps none, counts them.

It is meant to be no obstacle to a client that is measured: one thread, one selector, no work for a
message beyond finding its end. What pipelining clients send comes in groups of commands that one
regular expression takes as a whole: a streamed message (RSET, MAIL, RCPT, BDAT) costs one match
and a jump over its content, a message of a DATA client one match and one search for its end. It
takes valid input only; for anything else there is `txmail.testing.ScriptedServer`.

Two commands are its own: ``XSTAT`` answers ``250 messages``, and ``XBLAST n`` swallows the n
octets behind it and answers once, which shows what the line takes without any dialogue.

As a program it prints ``listening PORT``, then answers each line on its standard input with the
number of messages so far, and ends with its standard input.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import re
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
_BLAST = b"250 2.0.0 Swallowed\r\n"
_UNKNOWN = b"502 5.5.1 What?\r\n"
#: Octets asked of the kernel at once; more than 128 KiB would be mapped anew each time.
_RECEIVE = 120 * 1024

_ONE = rb"MAIL FROM:[^\r]*\r\nRCPT TO:[^\r]*\r\n"
#: A message for one recipient in a stream, up to its content.
_streamed = re.compile(rb"RSET\r\n" + _ONE + rb"BDAT (\d+) LAST\r\n").match
_STREAMED = _REPLIES[b"RSET"] + _REPLIES[b"MAIL"] + _REPLIES[b"RCPT"]
#: The same without CHUNKING; the line end of DATA stays, as it may be the one before the dot.
_pipelined = re.compile(rb"(RSET\r\n)?" + _ONE + rb"DATA(?=\r\n)").match
_PIPELINED = _REPLIES[b"MAIL"] + _REPLIES[b"RCPT"] + _REPLIES[b"DATA"]


class Connection:
    """What has come over one connection and is not answered yet."""

    def __init__(self, connected: socket.socket, ehlo: bytes) -> None:
        self.socket = connected
        self.replies = bytearray(_GREETING)
        self.ended = False
        #: messages that are complete, since somebody last looked
        self.messages = 0
        self._ehlo = ehlo
        self._buffer = b""
        self._in_content = False
        self._skip = 0  # octets that are still to come before the next command
        self._then = b""  # what to answer when they have come

    def receive(self, octets: bytes, before: int) -> None:
        """Answer `octets`; `before` is the number of messages of all connections so far."""
        if self._skip:
            taken = min(self._skip, len(octets))
            self._skip -= taken
            if self._skip:
                return
            self._swallowed(self._then)
            octets = octets[taken:]
        self._consume(self._buffer + octets if self._buffer else octets, before)

    def _consume(self, data: bytes, before: int) -> None:
        at, end = 0, len(data)
        while at < end:
            if self._in_content:
                found = data.find(b"\r\n.\r\n", at)
                if found < 0:
                    at = max(at, end - 4)
                    break
                at = found + 5
                self._in_content = False
                self._swallowed(_QUEUED)
                continue
            at = self._stream(data, at)
            if at >= end:
                break
            group = _pipelined(data, at)
            if group is not None:
                self.replies += _REPLIES[b"RSET"] + _PIPELINED if group[1] else _PIPELINED
                self._in_content = True
                at = group.end()
                continue
            found = data.find(b"\r\n", at)
            if found < 0:
                break
            at = self._command(data, at, found, before)
        if at < end:
            self._buffer = data[at:]
        else:
            self._buffer = b""
            self._skip = at - end

    def _stream(self, data: bytes, at: int) -> int:
        """Take the streamed messages at `at`; where the last ends, which may be yet to come."""
        messages, end = 0, len(data)
        while group := _streamed(data, at):
            following = group.end() + int(group[1])
            if following > end:
                self.replies += (_STREAMED + _QUEUED) * messages + _STREAMED
                self.messages += messages
                self._then = _QUEUED
                return following
            at = following
            messages += 1
        if messages:
            self.replies += (_STREAMED + _QUEUED) * messages
            self.messages += messages
        return at

    def _command(self, data: bytes, at: int, found: int, before: int) -> int:
        """Answer the line from `at` to `found`; where the next begins."""
        verb = data[at : at + 4].upper()
        following = found + 2
        reply = _REPLIES.get(verb)
        if verb == b"DATA":
            self._in_content = True
            following = found  # the line end may be the one before the dot
        elif verb == b"QUIT":
            self.ended = True
        elif verb in (b"BDAT", b"XBLA"):
            words = data[at:found].split()
            following += int(words[1])
            last = _QUEUED if len(words) == 3 else _CHUNK
            self._then = _BLAST if verb == b"XBLA" else last
            if following <= len(data):
                self._swallowed(self._then)
            return following
        elif verb == b"EHLO":
            reply = self._ehlo
        elif verb == b"XSTA":
            reply = b"250 %d\r\n" % (before + self.messages)
        self.replies += reply or _UNKNOWN
        return following

    def _swallowed(self, reply: bytes) -> None:
        self.replies += reply
        self.messages += reply is _QUEUED


class Sink:
    """The selector loop."""

    def __init__(self, extensions: tuple[str, ...], host: str = "127.0.0.1", port: int = 0) -> None:
        lines = ["sink", *extensions]
        marks = ["-"] * (len(lines) - 1) + [" "]
        reply = "".join(f"250{mark}{line}\r\n" for mark, line in zip(marks, lines, strict=True))
        self._ehlo = reply.encode("ascii")
        self._listener = socket.create_server((host, port), backlog=256)
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
                octets = connection.socket.recv(_RECEIVE)
                if not octets:
                    self._close(connection)
                    return
                connection.receive(octets, self.messages)
                self.messages += connection.messages
                connection.messages = 0
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
    """Listen on a free loopback port, or where it is told to."""
    parser = argparse.ArgumentParser(description="A fast SMTP sink on loopback.")
    parser.add_argument("--chunking", action="store_true", help="offer CHUNKING (BDAT)")
    parser.add_argument("--no-pipelining", action="store_true", help="do not offer PIPELINING")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--port", type=int, default=0, help="the port, 0 for a free one")
    arguments = parser.parse_args()
    extensions = _EXTENSIONS[1:] if arguments.no_pipelining else _EXTENSIONS
    if arguments.chunking:
        extensions = (*extensions, "CHUNKING")
    sink = Sink(extensions, arguments.host, arguments.port)
    print("listening", sink.port, flush=True)
    gc.disable()  # a pause would be a client's; nothing here makes cycles
    sink.run()


if __name__ == "__main__":
    main()
