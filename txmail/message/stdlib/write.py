"""Writes a message of the standard library as octets with CRLF line ends.

`txmail.message.stdlib.headers` writes the headers, `txmail.message.stdlib.signed` the signed parts.
Other bodies stay as the standard library has them.
"""

from __future__ import annotations

from email.policy import Policy
from typing import Any

from ...exceptions import InvalidMessage
from ..mime.encodings import crlf
from ..mime.header_check import check_field
from .headers import write_header
from .signed import (
    AnyMessage,
    is_signed_message,
    is_signed_part,
    signed_body,
    signed_message,
)


def write(message: AnyMessage) -> bytes:
    """The octets of `message`. Each multipart has a boundary already.

    Raises `MessageError` or `AddressError` for a message that cannot be written.
    """
    chunks: list[bytes] = []
    _write_part(message, message.policy, chunks, utf8=True)
    content = b"".join(chunks)
    return content if content.endswith(b"\r\n") else content + b"\r\n"


# Recursive: `convert` has checked the depth.


def _write_part(
    part: AnyMessage, policy: Policy[Any], chunks: list[bytes], *, utf8: bool = False
) -> None:
    """Write a message, or a part of a message with `policy`. `utf8` allows UTF-8 in its headers."""
    if is_signed_message(part):
        chunks.append(signed_message(part, policy))
        return
    for name, value in part.raw_items():
        octets = write_header(name, value, utf8=utf8)
        check_field(name, octets)
        chunks.append(octets)
    chunks.append(b"\r\n")
    payload: Any = vars(part).get("_payload")
    if not isinstance(payload, list):
        chunks.append(_lines(payload))
    elif is_signed_part(part):
        chunks.append(signed_body(part, policy))
    elif part.get_content_maintype() == "multipart":
        _write_parts(part, payload, policy, chunks)
    elif part.get_content_type() == "message/delivery-status":
        _write_blocks(payload, policy, chunks)
    elif part.get_content_maintype() == "message" and len(payload) == 1:
        # A message of its own: it may have been signed earlier, under its own policy.
        _write_part(payload[0], payload[0].policy, chunks)
    else:
        problem = f"{part.get_content_type()} cannot have {len(payload)} parts"
        raise InvalidMessage(problem, field="Content-Type")


def _write_parts(
    part: AnyMessage, payload: list[AnyMessage], policy: Policy[Any], chunks: list[bytes]
) -> None:
    delimiter = f"--{part.get_boundary()}".encode("ascii")
    if part.preamble is not None:
        chunks += (_lines(part.preamble), b"\r\n")
    for child in payload:
        chunks += (delimiter, b"\r\n")
        _write_part(child, policy, chunks)
        chunks.append(b"\r\n")
    chunks += (delimiter, b"--\r\n")
    if part.epilogue is not None:
        chunks.append(_lines(part.epilogue))


def _write_blocks(payload: list[AnyMessage], policy: Policy[Any], chunks: list[bytes]) -> None:
    """Write groups of headers with an empty line between them (RFC 3464 section 2.1)."""
    for block in payload:
        _write_part(block, policy, chunks)
    if chunks[-1] == b"" and chunks[-2] == b"\r\n":
        del chunks[-2:]


def _lines(text: str | None) -> bytes:
    """The octets, with CRLF line ends, of the text of a part."""
    if text is None:
        return b""
    if not isinstance(text, str):
        raise InvalidMessage("a body must be text", field="content")
    try:
        return crlf(text.encode("ascii", "surrogateescape"))
    except UnicodeEncodeError:
        raise InvalidMessage(
            "text beyond ASCII needs a charset; use set_content()", field="content"
        ) from None
