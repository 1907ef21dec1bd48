"""What somebody has signed: octets that go out as the standard library writes them.

A signature is over octets. Two kinds of subtree of a message were serialised and hashed before the
message is handed in, and are written by the standard library, header by header as it folds them:

- what is below ``multipart/signed`` (RFC 1847 section 2.1), where the library does not fold;
- a whole message that has a DKIM-Signature or one of its kin (RFC 6376), folded as `as_bytes` does.

The policy is that of the message which the subtree belongs to, as in ``message.as_bytes()``; line
ends are CRLF. Nothing is encoded anew. What cannot be sent in that form is refused.
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

#: Headers with a signature over the headers and the body of their message.
SIGNATURES = frozenset({"dkim-signature", "arc-message-signature", "domainkey-signature"})

_ENVELOPE = "sign the octets that are sent, and hand them in as an Envelope"
_LINE_END = re.compile(r"\r?\n", re.ASCII)
_PARTED = re.compile(r"[\s:]+", re.ASCII)
_COVERED = re.compile(r"(?:^|;)\s*h\s*=([^;]*)", re.IGNORECASE | re.ASCII)


def is_signed_part(part: AnyMessage) -> bool:
    """True if the parts of `part` must not change, for one is a signature over another."""
    return part.get_content_type() == "multipart/signed"


def is_signed_message(message: AnyMessage) -> bool:
    """True if a header of `message` is a signature over all of it."""
    return any(ascii_lower(name) in SIGNATURES for name in message.keys())  # noqa: SIM118


def signed_body(part: AnyMessage, policy: Policy[Any]) -> bytes:
    """The body of a ``multipart/signed`` that has a boundary.

    Raises `BadHeaders` or `InvalidMessage` for what cannot be sent as it was signed.
    """
    # Headers of its own: those of `part` are not signed, and written by others.
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
    """The octets of a message with a signature in its headers, as ``as_bytes()`` has them.

    Raises `BadHeaders` or `InvalidMessage` for what cannot be sent as it was signed.
    """
    try:
        octets = _flattened(message, policy)
        _check_addresses(message, policy)
    except BadHeaders as error:
        problem = f"{error} ({_signature(message)} covers the message: {_ENVELOPE})"
        raise BadHeaders(problem, field="") from None
    problem = f"the message has a {_signature(message)}, and a NUL or a line of more than {{}} "
    problem += "octets, so that it cannot be sent as it was signed; encode its parts, as base64 or "
    problem += f"quoted-printable, {_ENVELOPE}"
    return _sendable(octets, problem)


def check_coverage(message: AnyMessage, changed: str) -> None:
    """Raise `InvalidMessage` if a signature in `message` covers the header `changed`.

    That is one which has to be added or taken away before the message can be sent.
    """
    for name, value in message.raw_items():
        if ascii_lower(name) not in SIGNATURES:
            continue
        covered = _COVERED.search(str(value))
        names = _PARTED.split(ascii_lower(covered[1])) if covered else []
        if ascii_lower(changed) in names:
            problem = f"{name} covers it, and it cannot be sent so; {_ENVELOPE}"
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
    generator = BytesGenerator(stream, mangle_from_=False, policy=_watched(policy))
    generator.flatten(message, linesep="\r\n")
    return stream.getvalue()


def _watched(policy: Policy[Any]) -> Policy[Any]:
    """A policy that writes headers just as `policy` does, and looks at each before it is taken."""
    watched = object.__new__(_watching(type(policy)))
    for name, value in vars(policy).items():
        object.__setattr__(watched, name, value)
    return watched


@lru_cache(64)
def _watching(kind: type[Policy[Any]]) -> type[Policy[Any]]:
    return type(f"_Watching{kind.__name__}", (_Watching, kind), {})


class _Watching:
    """To be mixed in: `fold_binary` of a policy, and the gate of one header behind it."""

    def fold_binary(self, name: str, value: Any) -> bytes:
        folded: bytes = super().fold_binary(name, value)  # type: ignore[misc]
        check_field(name, folded, "the standard library does not write it as one header")
        return folded


def _check_addresses(message: AnyMessage, policy: Policy[Any]) -> None:
    """Raise `BadHeaders` if the addresses of a header are not those that would be written."""
    for name, value in message.raw_items():
        if ascii_lower(name) in ADDRESS_HEADERS:
            folded = policy.fold_binary(name, value).partition(b":")[2]
            written = _LINE_END.sub("", folded.decode("ascii", "surrogateescape"))
            if _addresses(name, ascii_strip(written)) != _addresses(name, value):
                problem = "the standard library would write other addresses, or none"
                raise BadHeaders(problem, field=name)


def _addresses(name: str, value: Any) -> list[str] | None:
    """The addresses in a header; None for what is no list of them."""
    try:
        groups = groups_of(name, value)
    except TxmailError:
        return None
    return [mailbox.address.addr_spec for _, mailboxes in groups for mailbox in mailboxes]
