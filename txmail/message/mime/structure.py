"""Checks the parts of a message in its octets: their headers, and the boundaries between them.

`gate` uses this. It searches the delimiter lines of each multipart once. For each level of nesting
time is linear in the size of the content.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ...exceptions import BadHeaders, InvalidMessage
from .header_check import FORBIDDEN_BUT_TAB, hides_controls

#: The depth to which parts are checked.
_DEEPEST = 20
#: The most messages that are checked of a chain in which each is the only part of the one before.
_MESSAGES = 4

_FOLD = re.compile(rb"\r\n(?=[ \t])")
#: The Content-Type of a part that has parts or a message in it.
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


class _OpenMultipart:
    """A multipart whose end is not reached yet, and the place of its next delimiter line."""

    def __init__(self, boundary: bytes) -> None:
        self.boundary = boundary
        self._delimiter = b"\r\n--" + boundary
        self._next = -1

    def next(self, content: bytes, start: int, limit: int) -> int:
        """The place of the next delimiter line between `start` and `limit`; `limit` without one.

        It is kept: all searches together read the content once.
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
    """Check the parts of `content`, which has the header section `section`.

    Raises `InvalidMessage` for a multipart that has the boundary of an outer multipart (RFC 2046
    section 5.1.2), and `BadHeaders` for a header of a part that decodes to a control character.
    """
    # The outermost first.
    open_: list[_OpenMultipart] = []
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


def _next(content: bytes, start: int, open_: list[_OpenMultipart]) -> tuple[int, int]:
    """The index of the open multipart that has the next delimiter line, and its place; or -1."""
    place, limit = -1, len(content)
    for index, multipart in enumerate(open_):
        found = multipart.next(content, start, limit)
        if found < limit:
            place, limit = index, found
    return place, limit


def _line(content: bytes, found: int) -> bytes:
    """The text after the hyphens of the line at `found`."""
    end = content.find(b"\r\n", found + 2)
    return content[found + 4 : end if end >= 0 else None].rstrip(b" \t")


def _begin(content: bytes, start: int, limit: int, open_: list[_OpenMultipart]) -> None:
    """Check the headers of the part from `start` to `limit`, and note its boundary."""
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


def _enter(
    content: bytes, section: bytes, end: int, limit: int, open_: list[_OpenMultipart]
) -> None:
    """Note the boundary of a part with the headers `section`, or of a message in it."""
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


def _open(unfolded: bytes, open_: list[_OpenMultipart]) -> None:
    found = _BOUNDARY.search(unfolded.partition(b"\r\n")[0])
    if found is None:
        return
    boundary = (_PAIR.sub(rb"\1", found[1]) if found[1] is not None else found[2]).rstrip(b" \t")
    if any(boundary in (o.boundary, o.boundary + b"--") for o in open_):
        problem = "a multipart has the boundary of an outer multipart (RFC 2046 section 5.1.2)"
        raise InvalidMessage(problem, field="content")
    if boundary:
        open_.append(_OpenMultipart(boundary))


def _section(content: bytes, start: int, limit: int) -> bytes:
    """The headers between `start` and `limit`, each with its line end."""
    if content.startswith(b"\r\n", start):
        return b""
    end = content.find(b"\r\n\r\n", start, limit)
    return content[start : end + 2] if end >= 0 else content[start:limit]


def _headers(section: bytes) -> Iterator[bytes]:
    yield from _FOLD.sub(b"", section).split(b"\r\n")[:-1]
