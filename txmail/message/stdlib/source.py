"""Sends a signed message with the octets that a parser has read, if they are still there."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ...common.ascii_text import ascii_lower
from ...envelope import Envelope, header_section, pass_gate
from ...exceptions import FieldError
from ..mime import gate
from ..mime.encodings import crlf
from .signed import AnyMessage, is_signed_message, is_signed_part

_FIELD = re.compile(rb"(?<![^\n])([!-9;-~]++):[^\n]*+\n(?:(?>[ \t][^\n]*+\n))*+")


def with_source(
    envelope: Envelope, message: AnyMessage, source: bytes, *, without: Iterable[str] = ()
) -> Envelope:
    """An envelope like `envelope`, which was made of `message`, with the octets of `source`.

    `message` was parsed from `source`. A parser does not keep all octets, but a signature covers
    all of them. `without` names headers to leave out.

    Returns `envelope` itself if no part of `message` is signed, if the gate refuses `source`, or if
    txmail had to add or remove a header.
    """
    if not any(is_signed_part(part) or is_signed_message(part) for part in message.walk()):
        return envelope
    left_out = {ascii_lower(name).encode("ascii") for name in without}
    source = crlf(source)
    head = header_section(source)
    kept = [f[0] for f in _FIELD.finditer(head) if f[1].lower() not in left_out]
    content = b"".join((*kept, source[len(head) :]))
    names = [f[1].decode("ascii") for f in _FIELD.finditer(header_section(envelope.content))]
    try:
        gate.check(content, intended_headers=names)
    except FieldError:
        return envelope
    return pass_gate(envelope.with_content(content))
