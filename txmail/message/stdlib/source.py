"""A signed message that is still there as it was read: its octets, and not what a parser kept."""

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
    """`envelope`, made of `message`, with the octets that `message` was parsed from.

    A parser does not keep all octets, which signatures are over. `without` names headers that are
    left out. `envelope` itself is returned if nothing in `message` is signed, or `source` cannot be
    sent as it is, because of the gate or a header that had to be added or taken away.
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
