"""MIME parts, and how they become the octets of a message."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from ...exceptions import MessageTooLarge
from .gate import MAX_CONTENT
from .header_check import check_field
from .header_write import fold


class Part(NamedTuple):
    """A MIME part: an encoded body with its headers, or a multipart."""

    #: headers with their line ends; empty for a multipart: its boundary is not known yet
    headers: tuple[str, ...]
    #: encoded, with CRLF line ends
    body: bytes = b""
    #: of a multipart: the text after ``multipart/``
    subtype: str = ""
    #: of a multipart: its parts
    parts: tuple[Part, ...] = ()


def multipart(subtype: str, *parts: Part) -> Part:
    """A multipart of `parts`. `subtype` may end with parameters."""
    return Part((), subtype=subtype, parts=parts)


def header_names(part: Part) -> list[str]:
    """The names of the headers that `write_content` writes for `part`."""
    if part.parts:
        return ["Content-Type"]
    return [header.partition(":")[0] for header in part.headers]


def check_part_headers(part: Part) -> None:
    """Raise `BadHeaders` if a header of `part`, or of a part in it, is not exactly one header."""
    for header in part.headers:
        check_field(header.partition(":")[0], header.encode())
    for child in part.parts:
        check_part_headers(child)


def write_content(
    headers: Sequence[str], part: Part, message_id: str
) -> tuple[bytes, dict[bytes, int]]:
    """The octets of a message, and the number of delimiter lines for each boundary in it.

    The same arguments give the same octets, boundaries included. Boundaries are made from the
    Message-ID, which the author of a body does not know. If a body has one of them all the same,
    they are made from the hash of the whole content: no text can have its own hash in it.
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
    """The beginning of all boundaries of a message. The same `seed` gives the same one."""
    # "=_" occurs neither in base64 nor in quoted-printable (RFC 2045 section 6.7). The header has
    # room for 96 bits on one line.
    return f"=_{hashlib.sha256(seed).hexdigest()[:24]}"


def _write_part(part: Part, stem: str, chunks: list[bytes], boundaries: dict[bytes, int]) -> None:
    # Recursive: a `Message` is at most four parts deep.
    if not part.parts:
        chunks += ("".join((*part.headers, "\r\n")).encode(), part.body)
        return
    # All boundaries have one length: none is the beginning of another.
    boundary = f"{stem}{len(boundaries):X}"
    delimiter = f"\r\n--{boundary}".encode()
    boundaries[delimiter[4:]] = len(part.parts) + 1
    tokens = (f"multipart/{part.subtype};", f'boundary="{boundary}"')
    chunks.append(fold("Content-Type", tokens).encode())
    # The line end before a delimiter belongs to the delimiter, not to the body (RFC 2046 section
    # 5.1.1). The first one ends the headers.
    for child in part.parts:
        chunks += (delimiter, b"\r\n")
        _write_part(child, stem, chunks, boundaries)
    chunks += (delimiter, b"--\r\n")
