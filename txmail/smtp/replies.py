"""Parses the replies of a server (RFC 5321 section 4.2).

A reply ends with the line whose code is followed by a space or by nothing. The parser reads code
and separator, and never counts lines. Anything that is not exactly a reply raises `MalformedReply`:
the route is at fault, and no message is judged by it.
"""

from __future__ import annotations

import contextlib
import re
from functools import lru_cache

from ..common.shown import echo
from ..exceptions import TransportError
from ..reply import Reply
from ..secret import Censor, bare

#: Octets of one line with its line end. RFC 5321 section 4.5.3.1.5 says 512; servers send more.
LINE_LIMIT = 4096
#: Lines of one reply: an EHLO reply has some twenty.
LINES_LIMIT = 100
#: Octets of one reply, so that a hostile server cannot fill the memory.
REPLY_LIMIT = 64 * 1024

#: A line without its LF.
_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])([^\r\n]*))?\r")


class MalformedReply(TransportError):
    """The server sent octets that are no reply to a command."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"malformed reply: {problem}", lost=True)


class ReplyParser:
    """Collects octets, and hands out complete replies in order."""

    def __init__(self, censor: Censor | None = None) -> None:
        """`censor` takes secrets out of each line before the parser reads it."""
        self._censor = censor if censor is not None else Censor()
        #: True during an AUTH exchange: challenges are not censored
        self.challenges = False
        #: True after a 421: the server is going to close the connection
        self.closing = False
        #: True after a 3yz
        self.intermediate = False
        #: complete replies, of which those before `_first` were handed out
        self._replies: list[Reply] = []
        self._first = 0
        #: how many were handed out by `drop`
        self.dropped = 0
        self._problem: MalformedReply | None = None
        #: the beginning of a line
        self._rest = b""
        #: code and text of the lines of a reply that goes on
        self._lines: list[tuple[bytes, bytes]] = []
        self._size = 0

    def feed(self, data: bytes) -> None:
        """Take octets as they came from the socket, cut anywhere."""
        data = self._rest + data if self._rest else data
        lines = data.split(b"\n")
        self._rest = lines.pop()
        if self._censor.active:
            lines = [self._clean(line) for line in lines]
        if b"421" in data:
            self.closing = self.closing or any(line.startswith(b"421") for line in lines)
        if data.startswith(b"3") or b"\n3" in data:
            self.intermediate = self.intermediate or any(line.startswith(b"3") for line in lines)
        try:
            self._take(lines)
            if len(self._rest) >= LINE_LIMIT:
                raise MalformedReply(f"a line of more than {LINE_LIMIT} octets")
        except MalformedReply as problem:
            # It is raised later: the replies that came before it are valid.
            # Without its traceback: the variables of the frames have secrets that the server sent.
            self._problem = bare(problem)
            self._rest = b""

    def _take(self, lines: list[bytes]) -> None:
        if self._first > 256 or self._first == len(self._replies):
            del self._replies[: self._first]
            self._first = 0
        read = _uncached if self.challenges else _single
        replies = self._replies
        if not self._lines:
            with contextlib.suppress(MalformedReply):
                found = [reply for reply in map(read, lines) if reply]
                if len(found) == len(lines):
                    replies += found
                    return
        for line in lines:
            reply = None if self._lines else read(line)
            if reply is not None:
                replies.append(reply)
            else:
                self._continue(line)

    @property
    def ready(self) -> bool:
        """True if `next` has something to return or to raise."""
        return self._first < len(self._replies) or self._problem is not None

    @property
    def pending(self) -> bool:
        """True if anything was not handed out, even the beginning of a reply."""
        return bool(self.ready or self._rest or self._lines)

    def has_surplus(self, count: int) -> bool:
        """True if more has come than the `count` replies that are due.

        A 421 behind them is no surplus, nor is the beginning of one: a server may say at any time
        that it closes the connection (RFC 5321 section 3.8).
        """
        first = self._first + count
        if first > len(self._replies):
            return False
        beyond = self._replies[first:]
        partial = self._lines[0][0] if self._lines else self._rest[:3]
        only_421 = b"421".startswith(partial) and self._problem is None
        return not only_421 or any(reply.code != 421 for reply in beyond)

    def has(self, count: int) -> bool:
        """True if so many replies are there, or if no more will come."""
        return self._first + count <= len(self._replies) or self._problem is not None

    def peek(self) -> list[Reply]:
        """All replies that were not handed out. They stay."""
        return self._replies[self._first :]

    def drop(self, count: int) -> None:
        """Count the first `count` replies as handed out."""
        # No call between these two: an interrupt must not separate them.
        self._first += count
        self.dropped += count

    def next(self) -> Reply | None:
        """The next complete reply, or None. Raises `MalformedReply`."""
        first = self._first
        if first < len(self._replies):
            self._first = first + 1
            return self._replies[first]
        self.check()
        return None

    def check(self) -> None:
        """Raise `MalformedReply` if a malformed reply came: there will be no more replies."""
        if self._problem is not None:
            raise self._problem

    def _clean(self, line: bytes) -> bytes:
        valid = len(line) < LINE_LIMIT and _LINE.fullmatch(line) is not None
        if not valid:
            return self._censor.clean(line)
        if self.challenges and line.startswith(b"334"):
            return line
        return line[:4] + self._censor.clean(line[4:])

    def _continue(self, line: bytes) -> None:
        code, separator, text = _split(line)
        self._lines.append((code, text))
        self._size += len(line) + 1
        if code != self._lines[0][0]:
            raise MalformedReply("its lines have different codes")
        if len(self._lines) > LINES_LIMIT or self._size > REPLY_LIMIT:
            raise MalformedReply(f"more than {LINES_LIMIT} lines or {REPLY_LIMIT} octets")
        if separator != b"-":
            self._replies.append(Reply(int(code), tuple(_text(text) for _, text in self._lines)))
            self._lines, self._size = [], 0


def _split(line: bytes) -> tuple[bytes, bytes, bytes]:
    found = _LINE.fullmatch(line) if len(line) < LINE_LIMIT else None
    if found is None:
        raise MalformedReply(echo(line.decode("latin-1")))
    return found[1], found[2] or b" ", found[3] or b""


def _uncached(line: bytes) -> Reply | None:
    """The reply of one line, None if the line is one of several. Raises `MalformedReply`."""
    code, separator, text = _split(line)
    return None if separator == b"-" else Reply(int(code), (_text(text),))


_single = lru_cache(maxsize=256)(_uncached)


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "backslashreplace")
