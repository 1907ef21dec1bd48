"""Writing: MIME parts around bodies that are already encoded, into the octets of a message."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from ...exceptions import MessageTooLarge
from .gate import MAX_CONTENT
from .header_check import check_field
from .header_write import fold


class Part(NamedTuple):
    """A MIME part to be written: a body with its headers, or a multipart."""

    #: whole headers with their line ends; a multipart's is made when its boundary is known
    headers: tuple[str, ...]
    #: encoded, with CRLF line ends
    body: bytes = b""
    #: of a multipart, what follows ``multipart/``
    subtype: str = ""
    #: of a multipart
    parts: tuple[Part, ...] = ()


def multipart(subtype: str, *parts: Part) -> Part:
    """A multipart around `parts`; `subtype` may have parameters after it."""
    return Part((), subtype=subtype, parts=parts)


def header_names(part: Part) -> list[str]:
    """The names of the headers that `write` writes for `part`."""
    if part.parts:
        return ["Content-Type"]
    return [header.partition(":")[0] for header in part.headers]


def check_headers(part: Part) -> None:
    """Raise `BadHeaders` if a header of `part`, or of a part in it, would not come out as one."""
    for header in part.headers:
        check_field(header.partition(":")[0], header.encode())
    for child in part.parts:
        check_headers(child)


def write(headers: Sequence[str], part: Part, message_id: str) -> tuple[bytes, dict[bytes, int]]:
    """The octets of a message, and for each boundary how many delimiter lines are in them.

    The same for the same arguments, boundaries included. These are made from the Message-ID, which
    nobody knows who writes a body; should one occur in a body all the same, they are made from the
    whole content instead, for no text can have its own hash in it.
    """
    head = "".join(headers)
    seed = message_id.encode()
    while True:
        chunks, boundaries = [head.encode()], dict[bytes, int]()
        _write_part(part, boundary_stem(seed), chunks, boundaries)
        if not chunks[-1].endswith(b"\r\n"):
            chunks.append(b"\r\n")
        if sum(map(len, chunks)) > MAX_CONTENT:
            raise MessageTooLarge(f"more than {MAX_CONTENT} octets", field="content")
        content = b"".join(chunks)
        for boundary, count in boundaries.items():
            if content.count(b"\r\n--" + boundary) != count:
                break
        else:
            return content, boundaries
        seed = content


def boundary_stem(seed: bytes) -> str:
    """What the boundaries of a message begin with, the same for the same `seed`."""
    # The equals sign and underline never come next to each other in base64 or quoted-printable
    # (RFC 2045 section 6.7). 96 bits are as many as the header has room for on one line.
    return f"=_{hashlib.sha256(seed).hexdigest()[:24]}"


def _write_part(part: Part, stem: str, chunks: list[bytes], boundaries: dict[bytes, int]) -> None:
    # Recursive: what is written here is four parts deep at most.
    if not part.parts:
        chunks += ("".join((*part.headers, "\r\n")).encode(), part.body)
        return
    # All of one length, so that none is the beginning of another.
    boundary = f"{stem}{len(boundaries):X}"
    delimiter = f"\r\n--{boundary}".encode()
    boundaries[delimiter[4:]] = len(part.parts) + 1
    tokens = (f"multipart/{part.subtype};", f'boundary="{boundary}"')
    chunks.append(fold("Content-Type", tokens).encode())
    # A line end in front of a delimiter belongs to the delimiter, not to the body before it
    # (RFC 2046 section 5.1.1); the first one ends the headers.
    for child in part.parts:
        chunks += (delimiter, b"\r\n")
        _write_part(child, stem, chunks, boundaries)
    chunks += (delimiter, b"--\r\n")
