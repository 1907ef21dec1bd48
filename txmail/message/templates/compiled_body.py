"""Where the fields of a template stand, and the lines of a body that have one on them.

`compiled` uses this. `NotPlain` is raised for everything unusual: the message is rendered in full
then.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from operator import itemgetter
from typing import Any, NamedTuple

from ...common.ascii_text import ascii_lines
from ..mime.encodings import PLAIN_TEXT, encode_body, encode_text
from ..mime.header_check import FORBIDDEN, FORBIDDEN_BUT_TAB
from .template_values import MAX_BITS, SCALARS, Field, Pieces, in_text, is_large

#: Characters of a template that is prepared, and of all that its fields become in a message.
MAX_PREPARED = 1024 * 1024
#: Octets of a line that 7bit shows as it is (`encode_text`).
_READABLE = 78
#: Octets of a line of quoted-printable that needs no soft line break.
_UNBROKEN = 76

#: Lines of quoted-printable up to a line end that is not a soft one. CR and LF occur in line ends
#: only, all others are escaped.
_HARD_LINES = re.compile(rb"(?<![^\n])(?<!=\r\n)(?:(?>[^\r\n]*+(?<==)\r\n))*+[^\r\n]*+\r\n")


class NotPlain(Exception):
    """This message, or all of this template, has to be rendered in full."""


class Filled(NamedTuple):
    """A body that has been filled in."""

    #: its Content-Transfer-Encoding
    encoding: bytes
    body: bytes
    #: what of it is not the same in every message, and can be anything
    made: bytes


class Line(NamedTuple):
    """Text with fields in it, which are known by their numbers."""

    format: str
    numbers: itemgetter[Any]

    def text(self, values: list[str]) -> str:
        """The text with `values` in it."""
        return str(self.format % self.numbers(values))


class Places:
    """All places of fields in a template; each different field has a number."""

    def __init__(self) -> None:
        self._numbers: dict[Field, int] = {}
        self._count = 0

    def line(self, pieces: Sequence[str | Field]) -> Line:
        """The line, or header, that consists of `pieces`, at least one of which is a field."""
        fields = [piece for piece in pieces if isinstance(piece, Field)]
        self._count += len(fields)
        numbers = [self._numbers.setdefault(field, len(self._numbers)) for field in fields]
        return Line(_format(pieces), itemgetter(*numbers))

    def values(self, fields: Any) -> tuple[list[str], str]:
        """The text of each field by its number, and all of it together."""
        if fields is None:
            fields = {}
        if type(fields) is not dict:
            raise NotPlain
        for name, value in fields.items():
            kind = type(value)
            if type(name) is not str or kind not in SCALARS:
                raise NotPlain
            if kind is int and value.bit_length() > MAX_BITS:
                raise NotPlain
            if kind is Decimal and is_large(value):
                raise NotPlain
        found = []
        for name, default in self._numbers:
            value = fields.get(name, default)
            if value is None and name not in fields:
                raise NotPlain
            found.append(value if type(value) is str else in_text(value))
        together = "".join(found)
        if len(together) * self._count > MAX_PREPARED:
            raise NotPlain
        if not (together.isascii() and together.isprintable()) and FORBIDDEN.search(together):
            raise NotPlain
        return found, together


class Body:
    """A body of which the lines with fields on them are made; the others are there, encoded.

    Lines of 7bit do not depend on each other, nor do those of quoted-printable: a soft line break
    is in the middle of a line. Which encoding `encode_text` would take is a matter of sums. Base64
    is the exception, and made of the whole body each time.
    """

    def __init__(self, pieces: Pieces, places: Places, *, html: bool) -> None:
        #: true if the values of fields have to be escaped for HTML
        self.html = html
        made: list[str | Field] = []
        fixed = [""]
        for line in _lines(pieces):
            if has_fields(line):
                made += [*_without_end(line), "\r\n"]
                fixed.append("")
            else:
                fixed[-1] += constant(line)
        self._made = places.line(made)
        escaped = [p if isinstance(p, Field) else _escaped(p) for p in made]
        self._escaped = Line(_format(escaped), self._made.numbers)
        # A text gets a line end at its end, unless its last line is empty.
        self._is_open = not fixed[-1] and not constant(pieces[-1:]).endswith("\n")
        octets = [_crlf(text) for text in fixed]
        self._size = sum(map(len, octets))
        self._escapes = sum(map(_escapes, octets))
        self._escapes_made = _escapes(constant(made).encode())
        self._raw = _room_between(octets)
        self._is_readable = all(encode_text(lines)[0] == "7bit" for lines in octets if lines)
        self._quoted = _room_between([_quoted(lines) for lines in octets])

    def filled(self, values: list[str], *, simple: bool) -> Filled:
        """The body with `values` in it, which are `simple` if quoted-printable escapes nothing."""
        if simple and not self._is_readable and (filled := self._simply_filled(values)):
            return filled
        made = self._made.text(values).encode()
        lines = self._split(made)
        if self._is_readable and made.isascii() and max(map(len, lines)) <= _READABLE + 2:
            return Filled(b"7bit", _interleaved(self._raw, lines), made)
        if self._is_longer_quoted(len(made), _escapes(made)):
            body = encode_body(_interleaved(self._raw, lines), "base64", text=True, field="body")
            return Filled(b"base64", body, b"")
        made = _quoted(made)
        # An equals sign is never in front of a line end but in a soft line break.
        lines = _HARD_LINES.findall(made) if b"=\r\n" in made else made.splitlines(keepends=True)
        return Filled(b"quoted-printable", _interleaved(self._quoted, lines), made)

    def _simply_filled(self, values: list[str]) -> Filled | None:
        """The same for `values` of which nothing has to be escaped, and lines that stay whole."""
        made = self._escaped.text(values).encode()
        lines = self._split(made)
        if max(map(len, lines)) > _UNBROKEN + 2 or b" \r\n" in made or b"\t\r\n" in made:
            return None
        if self._is_longer_quoted(len(made) - 2 * self._escapes_made, self._escapes_made):
            return None
        return Filled(b"quoted-printable", _interleaved(self._quoted, lines), made)

    def _split(self, made: bytes) -> list[bytes]:
        lines = made.splitlines(keepends=True)
        if self._is_open and lines[-1] == b"\r\n":
            raise NotPlain
        return lines

    def _is_longer_quoted(self, size: int, escapes: int) -> bool:
        """True if `encode_text` would take base64 for a body with such lines beside the others."""
        size += self._size
        return (size + 2 * (self._escapes + escapes)) * 3 > size * 4 + 12


def plain(pieces: Pieces | None) -> Pieces:
    """`pieces`, if there is nothing but them, and no character that is treated in a special way."""
    if pieces is None or len(constant(pieces)) > MAX_PREPARED:
        raise NotPlain
    for piece in pieces:
        text = piece.default or "" if isinstance(piece, Field) else piece.replace("\n", "")
        if FORBIDDEN_BUT_TAB.search(text):
            raise NotPlain
    return pieces


def has_fields(pieces: Sequence[str | Field]) -> bool:
    """True if not all messages have the same text here."""
    return any(isinstance(piece, Field) for piece in pieces)


def constant(pieces: Sequence[str | Field]) -> str:
    """What is there of the text whatever the fields are."""
    return "".join([piece for piece in pieces if isinstance(piece, str)])


def _lines(pieces: Pieces) -> Iterator[list[str | Field]]:
    """The pieces of each line, the line end included."""
    line: list[str | Field] = []
    for piece in pieces:
        for text in [piece] if isinstance(piece, Field) else ascii_lines(piece):
            line.append(text)
            if isinstance(text, str) and text.endswith("\n"):
                yield line
                line = []
    if line:
        yield line


def _format(pieces: Sequence[str | Field]) -> str:
    return "".join(["%s" if isinstance(p, Field) else p.replace("%", "%%") for p in pieces])


def _without_end(line: list[str | Field]) -> list[str | Field]:
    last = line[-1]
    return [*line[:-1], last.removesuffix("\n")] if isinstance(last, str) else line


def _crlf(text: str) -> bytes:
    """Whole lines, the last of which may be without its end."""
    if text and not text.endswith("\n"):
        text += "\n"
    return text.replace("\n", "\r\n").encode()


def _quoted(lines: bytes) -> bytes:
    return encode_body(lines, "quoted-printable", text=True, field="body") if lines else b""


def _escaped(text: str) -> str:
    return "".join([chr(o) if o in PLAIN_TEXT else f"={o:02X}" for o in text.encode()])


def _escapes(octets: bytes) -> int:
    """How many octets quoted-printable has to escape."""
    return len(octets.translate(None, PLAIN_TEXT))


def _room_between(fixed: list[bytes]) -> list[bytes]:
    """A list with `fixed` at its even places, and room for one more between each two of them."""
    found = [b""] * (2 * len(fixed) - 1)
    found[::2] = fixed
    return found


def _interleaved(fixed: list[bytes], made: list[bytes]) -> bytes:
    found = fixed.copy()
    found[1::2] = made
    return b"".join(found)
