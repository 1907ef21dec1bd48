"""Messages of the standard library to envelopes: `EmailMessage` and the older `Message`.

A message may have any policy. txmail checks and copies it, completes the copy, and writes it with
CRLF line ends (`txmail.message.stdlib.write`). Signed parts are written as they were signed.

The sender of the envelope is the Sender, or the one author in From. Its recipients are those of To,
Cc and Bcc. A message with resent headers needs explicit recipients: its To names the recipients of
the first time (RFC 5322 section 3.6.6).
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable, Iterator
from email.header import Header
from email.message import Message
from typing import Any

from ...address import Mailbox, parse_mailbox, plain_text
from ...common.ascii_text import ascii_lower, ascii_strip
from ...common.shown import echo, name_of
from ...envelope import Envelope, pass_gate
from ...exceptions import (
    BadHeaders,
    InvalidMessage,
    MessageTooLarge,
    TxmailError,
)
from ..addresses import AddressLike, parse_envelope_sender, parse_recipients
from ..mime import gate
from ..mime.date import new_date
from ..mime.encodings import encode_body
from ..mime.header_check import check_name, check_value, has_ascii_line_ends
from ..mime.header_write import mailbox_header
from ..mime.message_id import new_message_id
from .costs import ParseQuota
from .headers import PARAMETER_HEADERS, groups_of, text_of
from .signed import (
    AnyMessage,
    check_coverage,
    is_signed_message,
    is_signed_part,
)
from .write import write

_UNENCODED = ("7bit", "8bit", "binary")
_LINE_END = re.compile(r"\r\n|\r|\n", re.ASCII)
#: A hard line end in quoted-printable that is not CRLF.
_BARE_LINE_END = re.compile(r"(?<![\r=])\n|(?<!=)\r(?!\n)", re.ASCII)
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]", re.ASCII)


def envelope_of_stdlib(
    message: AnyMessage,
    *,
    sender: AddressLike | None = None,
    recipients: Iterable[AddressLike] | None = None,
    default_sender: AddressLike | None = None,
) -> Envelope:
    """The `Envelope` of `message`. The gate has checked it; `message` itself does not change.

    Arguments and errors are those of `txmail.message.to_envelope`.
    """
    try:
        return _envelope(message, sender, recipients, default_sender)
    except (TxmailError, MemoryError):
        raise
    except Exception as error:
        # Foreign objects, and parsers of the standard library, may raise anything. Their errors may
        # repeat the text: only the type is shown.
        problem = f"the standard library cannot read or write it ({name_of(type(error))})"
        raise InvalidMessage(problem, field="content") from None


def _envelope(
    message: AnyMessage,
    sender: AddressLike | None,
    recipients: Iterable[AddressLike] | None,
    default_sender: AddressLike | None,
) -> Envelope:
    for _ in _walk(message):
        pass  # checks the limits before the copy is made
    own = copy.deepcopy(message)
    quota = ParseQuota()
    signed = False
    for part in _walk(own):
        _make_plain(part)
        quota.charge(part)
        _check_part(part)
        signed = signed or is_signed_message(part) or is_signed_part(part)
    if signed:
        # To write signed parts, the standard library parses all headers.
        for part in _walk(own):
            quota.charge(part, all_headers=True)
    if "From" not in own and default_sender is not None:
        author = parse_mailbox(default_sender, field="default_sender")
        _add(own, "From", mailbox_header("From", [author])[6:-2])
    author = _author(own)
    path = _sole_author(own).address.text if sender is None else parse_envelope_sender(sender)
    chosen = _header_recipients(own) if recipients is None else parse_recipients(recipients)
    _complete_headers(own, author)
    return pass_gate(Envelope(path, tuple(m.address.text for m in chosen), _content(own)))


def _make_plain(part: AnyMessage) -> None:
    """Make the headers and the body of `part`, a copy, plain `str` (`plain_copy` says why).

    Headers that the standard library has parsed stay: they are checked once more when written.
    """
    own = vars(part)
    own["_headers"] = [
        (
            plain_text(name),
            value if isinstance(value, Header) or hasattr(value, "defects") else plain_text(value),
        )
        for name, value in part.raw_items()
    ]
    for name in ("_payload", "preamble", "epilogue"):
        own[name] = plain_text(own.get(name))


def _walk(message: AnyMessage, *, signed: bool = True) -> Iterator[AnyMessage]:
    """All parts, the message first. Without `signed`, parts with a signature are left out.

    Raises `MessageTooLarge` beyond the limits, so that a message that contains itself ends too.
    """
    stack: list[tuple[Any, int]] = [(message, 1)]
    count = 0
    while stack:
        part, depth = stack.pop()
        count += 1
        if not isinstance(part, Message):
            raise InvalidMessage("a part is not a message of the standard library", field="content")
        if depth > gate.MAX_NESTING:
            raise MessageTooLarge(f"nested more than {gate.MAX_NESTING} deep", field="content")
        if count > gate.MAX_PARTS:
            raise MessageTooLarge(f"more than {gate.MAX_PARTS} parts", field="content")
        if not signed and is_signed_message(part):
            continue
        yield part
        # get_payload() would parse a header.
        payload: Any = vars(part).get("_payload")
        if isinstance(payload, list) and (signed or not is_signed_part(part)):
            stack += [(child, depth + 1) for child in payload[: gate.MAX_PARTS + 1]]


def _check_part(part: AnyMessage) -> None:
    """Raise `BadHeaders` or `InvalidMessage` for headers and multiparts that cannot be written."""
    for name, value in part.raw_items():
        check_name(name, "headers")
        check_value(
            text_of(name, value), name, tab=True, parameter=ascii_lower(name) in PARAMETER_HEADERS
        )
    if part.get_content_maintype() == "multipart":
        if not part.is_multipart() or not part.get_payload():
            problem = f"{part.get_content_type()} has no parts; a part begins with its boundary"
            raise InvalidMessage(problem, field="Content-Type")
        boundary = part.get_boundary()
        if boundary is not None and _BOUNDARY.fullmatch(boundary) is None:
            raise BadHeaders("not a boundary", field="Content-Type", value=boundary)


def _mailboxes(message: AnyMessage, name: str) -> list[Mailbox]:
    """The mailboxes of all headers called `name`, including those in groups."""
    return [
        mailbox
        for key, value in message.raw_items()
        if ascii_lower(key) == ascii_lower(name)
        for _, mailboxes in groups_of(key, value)
        for mailbox in mailboxes
    ]


def _author(message: AnyMessage) -> Mailbox:
    authors = _mailboxes(message, "From")
    if not authors:
        raise InvalidMessage("the header is missing; add it, or set a default sender", field="From")
    return authors[0]


def _sole_author(message: AnyMessage) -> Mailbox:
    for name in ("Sender", "From"):
        mailboxes = _mailboxes(message, name)
        if len(mailboxes) == 1:
            return mailboxes[0]
        if len(mailboxes) > 1:
            problem = "there is more than one address"
            if name == "From":
                problem += ", and no Sender: add that header, or give sender"
            raise InvalidMessage(problem, field=name)
    raise InvalidMessage("the header is missing; add it, or set a default sender", field="From")


def _header_recipients(message: AnyMessage) -> list[Mailbox]:
    if any(ascii_lower(name).startswith("resent-") for name in message.keys()):  # noqa: SIM118
        raise InvalidMessage("a resent message has none of its own; give them", field="recipients")
    found = [mailbox for name in ("To", "Cc", "Bcc") for mailbox in _mailboxes(message, name)]
    if not found:
        raise InvalidMessage("there are none; add To, or give recipients", field="recipients")
    return found


def _complete_headers(message: AnyMessage, author: Mailbox) -> None:
    """Remove headers that cannot be sent, and add required headers and boundaries."""
    for name in ("Bcc", "Resent-Bcc"):
        if name in message:
            check_coverage(message, name)
            del message[name]
    if "Date" not in message:
        _add(message, "Date", new_date())
    if "Message-ID" not in message:
        _add(message, "Message-ID", new_message_id(author))
    for part in _walk(message):
        if part.get_content_maintype() == "multipart" and part.get_boundary() is None:
            part.set_boundary(f"=_{os.urandom(12).hex()}")
    for part in _walk(message, signed=False):
        _make_sendable(part)


def _add(message: AnyMessage, name: str, value: str) -> None:
    check_coverage(message, name)
    message.set_raw(name, value)


def _make_sendable(part: AnyMessage) -> None:
    """Encode a body that cannot be sent as it is: with octets above 127, or long lines."""
    # get_payload() would decode 8-bit bodies, and guess their charset.
    raw = vars(part).get("_payload")
    kind = part.get_content_maintype()
    if kind in ("multipart", "message") or not isinstance(raw, str):
        return
    encoding = ascii_lower(ascii_strip(str(part.get("Content-Transfer-Encoding", "7bit"))))
    text = kind == "text" and has_ascii_line_ends(part.get_content_charset("us-ascii"))
    if raw.isascii() and max(map(len, _LINE_END.split(raw))) <= gate.MAX_LINE:
        # Text has lines. Other bodies have lines unless they are declared as binary.
        has_lines = text or (kind != "text" and encoding != "binary")
        wide = kind == "text" and not text
        if wide and encoding == "quoted-printable" and _BARE_LINE_END.search(raw):
            # The octet is a part of a character here: a CRLF in its place would move all others.
            _set_body(part, bytes(part.get_payload(decode=True)), "base64", text=False)
            return
        if encoding not in _UNENCODED or has_lines:
            return
    if encoding in ("base64", "quoted-printable"):
        octets = bytes(part.get_payload(decode=True))
    elif encoding in _UNENCODED:
        try:
            octets = raw.encode("ascii", "surrogateescape")
        except UnicodeEncodeError:
            raise InvalidMessage(
                "text beyond ASCII needs a charset; use set_content()", field="content"
            ) from None
        encoding = "quoted-printable" if text else "base64"
    else:
        problem = f"a body in {echo(encoding)} has octets above 127, or a line of more than "
        problem += f"{gate.MAX_LINE} octets; encode it as base64 or quoted-printable"
        raise InvalidMessage(problem, field="Content-Transfer-Encoding")
    _set_body(part, octets, encoding, text=text)


def _set_body(part: AnyMessage, octets: bytes, encoding: str, *, text: bool) -> None:
    del part["Content-Transfer-Encoding"]
    part.set_raw("Content-Transfer-Encoding", encoding)
    part.set_payload(encode_body(octets, encoding, text=text, field="content").decode("ascii"))


def _content(message: AnyMessage) -> bytes:
    content = write(message)
    gate.check(content, intended_headers=message.keys(), boundaries=_boundaries(message))
    return content


def _boundaries(message: AnyMessage) -> dict[bytes, int]:
    counts: dict[bytes, int] = {}
    for part in _walk(message):
        boundary = part.get_boundary()
        if part.get_content_maintype() == "multipart" and boundary is not None:
            key = boundary.encode("ascii")
            counts[key] = counts.get(key, 0) + len(part.get_payload()) + 1
    return counts
