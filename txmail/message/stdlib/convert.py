"""Messages of the standard library: `email.message.EmailMessage` and the older `Message`.

Whatever policy they have, they are walked and checked, copied, and written with CRLF line ends
(`txmail.message.stdlib.write`). What somebody has signed is written as it was.

The envelope's sender is the Sender, or the one author in From; its recipients are those of To, Cc
and Bcc. Resent fields are never read for it: a message that has any goes to nobody unless the
recipients are told, for its To names those it went to long ago (RFC 5322 section 3.6.6).
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
from ..addresses import Entry, overriding, reverse_path
from ..mime import gate
from ..mime.date import new_date
from ..mime.encodings import encode_body
from ..mime.header_check import check_name, check_value, has_ascii_line_ends
from ..mime.header_write import mailbox_header
from ..mime.message_id import new_message_id
from .costs import Purse
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
#: A hard line end in quoted-printable that is not CRLF, and would be made so.
_BARE_LINE_END = re.compile(r"(?<![\r=])\n|(?<!=)\r(?!\n)", re.ASCII)
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]", re.ASCII)


def envelope_of_stdlib(
    message: AnyMessage,
    *,
    sender: Entry | None = None,
    recipients: Iterable[Entry] | None = None,
    default_sender: Entry | None = None,
) -> Envelope:
    """The `Envelope` of `message`, which is not written to. Past the gate.

    Arguments and errors are those of `txmail.message.to_envelope`.
    """
    try:
        return _envelope(message, sender, recipients, default_sender)
    except (TxmailError, MemoryError):
        raise
    except Exception as error:
        # A tree of other people's objects can fail in any way, and the standard library's parsers
        # do on odd headers. Nothing of the text goes into the error.
        problem = f"the standard library cannot handle it ({name_of(type(error))})"
        raise InvalidMessage(problem, field="content") from None


def _envelope(
    message: AnyMessage,
    sender: Entry | None,
    recipients: Iterable[Entry] | None,
    default_sender: Entry | None,
) -> Envelope:
    for _ in _walk(message):
        pass  # no more than may be, before it is copied
    own = copy.deepcopy(message)
    purse = Purse()
    signed = False
    for part in _walk(own):
        _make_plain(part)
        purse.pay(part)
        _check_part(part)
        signed = signed or is_signed_message(part) or is_signed_part(part)
    if signed:
        # The standard library writes them, for which it parses them all.
        for part in _walk(own):
            purse.pay(part, all_headers=True)
    if "From" not in own and default_sender is not None:
        author = parse_mailbox(default_sender, field="default_sender")
        _add(own, "From", mailbox_header("From", [author])[6:-2])
    author = _author(own)
    path = _sole_author(own).address.text if sender is None else reverse_path(sender)
    chosen = _addressees(own) if recipients is None else overriding(recipients)
    _complete(own, author)
    return pass_gate(Envelope(path, tuple(m.address.text for m in chosen), _content(own)))


def _make_plain(part: AnyMessage) -> None:
    """Make the headers and the body of `part`, a copy of a message of the standard library, plain.

    Headers that the standard library has parsed stay: what is written of them is looked at again.
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
    """All parts, the message first; within the bounds, whatever refers to whatever.

    Without `signed`, parts that somebody has signed are left out.
    """
    stack: list[tuple[Any, int]] = [(message, 1)]
    count = 0
    while stack:
        part, depth = stack.pop()
        count += 1
        if not isinstance(part, Message):
            raise InvalidMessage("a part that is no message", field="content")
        if depth > gate.MAX_NESTING:
            raise MessageTooLarge(f"nested more than {gate.MAX_NESTING} deep", field="content")
        if count > gate.MAX_PARTS:
            raise MessageTooLarge(f"more than {gate.MAX_PARTS} parts", field="content")
        if not signed and is_signed_message(part):
            continue
        yield part
        # Not get_payload(), which has another header parsed.
        payload: Any = vars(part).get("_payload")
        if isinstance(payload, list) and (signed or not is_signed_part(part)):
            stack += [(child, depth + 1) for child in payload[: gate.MAX_PARTS + 1]]


def _check_part(part: AnyMessage) -> None:
    """Refuse headers and structures that cannot come out as what they are meant to be."""
    for name, value in part.raw_items():
        check_name(name, "headers")
        check_value(
            text_of(name, value), name, tab=True, parameter=ascii_lower(name) in PARAMETER_HEADERS
        )
    if part.get_content_maintype() == "multipart":
        if not part.is_multipart() or not part.get_payload():
            problem = f"{part.get_content_type()} without parts; a part begins with its boundary"
            raise InvalidMessage(problem, field="Content-Type")
        boundary = part.get_boundary()
        if boundary is not None and _BOUNDARY.fullmatch(boundary) is None:
            raise BadHeaders("not a boundary", field="Content-Type", value=boundary)


def _mailboxes(message: AnyMessage, name: str) -> list[Mailbox]:
    """The mailboxes of all headers called `name`, those inside groups too."""
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
        raise InvalidMessage("there is none, and no default", field="From")
    return authors[0]


def _sole_author(message: AnyMessage) -> Mailbox:
    for name in ("Sender", "From"):
        mailboxes = _mailboxes(message, name)
        if len(mailboxes) == 1:
            return mailboxes[0]
        if len(mailboxes) > 1:
            problem = "more than one address"
            if name == "From":
                problem += ", and no Sender: add that header, or give sender"
            raise InvalidMessage(problem, field=name)
    raise InvalidMessage("there is none, and no default", field="From")


def _addressees(message: AnyMessage) -> list[Mailbox]:
    if any(ascii_lower(name).startswith("resent-") for name in message.keys()):  # noqa: SIM118
        raise InvalidMessage("must be given for a resent message", field="recipients")
    found = [mailbox for name in ("To", "Cc", "Bcc") for mailbox in _mailboxes(message, name)]
    if not found:
        raise InvalidMessage("there is none", field="recipients")
    return found


def _complete(message: AnyMessage, author: Mailbox) -> None:
    """Take away what must not be sent and add what has to be there."""
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
    """Encode a body that cannot be sent as it is: octets above 127, long lines, data as lines."""
    # The raw text: get_payload() decodes octets of 8-bit bodies, and guesses where it cannot.
    raw = vars(part).get("_payload")
    kind = part.get_content_maintype()
    if kind in ("multipart", "message") or not isinstance(raw, str):
        return
    encoding = ascii_lower(ascii_strip(str(part.get("Content-Transfer-Encoding", "7bit"))))
    text = kind == "text" and has_ascii_line_ends(part.get_content_charset("us-ascii"))
    if raw.isascii() and max(map(len, _LINE_END.split(raw))) <= gate.MAX_LINE:
        # As lines goes what has lines: text, and what is said to consist of them.
        has_lines = text or (kind != "text" and encoding != "binary")
        wide = kind == "text" and not text
        if wide and encoding == "quoted-printable" and _BARE_LINE_END.search(raw):
            # One octet of what is several in this charset: as CRLF, all behind it would be moved.
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
            raise InvalidMessage("text beyond ASCII without a charset", field="content") from None
        encoding = "quoted-printable" if text else "base64"
    else:
        problem = f"a body in {echo(encoding)} that has octets above 127, or a line of more than "
        problem += f"{gate.MAX_LINE}; encode it as base64 or quoted-printable"
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
