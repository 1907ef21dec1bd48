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
   This needs no parsing and is told by whoever wrote the message; a ready envelope's multiparts
   are its maker's concern.
6. The bounds below.

Time is linear in the size of the content.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from ..envelope import header_section
from ..exceptions import BadHeaders, InvalidMessage, MessageTooLarge
from .headers import FORBIDDEN_BUT_TAB, hides_controls

#: Octets of a whole message.
MAX_CONTENT = 25 * 1024 * 1024
#: Octets of a header section.
MAX_HEADERS = 100 * 1024
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
_SECTION = re.compile(rb"(?:[!-9;-~]++:[\t -~\x80-\xff]*+\r\n)*+")
_FIELD = re.compile(rb"([!-9;-~]+):([^\r]*)\r\n")
_FOLD = re.compile(rb"\r\n(?=[ \t])")
_BLANK_LINE = re.compile(rb"\r\n[ \t]+\r\n")


def check(
    content: bytes,
    *,
    intended_headers: Sequence[str] | None = None,
    boundaries: Mapping[bytes, int] | None = None,
) -> None:
    """Raise `InvalidMessage`, `BadHeaders` or `MessageTooLarge` unless `content` may be sent.

    `intended_headers`
        The names of the headers that were meant to be written, in their order.
    `boundaries`
        For each multipart's boundary, how many delimiter lines were meant to be written: one for
        each part and one at the end.
    """
    if len(content) > MAX_CONTENT:
        raise MessageTooLarge(f"more than {MAX_CONTENT} octets", field="content")
    _check_lines(content)
    names = _check_headers(header_section(content))
    if intended_headers is not None:
        _check_intended(names, intended_headers)
    for boundary, count in (boundaries or {}).items():
        if content.count(b"\r\n--" + boundary) != count:
            raise InvalidMessage("the boundary of a multipart is in a body", field="content")


def _check_lines(content: bytes) -> None:
    ends = content.count(b"\r\n")
    if content.count(b"\n") != ends or content.count(b"\r") != ends:
        raise InvalidMessage("a line end that is not CRLF", field="content")
    if b"\0" in content:
        raise InvalidMessage("a NUL", field="content")
    if not content.endswith(b"\r\n"):
        raise InvalidMessage("the last line has no end", field="content")
    # Jumps from a line end to the last one that the longest legal line could still reach.
    position, last = 0, len(content) - 2
    while last - position > MAX_LINE:
        end = content.rfind(b"\r\n", position, position + MAX_LINE + 2)
        if end < 0:
            raise InvalidMessage(f"a line of more than {MAX_LINE} octets", field="content")
        position = end + 2


def _check_headers(section: bytes) -> list[bytes]:
    """The names of the header fields in `section`, in lower case."""
    if len(section) > MAX_HEADERS:
        raise MessageTooLarge(f"more than {MAX_HEADERS} octets of headers", field="content")
    unfolded = section
    if b"\r\n " in section or b"\r\n\t" in section:
        if _BLANK_LINE.search(section):
            raise BadHeaders("a continuation line of nothing", field="content")
        unfolded = _FOLD.sub(b"", section)
    if _SECTION.fullmatch(unfolded) is None:
        proper = _SECTION.match(unfolded)
        line = unfolded[proper.end() if proper else 0 :].partition(b"\r\n")[0]
        raise BadHeaders("a line that is no header", field="content", value=line)
    fields = _FIELD.findall(unfolded)
    names = [name.lower() for name, _ in fields]
    _check_names(names, dict(zip(names, fields, strict=True)))
    if not section.isascii() or b"=?" in section or b"%" in section:
        for name, value in fields:
            _check_text(name.decode("ascii"), value)
    return names


def _check_names(names: list[bytes], seen: Mapping[bytes, tuple[bytes, bytes]]) -> None:
    for name, field in _REQUIRED.items():
        if name not in seen or not seen[name][1].strip():
            raise BadHeaders("there is none", field=field)
    if len(seen) != len(names):
        for name in _AT_MOST_ONCE.intersection(seen):
            if names.count(name) > 1:
                raise BadHeaders("there is more than one", field=seen[name][0].decode("ascii"))
    for name in _NEVER.intersection(seen):
        raise BadHeaders("must not be sent", field=seen[name][0].decode("ascii"))


def _check_text(name: str, value: bytes) -> None:
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        raise BadHeaders("neither ASCII nor UTF-8", field=name) from None
    if FORBIDDEN_BUT_TAB.search(text) or hides_controls(text):
        raise BadHeaders("decodes to a control character or line separator", field=name)


def _check_intended(names: Iterable[bytes], intended: Sequence[str]) -> None:
    if list(names) != [name.lower().encode("ascii") for name in intended]:
        raise BadHeaders("the headers are not the intended ones", field="content")
