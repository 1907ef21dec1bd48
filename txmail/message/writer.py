"""Writing: one header at a time, and MIME parts around bodies that are already encoded.

Everything written here is text to be shown, never text to be read again: what looks like an encoded
word is encoded, so that the receiver sees what the caller wrote. Values have been checked
(`txmail.message.headers`) before they come here. Lines are folded at 76 octets where they can be
(RFC 2047 section 2), and headers end in CRLF.
"""

from __future__ import annotations

import binascii
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..address import Mailbox
from ..exceptions import InvalidMessage, MessageTooLarge
from .gate import MAX_CONTENT
from .headers import looks_encoded

#: Octets of a line with encoded words in it (RFC 2047 section 2), and the goal for all others.
LINE = 76
#: Octets of text in an encoded word: 75 less ``=?utf-8?q?`` and ``?=``.
_WORD_ROOM = 63
#: A word of plain text longer than this is encoded, because it could not be folded.
_LONGEST_PLAIN = 900
#: A quoted name or parameter longer than this is written in a form that can be folded.
_LONGEST_QUOTED = 60

_PLAIN_PHRASE = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?: [A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_TOKEN = re.compile(r"[A-Za-z0-9!#$&^_`{|}~.+-]+")
_NEEDS_BACKSLASH = re.compile(r'(["\\])')
_Q_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!*+-/")
_PARAMETER_PLAIN = _Q_PLAIN - frozenset(b"*/") | frozenset(b"._")


def text_header(name: str, text: str) -> str:
    """An unstructured header (RFC 5322 section 2.2.1) that shows `text`."""
    pieces = re.findall(r" *[^ ]+", text)
    plain = (
        text.isascii()
        and text == text.strip(" ")
        and not looks_encoded(text)
        and all(len(piece) <= _LONGEST_PLAIN for piece in pieces)
    )
    if not plain:
        return fold(name, encoded_words(text, LINE - len(name) - 2))
    # Each piece keeps the blanks in front of it: unfolding gives back the very text.
    lines = [f"{name}:"]
    for piece in [f" {pieces[0]}", *pieces[1:]] if pieces else [""]:
        if len(lines[-1]) + len(piece) > LINE and lines != [f"{name}:"]:
            lines.append("")
        lines[-1] += piece
    return "\r\n".join(lines) + "\r\n"


def mailbox_header(name: str, mailboxes: Sequence[Mailbox]) -> str:
    """An address header (RFC 5322 section 3.6.3). Non-ASCII local parts are written in UTF-8."""
    return fold(name, mailbox_tokens(mailboxes, LINE - len(name) - 2))


def mailbox_tokens(mailboxes: Sequence[Mailbox], room: int) -> list[str]:
    """The tokens of an address list, to be joined by a blank or a fold; `room` for the first."""
    tokens: list[str] = []
    for mailbox in mailboxes:
        if tokens:
            tokens[-1] += ","
        if mailbox.display_name:
            tokens += phrase(mailbox.display_name, LINE - 1 if tokens else room)
            tokens.append(f"<{mailbox.address.addr_spec}>")
        else:
            tokens.append(mailbox.address.addr_spec)
    return tokens


def phrase(text: str, room: int = LINE - 1) -> list[str]:
    """The tokens of a phrase (RFC 5322 section 3.2.5) that shows `text`."""
    if text.isascii() and not looks_encoded(text) and len(text) <= _LONGEST_QUOTED:
        if _PLAIN_PHRASE.fullmatch(text):
            return text.split(" ")
        return [quoted(text)]
    return encoded_words(text, room)


def quoted(text: str) -> str:
    """`text`, which is ASCII, as a quoted string (RFC 5322 section 3.2.4)."""
    return '"' + _NEEDS_BACKSLASH.sub(r"\\\1", text) + '"'


def parameter_header(name: str, value: str, parameters: Mapping[str, str]) -> str:
    """A header such as Content-Type with its parameters (RFC 2045 section 5.1, RFC 2231)."""
    tokens = [value]
    for key, text in parameters.items():
        for piece in _parameter(key, text):
            tokens[-1] += ";"
            tokens.append(piece)
    return fold(name, tokens)


def _parameter(key: str, text: str) -> list[str]:
    plain = text.isascii() and not looks_encoded(text) and len(text) <= _LONGEST_QUOTED
    if plain:
        return [f"{key}={text}" if _TOKEN.fullmatch(text) else f"{key}={quoted(text)}"]
    pieces, start = [""], "utf-8''"
    for character in text:
        encoded = "".join(
            [chr(c) if c in _PARAMETER_PLAIN else f"%{c:02X}" for c in character.encode()]
        )
        if len(pieces[-1]) + len(encoded) + len(key) + 16 > LINE and pieces[-1]:
            pieces.append("")
        pieces[-1] += encoded
    if len(pieces) == 1:
        return [f"{key}*={start}{pieces[0]}"]
    return [f"{key}*{n}*={start if n == 0 else ''}{piece}" for n, piece in enumerate(pieces)]


def encoded_words(text: str, room: int = LINE - 1) -> list[str]:
    """`text` as encoded words of UTF-8 (RFC 2047), none splitting a character.

    `room` is how many octets of the line are left for the first of them. The shorter of the
    encodings Q and B is taken for all.
    """
    raw = text.encode()
    needs_three = sum(1 for octet in raw if octet not in _Q_PLAIN and octet != 0x20)
    as_q = len(raw) + 2 * needs_three <= (len(raw) + 2) // 3 * 4
    limit = max(min(room - 12, _WORD_ROOM), 12)
    words = []
    for chunk in _chunks(text, limit, as_q):
        if as_q:
            words.append(f"=?utf-8?q?{''.join([_q(octet) for octet in chunk])}?=")
        else:
            encoded = binascii.b2a_base64(chunk, newline=False).decode("ascii")
            words.append(f"=?utf-8?b?{encoded}?=")
    return words


def _chunks(text: str, limit: int, as_q: bool) -> Iterator[bytes]:
    chunk, size = bytearray(), 0
    for character in text:
        octets = character.encode()
        if as_q:
            size += sum(len(_q(octet)) for octet in octets)
        else:
            size = (len(chunk) + len(octets) + 2) // 3 * 4
        if size > limit and chunk:
            yield bytes(chunk)
            chunk.clear()
            limit = _WORD_ROOM
            size = sum(len(_q(octet)) for octet in octets)
        chunk += octets
    if chunk:
        yield bytes(chunk)


def _q(octet: int) -> str:
    if octet == 0x20:
        return "_"
    return chr(octet) if octet in _Q_PLAIN else f"={octet:02X}"


def fold(name: str, tokens: Iterable[str]) -> str:
    """A header of `tokens`, which may be parted by a line end in front of the blank between."""
    lines = [f"{name}:"]
    for token in tokens:
        if len(lines[-1]) + 1 + len(token) > LINE and lines != [f"{name}:"]:
            lines.append("")
        lines[-1] += f" {token}"
    return "\r\n".join(lines) + "\r\n"


@dataclass(frozen=True, slots=True)
class Part:
    """A MIME part to be written."""

    #: whole headers with their line ends
    headers: tuple[str, ...]
    #: encoded, with CRLF line ends
    body: bytes = b""
    #: the parts of a multipart
    parts: tuple[Part, ...] = ()
    #: the multipart's boundary
    boundary: str = ""


def multipart(subtype: str, parts: Sequence[Part], **parameters: str) -> Part:
    """A multipart around `parts` with a boundary of its own."""
    # The equals sign and underline never come next to each other in base64 or quoted-printable
    # (RFC 2045 section 6.7), the random part takes care of the rest and the gate counts.
    boundary = f"=_{secrets.token_hex(16)}"
    header = parameter_header(
        "Content-Type", f"multipart/{subtype}", {**parameters, "boundary": boundary}
    )
    return Part((header,), parts=tuple(parts), boundary=boundary)


def write(headers: Iterable[str], part: Part) -> tuple[bytes, dict[bytes, int]]:
    """The octets of a message, and for each boundary how many delimiter lines are in them."""
    chunks = [header.encode() for header in headers]
    boundaries: dict[bytes, int] = {}
    _write_part(part, chunks, boundaries)
    if not chunks[-1].endswith(b"\r\n"):
        chunks.append(b"\r\n")
    if sum(map(len, chunks)) > MAX_CONTENT:
        raise MessageTooLarge(f"more than {MAX_CONTENT} octets", field="content")
    return b"".join(chunks), boundaries


def _write_part(part: Part, chunks: list[bytes], boundaries: dict[bytes, int]) -> None:
    # Recursive: what is written here is four parts deep at most.
    chunks += [header.encode() for header in part.headers]
    chunks.append(b"\r\n")
    if not part.parts:
        chunks.append(part.body)
        return
    boundary = part.boundary.encode()
    # A line end in front of a delimiter belongs to the delimiter, not to the body before it
    # (RFC 2046 section 5.1.1); in front of the first there is the end of the headers.
    for number, child in enumerate(part.parts):
        chunks.append(b"--%b\r\n" % boundary if number == 0 else b"\r\n--%b\r\n" % boundary)
        _write_part(child, chunks, boundaries)
    chunks.append(b"\r\n--%b--\r\n" % boundary)
    boundaries[boundary] = len(part.parts) + 1


def crlf(octets: bytes) -> bytes:
    """`octets` with every line end, of whatever kind, made CRLF."""
    # Three passes in C beat one of a regular expression by far.
    return octets.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")


def encode_body(octets: bytes, encoding: str, *, text: bool, field: str) -> bytes:
    """`octets` in a Content-Transfer-Encoding (RFC 2045 section 6), with CRLF line ends.

    `text` says that line ends are line ends, not data, and become CRLF; base64 keeps them all the
    same. Raises `InvalidMessage`, naming `field`, if 7bit or 8bit cannot carry `octets`.
    """
    if encoding == "base64":
        return _base64(octets)
    if text:
        octets = crlf(octets)
    if encoding == "quoted-printable":
        return crlf(binascii.b2a_qp(octets, istext=text))
    if not carries(octets, 998, eightbit=encoding == "8bit"):
        raise InvalidMessage(f"cannot be carried as {encoding}", field=field)
    return octets


def carries(octets: bytes, longest: int, *, eightbit: bool = False) -> bool:
    """True if `octets` can stand as they are, with lines of at most `longest` octets."""
    ends = octets.count(b"\r\n")
    return (
        (eightbit or octets.isascii())
        and b"\0" not in octets
        and octets.count(b"\n") == octets.count(b"\r") == ends
        and max(map(len, octets.split(b"\r\n"))) <= longest
    )


def best_encoding(octets: bytes) -> str:
    """7bit if text can be read as it is, otherwise the shorter of the two encodings."""
    if carries(octets, 78):
        return "7bit"
    plain = len(octets.translate(None, bytes(range(128, 256))))
    return "quoted-printable" if (len(octets) - plain) * 6 <= len(octets) else "base64"


def _base64(octets: bytes) -> bytes:
    lines = [
        binascii.b2a_base64(octets[start : start + 57], newline=False)
        for start in range(0, len(octets), 57)
    ]
    return b"\r\n".join(lines)
