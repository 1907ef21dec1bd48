"""Writes signed parts of messages of the standard library as they were signed.

A signature covers octets: the application has serialised and signed them before it sends the
message. The standard library writes two kinds of parts, to get the same octets again:

- the parts of a ``multipart/signed`` (RFC 1847 section 2.1), whose headers are not folded;
- a message with a DKIM-Signature or a similar header (RFC 6376), folded as `as_bytes` folds it.

The policy is that of the message around the part, as in ``message.as_bytes()``. Line ends are CRLF.
Nothing is encoded again. A part that cannot be sent in this form is refused.
"""

from __future__ import annotations

import io
import re
from email.generator import BytesGenerator
from email.message import Message
from email.policy import Policy
from functools import lru_cache
from typing import Any, TypeAlias

from ...common.ascii_text import ascii_lower, ascii_strip
from ...exceptions import BadHeaders, InvalidMessage, TxmailError
from ..mime.encodings import carries, crlf
from ..mime.gate import MAX_LINE
from ..mime.header_check import ADDRESS_HEADERS, check_field
from .headers import groups_of

#: A message as the standard library types it: any policy, any kind of headers.
AnyMessage: TypeAlias = "Message[Any, Any]"

#: Headers with a signature of the headers and the body of their message.
SIGNATURES = frozenset({"dkim-signature", "arc-message-signature", "domainkey-signature"})

_ENVELOPE = "sign the octets that are sent, and hand them in as an Envelope"
_LINE_END = re.compile(r"\r?\n", re.ASCII)
_PARTED = re.compile(r"[\s:]+", re.ASCII)
_COVERED = re.compile(r"(?:^|;)\s*h\s*=([^;]*)", re.IGNORECASE | re.ASCII)


def is_signed_part(part: AnyMessage) -> bool:
    """True if the parts of `part` cannot change: one is a signature of the other."""
    return part.get_content_type() == "multipart/signed"


def is_signed_message(message: AnyMessage) -> bool:
    """True if a header of `message` is a signature of the whole message."""
    return any(ascii_lower(name) in SIGNATURES for name in message.keys())  # noqa: SIM118


def signed_body(part: AnyMessage, policy: Policy[Any]) -> bytes:
    """The body of a ``multipart/signed`` that has a boundary.

    Raises `BadHeaders` or `InvalidMessage` for a body that cannot be sent as it was signed.
    """
    # The headers of `part` are not signed, and written elsewhere.
    bare: AnyMessage = Message(policy=policy)
    bare.set_raw("Content-Type", f'multipart/signed; boundary="{part.get_boundary()}"')
    bare.preamble, bare.epilogue = part.preamble, part.epilogue
    bare.set_payload(part.get_payload())
    octets = _flattened(bare, policy).partition(b"\r\n\r\n")[2]
    problem = (
        "a part of multipart/signed has a NUL or a line of more than {} octets; encode it, as "
    )
    problem += "base64 or quoted-printable, before it is signed"
    return _sendable(octets, problem)


def signed_message(message: AnyMessage, policy: Policy[Any]) -> bytes:
    """The octets of a message with a signature in its headers, as ``as_bytes()`` gives them.

    Raises `BadHeaders` or `InvalidMessage` for a message that cannot be sent as it was signed.
    """
    try:
        octets = _flattened(message, policy)
        _check_addresses(message, policy)
    except BadHeaders as error:
        problem = f"{error} ({_signature(message)} covers the message: {_ENVELOPE})"
        raise BadHeaders(problem, field="") from None
    problem = (
        f"the message has a {_signature(message)}, but also a NUL or a line of more than {{}} "
    )
    problem += "octets, which cannot be sent; encode its parts as base64 or quoted-printable, "
    problem += _ENVELOPE
    return _sendable(octets, problem)


def check_coverage(message: AnyMessage, changed: str) -> None:
    """Raise `InvalidMessage` if a signature in `message` covers the header `changed`.

    txmail has to add or remove this header before it can send the message.
    """
    for name, value in message.raw_items():
        if ascii_lower(name) not in SIGNATURES:
            continue
        covered = _COVERED.search(str(value))
        names = _PARTED.split(ascii_lower(covered[1])) if covered else []
        if ascii_lower(changed) in names:
            problem = f"txmail has to change this header, and {name} covers it; {_ENVELOPE}"
            raise InvalidMessage(problem, field=changed)


def _signature(message: AnyMessage) -> str:
    return next(name for name in message.keys() if ascii_lower(name) in SIGNATURES)  # noqa: SIM118


def _sendable(octets: bytes, problem: str) -> bytes:
    octets = crlf(octets)
    if not carries(octets, eightbit=True):
        raise InvalidMessage(problem.format(MAX_LINE), field="content")
    return octets


def _flattened(message: AnyMessage, policy: Policy[Any]) -> bytes:
    stream = io.BytesIO()
    generator = BytesGenerator(stream, mangle_from_=False, policy=_checking_policy(policy))
    generator.flatten(message, linesep="\r\n")
    return stream.getvalue()


def _checking_policy(policy: Policy[Any]) -> Policy[Any]:
    """A policy that writes headers as `policy` does, and checks each of them."""
    checking = object.__new__(_checking_class(type(policy)))
    for name, value in vars(policy).items():
        object.__setattr__(checking, name, value)
    return checking


@lru_cache(64)
def _checking_class(kind: type[Policy[Any]]) -> type[Policy[Any]]:
    return type(f"_CheckEachHeader{kind.__name__}", (_CheckEachHeader, kind), {})


class _CheckEachHeader:
    """A mixin for policies: checks each header that `fold_binary` has written."""

    def fold_binary(self, name: str, value: Any) -> bytes:
        folded: bytes = super().fold_binary(name, value)  # type: ignore[misc]
        check_field(name, folded, "the standard library does not write it as one header")
        return folded


def _check_addresses(message: AnyMessage, policy: Policy[Any]) -> None:
    """Raise `BadHeaders` if the standard library would change the addresses of a header."""
    for name, value in message.raw_items():
        if ascii_lower(name) in ADDRESS_HEADERS:
            folded = policy.fold_binary(name, value).partition(b":")[2]
            written = _LINE_END.sub("", folded.decode("ascii", "surrogateescape"))
            if _addresses(name, ascii_strip(written)) != _addresses(name, value):
                problem = "the standard library would write other addresses, or none"
                raise BadHeaders(problem, field=name)


def _addresses(name: str, value: Any) -> list[str] | None:
    """The addresses in a header; None if it is no address list."""
    try:
        groups = groups_of(name, value)
    except TxmailError:
        return None
    return [mailbox.address.addr_spec for _, mailboxes in groups for mailbox in mailboxes]
