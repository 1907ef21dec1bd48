"""Content-Transfer-Encodings of bodies: 7bit, 8bit, quoted-printable, base64 (RFC 2045 section 6).

Methods of `bytes` and `re`, which are written in C, work on whole bodies. There is no loop over
octets, and loops over lines only break lines. Time is linear in the size of the body.
"""

from __future__ import annotations

import binascii
import re
import struct

from ...exceptions import InvalidMessage

#: Octets of a line that every mail program shows unchanged (RFC 5322 section 2.1.1).
_READABLE = 78
#: Octets of an encoded line, an equals sign at its end included (RFC 2045 sections 6.7 and 6.8).
_ENCODED = 76
#: Octets of the longest line that may be sent (RFC 5322 section 2.1.1).
_LONGEST = 998
#: Lines of base64 that one call of `struct` cuts.
_BLOCK = 128

# Possessive: each octet matches in one way only, and no octet is tried twice. These patterns let
# through a line feed without CR: where one can occur, callers count line feeds.
_READABLE_LINES = re.compile(rb"(?:(?>[^\r]{0,%d}+\r\n))*+" % _READABLE)
_LONGEST_LINES = re.compile(rb"(?:(?>[^\r]{0,%d}+\r\n))*+[^\r]{0,%d}+" % (_LONGEST, _LONGEST))
_ENCODED_LINES = re.compile(rb"(?:(?>[^\r]{0,%d}+(?<![ \t])\r\n))*+" % _ENCODED)
# Lines that are short enough, and then either the end, or as much of a longer line as fits beside
# an equals sign without tearing an escape. It matches at every place, even at the end or before a
# CR without LF (which does not occur): a search that fails would begin again at each octet.
_UP_TO_SOFT_BREAK = re.compile(
    rb"(?:(?>[^\r]{0,%d}+\r\n))*+(?:[^\r]{0,%d}+\Z|[^\r]{%d,%d}(?<!=)(?<!=.)|[^\r]{0,%d}+\r)"
    % (_ENCODED, _ENCODED, _ENCODED - 3, _ENCODED - 1, _ENCODED)
)

#: Octets that need no escape in quoted-printable: in text with its line ends, and in other data.
PLAIN_TEXT = bytes([*b"\t\r\n", *range(32, 61), *range(62, 127)])
_PLAIN_DATA = bytes(set(PLAIN_TEXT) - set(b"\r\n"))
_ESCAPES = [b"=%02X" % octet for octet in range(256)]
_AS_DATA = {n: e.decode() for n, e in enumerate(_ESCAPES) if n not in _PLAIN_DATA}
_AS_TEXT = {n: e for n, e in _AS_DATA.items() if n not in b"\r\n"}
#: With more different octets to escape, one pass over all is faster than one pass for each.
_FEW = 24

_base64_lines = struct.Struct(f"{_ENCODED}s" * _BLOCK)


def crlf(octets: bytes) -> bytes:
    """`octets` with each line end (CRLF, CR or LF) as CRLF."""
    if b"\r" in octets:
        octets = octets.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return octets.replace(b"\n", b"\r\n")


def crlf_lines(text: str) -> str:
    """`text` with each line end (CRLF, CR or LF) as CRLF."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.replace("\n", "\r\n")


def crlf_text(text: str) -> str:
    """`text` with each line end as CRLF, and a line end at its end."""
    return crlf_lines(text if text.endswith(("\n", "\r")) else f"{text}\n")


def encode_text(octets: bytes) -> tuple[str, bytes]:
    """The best encoding of a text with CRLF line ends, and the encoded text.

    The encoding is 7bit for ASCII in lines of at most 78 octets. Otherwise it is the shorter one of
    quoted-printable and base64; if both are about as long, it is quoted-printable.
    """
    if octets.isascii() and b"\0" not in octets and _READABLE_LINES.fullmatch(octets):
        return "7bit", octets
    escaped = octets.translate(None, PLAIN_TEXT)
    if (len(octets) + 2 * len(escaped)) * 3 <= len(octets) * 4 + 12:
        return "quoted-printable", _soft_breaks(_escape(octets, escaped, text=True))
    return "base64", _base64(octets)


def encode_body(octets: bytes, encoding: str, *, text: bool, field: str) -> bytes:
    """`octets` in a Content-Transfer-Encoding, with CRLF line ends.

    `text` says that line ends in `octets` are line ends, not data: they become CRLF. In base64 they
    stay as they are. Raises `InvalidMessage`, which names `field`, if 7bit or 8bit cannot carry
    `octets`.
    """
    if encoding == "base64":
        return _base64(octets)
    if text:
        octets = crlf(octets)
    if encoding == "quoted-printable":
        escaped = octets.translate(None, PLAIN_TEXT if text else _PLAIN_DATA)
        return _soft_breaks(_escape(octets, escaped, text=text))
    if not carries(octets, eightbit=encoding == "8bit"):
        raise InvalidMessage(
            f"cannot be sent as {encoding}; use base64 or quoted-printable", field=field
        )
    return octets


def carries(octets: bytes, *, eightbit: bool = False) -> bool:
    """True if `octets` can be sent unencoded, as 7bit or, with `eightbit`, as 8bit."""
    return (
        (eightbit or octets.isascii())
        and b"\0" not in octets
        and octets.count(b"\n") == octets.count(b"\r")
        and _LONGEST_LINES.fullmatch(octets) is not None
    )


def _escape(octets: bytes, escaped: bytes, *, text: bool) -> bytes:
    """`octets` with each octet in `escaped` as an escape of quoted-printable."""
    different = set(escaped)
    if len(different) > _FEW:
        return octets.decode("latin-1").translate(_AS_TEXT if text else _AS_DATA).encode("ascii")
    if b"=" in escaped:
        # First: each other escape adds an equals sign.
        octets = octets.replace(b"=", _ESCAPES[ord("=")])
        different.remove(ord("="))
    for octet in different:
        octets = octets.replace(bytes((octet,)), _ESCAPES[octet])
    return octets


def _soft_breaks(octets: bytes) -> bytes:
    """Quoted-printable `octets` in which no line is too long or ends in a blank."""
    if _ENCODED_LINES.fullmatch(octets):
        return octets
    for blank in b" \t":
        octets = octets.replace(b"%c\r\n" % blank, b"%b\r\n" % _ESCAPES[blank])
    if octets.endswith((b" ", b"\t")):
        octets = octets[:-1] + _ESCAPES[octets[-1]]
    pieces: list[bytes] = _UP_TO_SOFT_BREAK.findall(octets)
    # The last match is the empty one at the end.
    return b"=\r\n".join(pieces[:-1])


def _base64(octets: bytes) -> bytes:
    encoded = binascii.b2a_base64(octets, newline=False)
    lines: list[bytes] = []
    blocks = len(encoded) - len(encoded) % _base64_lines.size
    for start in range(0, blocks, _base64_lines.size):
        lines += _base64_lines.unpack_from(encoded, start)
    lines += [encoded[n : n + _ENCODED] for n in range(blocks, len(encoded), _ENCODED)]
    return b"\r\n".join(lines)
