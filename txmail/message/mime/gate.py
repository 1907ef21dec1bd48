"""The gate: the last check of the octets of a message, before txmail stores or sends them.

`check` reads the octets alone. It does not know who wrote them, or how. Its caller says which
headers and boundaries the writer meant to write. It checks these laws:

1. Line ends are CRLF, there is no NUL, the last line ends, no line is longer than 998 octets.
2. Each line of the header section is ``name:`` with a valid name, or a continuation that is
   neither first nor blank. The names are the intended ones, in their order.
3. From, Date and Message-ID occur once, each with a value. Other headers that RFC 5322 section 3.6
   and RFC 2045 allow once occur at most once. There is no Bcc.
4. No header has a control character, before or after decoding. Beyond ASCII it is UTF-8 (RFC 6532).
5. Each boundary begins exactly as many lines as the writer meant it to (RFC 2046 section 5.1.1). If
   a body had one, there would be more. The check counts, and parses nothing.
6. No multipart has the boundary of an outer multipart, even across an attached message. No header
   of a part decodes to a control character (`txmail.message.mime.structure`).
7. The limits below.

Time is linear in the size of the content: a few scans in C. Header names hardly differ between
messages, so the result for a list of names is kept.
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
#: The depth to which parts may be nested.
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

#: The number of lists of header names that are kept, and their greatest length.
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
        The names of the headers that the caller meant to write, in their order.
    `boundaries`
        For each boundary, the number of delimiter lines that the caller meant to write: one for
        each part and one at the end.
    `known_parts`
        True if the caller has made and checked the headers of all parts, with boundaries that
        nobody can predict. The parts are not checked again.
    """
    if len(content) > MAX_CONTENT:
        raise MessageTooLarge(f"more than {MAX_CONTENT} octets", field="content")
    _check_lines(content)
    section = header_section(content)
    names = _check_headers(section)
    if intended_headers is not None and names != _lowered(tuple(intended_headers)):
        raise BadHeaders("the headers written are not the headers given", field="content")
    if boundaries:
        for boundary, count in boundaries.items():
            if content.count(b"\r\n--" + boundary) != count:
                problem = (
                    "the boundary of a multipart occurs in a body, or before or after its parts"
                )
                raise InvalidMessage(problem, field="content", value=boundary)
    if b"content-type" in names and not known_parts:
        check_parts(content, section)


def _check_lines(content: bytes) -> None:
    # If the pattern matches, each CR has an LF. If there are as many LFs, each LF has a CR.
    if (
        _LINES.fullmatch(content)
        and content.count(b"\n") == content.count(b"\r")
        and b"\0" not in content
    ):
        return
    ends = content.count(b"\r\n")
    if content.count(b"\n") != ends or content.count(b"\r") != ends:
        at = _line_of(content, _BARE_END)
        raise InvalidMessage(f"line {at} does not end with CRLF", field="content")
    if b"\0" in content:
        raise InvalidMessage(f"line {_line_of(content, _NUL)} has a NUL", field="content")
    if not content.endswith(b"\r\n"):
        raise InvalidMessage("the last line does not end with CRLF", field="content")
    problem = (
        f"line {_line_of(content, _LONG_LINE)} has more than {MAX_LINE} octets; encode the body"
    )
    raise InvalidMessage(problem, field="content")


def _line_of(content: bytes, pattern: re.Pattern[bytes]) -> int:
    """The number, from 1, of the first line that has `pattern`."""
    found = pattern.search(content)
    return content.count(b"\r\n", 0, found.start() if found else 0) + 1


def _check_headers(section: bytes) -> tuple[bytes, ...]:
    """Check the headers in `section`. Returns their names, in lower case."""
    if len(section) > MAX_HEADERS:
        raise MessageTooLarge(f"the headers have more than {MAX_HEADERS} octets", field="content")
    proper = _SECTION.match(section)
    end = proper.end() if proper else 0
    if end != len(section):
        if _BLANK_LINE.search(section):
            raise BadHeaders("a header has a blank continuation line", field="content")
        line = section[end:].partition(b"\r\n")[0]
        raise BadHeaders(
            "a line before the first empty line is not a header", field="content", value=line
        )
    fields = _FIELD.findall(section)
    written = tuple([name for name, _ in fields])
    look = _checked_names if len(written) <= _CACHED_NAMES else _checked_names.__wrapped__
    names, required = look(written)
    for place in required:
        if not fields[place][1].strip():
            raise BadHeaders("the header is empty", field=_REQUIRED[names[place]])
    if b"=?" in section or b"%" in section or not section.isascii():
        for name, value in fields:
            if b"=?" in value or b"%" in value or not value.isascii():
                _check_text(name.decode("ascii"), _FOLD.sub(b"", value))
    return names


@lru_cache(_CACHE_SIZE)
def _checked_names(written: tuple[bytes, ...]) -> tuple[tuple[bytes, ...], list[int]]:
    """The names in `written` in lower case, and the places of the required ones.

    Raises `BadHeaders` for a required name that is missing, a name that occurs too often, and a
    name that must not be sent. Errors are not kept.
    """
    names = tuple([name.lower() for name in written])
    for name, title in _REQUIRED.items():
        if name not in names:
            raise BadHeaders("the header is missing; add it", field=title)
    counts = Counter(names)
    for place, name in enumerate(names):
        if name in _NEVER:
            raise BadHeaders("must not be sent; remove it", field=written[place].decode("ascii"))
        if name in _AT_MOST_ONCE and counts[name] > 1:
            raise BadHeaders(
                "there is more than one; keep one", field=written[place].decode("ascii")
            )
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
        raise BadHeaders("an address cannot have an encoded word (RFC 2047 section 5)", field=name)
