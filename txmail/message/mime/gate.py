"""The last gate: what may be stored and sent, told from the octets alone.

Whatever wrote a message, `check` sees it last, before storage and before the wire. It knows
nothing of how the octets came about, except what its caller says was intended.

1. Line ends are CRLF, there is no NUL, the last line ends, no line is longer than 998 octets.
2. Each line of the header section is ``name:`` with a proper name, or a folded continuation that
   is neither first nor blank; names are the intended ones, in their order.
3. One From, Date and Message-ID, each with a value; no second one of what RFC 5322 section 3.6
   and RFC 2045 want once; no Bcc.
4. No control character in a header, neither as it stands nor after decoding. Beyond ASCII it is
   UTF-8 (RFC 6532).
5. A delimiter line of a multipart occurs exactly as often as the writer meant to write it, compared
   by its beginning as RFC 2046 section 5.1.1 wants: were a boundary in a body, there would be more.
   This needs no parsing and is told by whoever wrote the message.
6. No multipart has the boundary of one that it is in, be it in an attached message, and no header
   of a part decodes to a control character (`txmail.message.mime.structure`).
7. The bounds below.

Time is linear in the size of the content: a few scans in C over all of it, and for the headers,
whose names are much the same from one message to the next, what was found out about a list of names
is remembered.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache

from ...common.ascii_text import ascii_lower
from ...envelope import header_section
from ...exceptions import BadHeaders, InvalidMessage, MessageTooLarge
from .header_check import (
    ADDRESS_HEADERS,
    FORBIDDEN_BUT_TAB,
    MAX_HEADERS,
    hides_address,
    hides_controls,
)
from .structure import check_parts

#: Octets of a whole message.
MAX_CONTENT = 25 * 1024 * 1024
#: MIME parts of a message, itself included.
MAX_PARTS = 1000
#: How deep they may be nested.
MAX_NESTING = 20
#: Octets of a line without its end (RFC 5322 section 2.1.1).
MAX_LINE = 998

_REQUIRED = {b"from": "From", b"date": "Date", b"message-id": "Message-ID"}
_AT_MOST_ONCE = frozenset(
    b"from date message-id subject to cc reply-to sender in-reply-to references mime-version "
    b"content-type content-transfer-encoding content-disposition content-id".split()
)
_NEVER = frozenset({b"bcc", b"resent-bcc"})

# Possessive, because each octet can be matched in one way only.
# What repeats is an atomic group: before 3.11.5, Python forgets where a possessive repetition began
# when its body fails half-way (python/cpython#106052), and Debian 12 has Python 3.11.2.
_LINES = re.compile(rb"(?:(?>[^\r]{0,%d}+\r\n))++" % MAX_LINE)
_TEXT = rb"[\t -~\x80-\xff]*+"
_SECTION = re.compile(
    rb"(?:(?>[!-9;-~]++:%b(?:(?>\r\n[\t ]++[!-~\x80-\xff]%b))*+\r\n))*+" % (_TEXT, _TEXT)
)
_FIELD = re.compile(rb"(?<![^\n])([!-9;-~]++):([^\r\n]*+(?:(?>\r\n[\t ][^\r\n]*+))*+)\r\n")
_FOLD = re.compile(rb"\r\n(?=[ \t])")
_BARE_END = re.compile(rb"\r(?!\n)|(?<!\r)\n")
_NUL = re.compile(rb"\0")
_LONG_LINE = re.compile(rb"(?<![^\n])[^\r\n]{%d}" % (MAX_LINE + 1))
_BLANK_LINE = re.compile(rb"\r\n[ \t]+\r\n")

#: How many lists of header names are remembered, and how long they may be.
_CACHE_SIZE = 256
_CACHED_NAMES = 64


def check(
    content: bytes,
    *,
    intended_headers: Sequence[str] | None = None,
    boundaries: Mapping[bytes, int] | None = None,
    known_parts: bool = False,
) -> None:
    """Raise `InvalidMessage`, `BadHeaders` or `MessageTooLarge` unless `content` may be sent.

    `intended_headers`
        The names of the headers that were meant to be written, in their order.
    `boundaries`
        For each multipart's boundary, how many delimiter lines were meant to be written: one for
        each part and one at the end.
    `known_parts`
        The caller has made the headers of all parts, checked them, and chosen boundaries that
        nobody foretells: the parts are not looked into again.
    """
    if len(content) > MAX_CONTENT:
        raise MessageTooLarge(f"more than {MAX_CONTENT} octets", field="content")
    _check_lines(content)
    section = header_section(content)
    names = _check_headers(section)
    if intended_headers is not None and names != _lowered(tuple(intended_headers)):
        raise BadHeaders("the headers are not the intended ones", field="content")
    if boundaries:
        for boundary, count in boundaries.items():
            if content.count(b"\r\n--" + boundary) != count:
                problem = (
                    "the boundary of a multipart is in a body, or in front of or behind its parts"
                )
                raise InvalidMessage(problem, field="content", value=boundary)
    if b"content-type" in names and not known_parts:
        check_parts(content, section)


def _check_lines(content: bytes) -> None:
    # In a content of such lines each CR has its LF; as many of the one as of the other means that
    # each LF has its CR.
    if (
        _LINES.fullmatch(content)
        and content.count(b"\n") == content.count(b"\r")
        and b"\0" not in content
    ):
        return
    ends = content.count(b"\r\n")
    if content.count(b"\n") != ends or content.count(b"\r") != ends:
        at = _line_of(content, _BARE_END)
        raise InvalidMessage(f"a line end that is not CRLF, on line {at}", field="content")
    if b"\0" in content:
        raise InvalidMessage(f"a NUL, on line {_line_of(content, _NUL)}", field="content")
    if not content.endswith(b"\r\n"):
        raise InvalidMessage("the last line has no end", field="content")
    problem = f"a line of more than {MAX_LINE} octets, line {_line_of(content, _LONG_LINE)}"
    raise InvalidMessage(problem, field="content")


def _line_of(content: bytes, pattern: re.Pattern[bytes]) -> int:
    """The number of the line, from 1, in which `pattern` is found first."""
    found = pattern.search(content)
    return content.count(b"\r\n", 0, found.start() if found else 0) + 1


def _check_headers(section: bytes) -> tuple[bytes, ...]:
    """The names of the header fields in `section`, in lower case."""
    if len(section) > MAX_HEADERS:
        raise MessageTooLarge(f"more than {MAX_HEADERS} octets of headers", field="content")
    proper = _SECTION.match(section)
    end = proper.end() if proper else 0
    if end != len(section):
        if _BLANK_LINE.search(section):
            raise BadHeaders("a continuation line of nothing", field="content")
        line = section[end:].partition(b"\r\n")[0]
        raise BadHeaders("a line that is no header", field="content", value=line)
    fields = _FIELD.findall(section)
    written = tuple([name for name, _ in fields])
    look = _look if len(written) <= _CACHED_NAMES else _look.__wrapped__
    names, required = look(written)
    for place in required:
        if not fields[place][1].strip():
            raise BadHeaders("there is none", field=_REQUIRED[names[place]])
    if b"=?" in section or b"%" in section or not section.isascii():
        for name, value in fields:
            if b"=?" in value or b"%" in value or not value.isascii():
                _check_text(name.decode("ascii"), _FOLD.sub(b"", value))
    return names


@lru_cache(_CACHE_SIZE)
def _look(written: tuple[bytes, ...]) -> tuple[tuple[bytes, ...], list[int]]:
    """The names in `written` in lower case, and which of them are the required ones.

    Raises `BadHeaders` if one of those is missing, one is there twice that must not be, or one is
    there that must not be sent. An error is not remembered.
    """
    names = tuple([name.lower() for name in written])
    for name, title in _REQUIRED.items():
        if name not in names:
            raise BadHeaders("there is none", field=title)
    counts = Counter(names)
    for place, name in enumerate(names):
        if name in _NEVER:
            raise BadHeaders("must not be sent", field=written[place].decode("ascii"))
        if name in _AT_MOST_ONCE and counts[name] > 1:
            raise BadHeaders("there is more than one", field=written[place].decode("ascii"))
    return names, [names.index(name) for name in _REQUIRED]


def _lowered(names: tuple[str, ...]) -> tuple[bytes, ...]:
    return (_lower if len(names) <= _CACHED_NAMES else _lower.__wrapped__)(names)


@lru_cache(_CACHE_SIZE)
def _lower(names: tuple[str, ...]) -> tuple[bytes, ...]:
    return tuple([ascii_lower(name).encode("ascii") for name in names])


def _check_text(name: str, value: bytes) -> None:
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        raise BadHeaders("neither ASCII nor UTF-8", field=name) from None
    if FORBIDDEN_BUT_TAB.search(text) or hides_controls(text):
        raise BadHeaders("decodes to a control character or line separator", field=name)
    if ascii_lower(name) in ADDRESS_HEADERS and hides_address(text):
        raise BadHeaders("an encoded word in an address (RFC 2047 section 5)", field=name)
