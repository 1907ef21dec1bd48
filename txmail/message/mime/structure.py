"""The parts of a message, told from its octets: their headers, and the boundaries between them.

`gate` uses this. Each multipart is read for its delimiter lines once: time is linear in the size of
the content, for each level of nesting.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ...exceptions import BadHeaders, InvalidMessage
from .header_check import FORBIDDEN_BUT_TAB, hides_controls

#: How deep parts are looked into; what is nested deeper is the concern of who nested it.
_DEEPEST = 20
#: How many messages, each just a part of the one before, are looked into.
_MESSAGES = 4

_FOLD = re.compile(rb"\r\n(?=[ \t])")
#: The type of what has parts, or a message, in it.
_NESTED = re.compile(
    rb"(?:\A|\r\n)content-type:(?:\r\n[ \t]|[ \t])*+(?:(message/(?:rfc822|global))|multipart/)",
    re.IGNORECASE,
)
_ENCODED = re.compile(
    rb"(?:\A|\r\n)content-transfer-encoding:(?:\r\n[ \t]|[ \t])*+(?:base64|quoted-printable)",
    re.IGNORECASE,
)
_BOUNDARY = re.compile(
    rb';[ \t]*+boundary[ \t]*+=[ \t]*+(?:"((?:[^"\\]++|\\.)*+)"|([^;" \t]++))', re.IGNORECASE
)
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_PAIR = re.compile(rb"\\(.)")


class _Open:
    """A multipart that is open, and where its next delimiter line is."""

    def __init__(self, boundary: bytes) -> None:
        self.boundary = boundary
        self._delimiter = b"\r\n--" + boundary
        self._next = -1

    def next(self, content: bytes, start: int, limit: int) -> int:
        """Where the next delimiter line begins, from `start` on; `limit` if there is none before.

        What is found is remembered, so that all searches together read the content once.
        """
        while self._next < start:
            found = content.find(self._delimiter, start, limit + 2)
            if found < 0:
                return limit
            if _line(content, found) in (self.boundary, self.boundary + b"--"):
                self._next = found
                break
            start = found + 2
        return min(self._next, limit)


def check_parts(content: bytes, section: bytes) -> None:
    """Look into the parts of `content`, the header section of which is `section`.

    Raises `InvalidMessage` for a multipart that has the boundary of one that it is in (RFC 2046
    section 5.1.2), and `BadHeaders` for a header of a part that decodes to a control character.
    """
    # The outermost first.
    open_: list[_Open] = []
    position = max(len(section) - 2, 0)
    _enter(content, section, len(section), len(content), open_)
    while open_:
        place, found = _next(content, position, open_)
        if place < 0:
            return
        line = _line(content, found)
        position = found + 2
        if line == open_[place].boundary:
            del open_[place + 1 :]
            start = content.index(b"\r\n", position) + 2
            limit = _next(content, position, open_)[1]
            _begin(content, start, limit + 2, open_)
        else:
            del open_[place:]


def _next(content: bytes, start: int, open_: list[_Open]) -> tuple[int, int]:
    """Which of the open multiparts has the next delimiter line, and where; -1 if none has."""
    place, limit = -1, len(content)
    for index, multipart in enumerate(open_):
        found = multipart.next(content, start, limit)
        if found < limit:
            place, limit = index, found
    return place, limit


def _line(content: bytes, found: int) -> bytes:
    """What is behind the hyphens of the line at `found`."""
    end = content.find(b"\r\n", found + 2)
    return content[found + 4 : end if end >= 0 else None].rstrip(b" \t")


def _begin(content: bytes, start: int, limit: int, open_: list[_Open]) -> None:
    """A part begins at `start`; the next line that may part it from another, at `limit`."""
    section = _section(content, start, limit)
    plain = section.isascii() and b"=?" not in section and b"%" not in section
    for header in () if plain and _CONTROL.search(section) is None else _headers(section):
        name, _, value = header.partition(b":")
        text = value.decode("utf-8", "replace")
        if FORBIDDEN_BUT_TAB.search(text) or (
            ("=?" in text or "%" in text) and hides_controls(text)
        ):
            problem = "decodes to a control character or line separator"
            raise BadHeaders(problem, field=name.decode("ascii", "replace")[:60])
    _enter(content, section, start + len(section), limit, open_)


def _enter(content: bytes, section: bytes, end: int, limit: int, open_: list[_Open]) -> None:
    """Note the boundary of a part with the headers `section`, or of a message that is in it."""
    for _ in range(_MESSAGES):
        found = _NESTED.search(section)
        if found is None:
            return
        if found[1] is None:
            if len(open_) < _DEEPEST:
                _open(_FOLD.sub(b"", section[found.end() :]), open_)
            return
        if _ENCODED.search(section):
            return
        section = _section(content, end + 2, limit)
        end += 2 + len(section)


def _open(unfolded: bytes, open_: list[_Open]) -> None:
    found = _BOUNDARY.search(unfolded.partition(b"\r\n")[0])
    if found is None:
        return
    boundary = (_PAIR.sub(rb"\1", found[1]) if found[1] is not None else found[2]).rstrip(b" \t")
    if any(boundary in (o.boundary, o.boundary + b"--") for o in open_):
        problem = "a multipart has the boundary of one that it is in (RFC 2046 section 5.1.2)"
        raise InvalidMessage(problem, field="content")
    if boundary:
        open_.append(_Open(boundary))


def _section(content: bytes, start: int, limit: int) -> bytes:
    """The headers that begin at `start` and end before `limit`, each with its line end."""
    if content.startswith(b"\r\n", start):
        return b""
    end = content.find(b"\r\n\r\n", start, limit)
    return content[start : end + 2] if end >= 0 else content[start:limit]


def _headers(section: bytes) -> Iterator[bytes]:
    yield from _FOLD.sub(b"", section).split(b"\r\n")[:-1]
