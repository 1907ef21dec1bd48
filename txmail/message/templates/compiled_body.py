"""A body of a template: only its lines with fields are encoded for each message."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from ...common.ascii_text import ascii_lines
from ..mime.encodings import PLAIN_TEXT, encode_body, encode_text
from .placeholders import (
    NotCompilable,
    Placeholders,
    TextFormat,
    constant_text,
    format_of,
    has_fields,
)
from .template_values import Field, Pieces

#: Octets of a line that 7bit leaves unencoded (`encode_text`).
_READABLE = 78
#: Octets of a line of quoted-printable that needs no soft line break.
_UNBROKEN = 76

#: Lines of quoted-printable, each with its soft line breaks. CR and LF occur in line ends only: all
#: others are escaped.
_HARD_LINES = re.compile(rb"(?<![^\n])(?<!=\r\n)(?:(?>[^\r\n]*+(?<==)\r\n))*+[^\r\n]*+\r\n")


class EncodedBody(NamedTuple):
    """The body of one message."""

    #: its Content-Transfer-Encoding
    encoding: bytes
    body: bytes
    #: the lines of it that differ between messages
    variable: bytes


class CompiledBody:
    """Encodes the lines of a body that have fields. The other lines are encoded already.

    That is possible because lines of 7bit, and lines of quoted-printable, do not depend on each
    other: a soft line break is in the middle of a line. The encoding that `encode_text` would
    choose follows from sums over the lines. In base64 the whole body is encoded each time.
    """

    def __init__(self, pieces: Pieces, placeholders: Placeholders, *, html: bool) -> None:
        #: true if values of fields are escaped for HTML
        self.html = html
        variable: list[str | Field] = []
        fixed = [""]
        for line in _lines(pieces):
            if has_fields(line):
                variable += [*_without_end(line), "\r\n"]
                fixed.append("")
            else:
                fixed[-1] += constant_text(line)
        self._variable = placeholders.text_format(variable)
        escaped = [p if isinstance(p, Field) else _escaped(p) for p in variable]
        self._escaped = TextFormat(format_of(escaped), self._variable.numbers)
        # A text gets a line end at its end, unless its last line is empty.
        self._is_open = not fixed[-1] and not constant_text(pieces[-1:]).endswith("\n")
        octets = [_crlf(text) for text in fixed]
        self._size = sum(map(len, octets))
        self._escapes = sum(map(_escapes, octets))
        self._more_escapes = _escapes(constant_text(variable).encode())
        self._raw = _room_between(octets)
        self._is_readable = all(encode_text(lines)[0] == "7bit" for lines in octets if lines)
        self._quoted = _room_between([_quoted(lines) for lines in octets])

    def encode(self, values: list[str], *, simple: bool) -> EncodedBody:
        """The body with `values` in it. `simple`: quoted-printable escapes none of them."""
        if simple and not self._is_readable and (encoded := self._encode_unescaped(values)):
            return encoded
        variable = self._variable.fill(values).encode()
        lines = self._split(variable)
        if self._is_readable and variable.isascii() and max(map(len, lines)) <= _READABLE + 2:
            return EncodedBody(b"7bit", _interleaved(self._raw, lines), variable)
        if self._is_longer_quoted(len(variable), _escapes(variable)):
            body = encode_body(_interleaved(self._raw, lines), "base64", text=True, field="body")
            return EncodedBody(b"base64", body, b"")
        variable = _quoted(variable)
        # Before a line end, an equals sign is always a soft line break.
        lines = (
            _HARD_LINES.findall(variable)
            if b"=\r\n" in variable
            else variable.splitlines(keepends=True)
        )
        return EncodedBody(b"quoted-printable", _interleaved(self._quoted, lines), variable)

    def _encode_unescaped(self, values: list[str]) -> EncodedBody | None:
        """The body in quoted-printable, if no line of `values` needs a soft line break; or None."""
        variable = self._escaped.fill(values).encode()
        lines = self._split(variable)
        if max(map(len, lines)) > _UNBROKEN + 2 or b" \r\n" in variable or b"\t\r\n" in variable:
            return None
        if self._is_longer_quoted(len(variable) - 2 * self._more_escapes, self._more_escapes):
            return None
        return EncodedBody(b"quoted-printable", _interleaved(self._quoted, lines), variable)

    def _split(self, variable: bytes) -> list[bytes]:
        lines = variable.splitlines(keepends=True)
        if self._is_open and lines[-1] == b"\r\n":
            raise NotCompilable
        return lines

    def _is_longer_quoted(self, size: int, escapes: int) -> bool:
        """True if `encode_text` would choose base64 for the body with these variable lines."""
        size += self._size
        return (size + 2 * (self._escapes + escapes)) * 3 > size * 4 + 12


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


def _without_end(line: list[str | Field]) -> list[str | Field]:
    last = line[-1]
    return [*line[:-1], last.removesuffix("\n")] if isinstance(last, str) else line


def _crlf(text: str) -> bytes:
    """Whole lines with CRLF, as octets. The last line gets an end if it has none."""
    if text and not text.endswith("\n"):
        text += "\n"
    return text.replace("\n", "\r\n").encode()


def _quoted(lines: bytes) -> bytes:
    return encode_body(lines, "quoted-printable", text=True, field="body") if lines else b""


def _escaped(text: str) -> str:
    return "".join([chr(o) if o in PLAIN_TEXT else f"={o:02X}" for o in text.encode()])


def _escapes(octets: bytes) -> int:
    """The number of octets that quoted-printable escapes."""
    return len(octets.translate(None, PLAIN_TEXT))


def _room_between(fixed: list[bytes]) -> list[bytes]:
    """A list of `fixed` with room for one item between each two."""
    found = [b""] * (2 * len(fixed) - 1)
    found[::2] = fixed
    return found


def _interleaved(fixed: list[bytes], variable: list[bytes]) -> bytes:
    found = fixed.copy()
    found[1::2] = variable
    return b"".join(found)
