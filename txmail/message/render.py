"""From `Message` to content octets: which headers, and how the parts are put together.

What goes where (RFC 2046 section 5.1, RFC 2387)::

    mixed                       if there are attachments
        alternative             if there is text and HTML
            text
            related             if attachments are shown in the HTML
                html
                images ...
        attachments ...
"""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import TYPE_CHECKING

from ..address import Mailbox, parse_mailbox
from ..exceptions import BadHeaders, InvalidMessage, MessageTooLarge
from . import gate
from .attachment import Attachment
from .writer import (
    Part,
    best_encoding,
    crlf,
    encode_body,
    mailbox_header,
    multipart,
    parameter_header,
    text_header,
    write,
)

if TYPE_CHECKING:
    from .message import Message

_MESSAGE_ID = re.compile(
    r"<[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+@(?:[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+|\[[!-Z^-~]*\])>"
)
_MAX_MESSAGE_ID = 250

#: Extra headers that hold a mailbox, not text.
_MAILBOX_HEADERS = frozenset(
    {"sender", "errors-to", "disposition-notification-to", "return-receipt-to"}
)


def render(message: Message, author: Mailbox) -> bytes:
    """The content of `message`, written by `author`, past the gate.

    Raises `MessageError` or `AddressError`, naming the argument at fault.
    """
    part = _body(message)
    headers = _headers(message, author)
    content, boundaries = write(headers, part)
    names = [header.partition(":")[0] for header in (*headers, *part.headers)]
    gate.check(content, intended_headers=names, boundaries=boundaries)
    return content


def new_message_id(author: Mailbox) -> str:
    """A Message-ID nobody else has, in the author's domain; it tells nothing of this host."""
    return f"<{secrets.token_hex(16)}@{author.address.domain}>"


def new_date() -> str:
    """The present time as a Date header has it, in UTC (RFC 5322 section 3.3)."""
    return format_datetime(datetime.now(UTC))


def _headers(message: Message, author: Mailbox) -> list[str]:
    headers = [mailbox_header("From", [author])]
    for name, field, entries in (
        ("To", "recipients", message.recipients),
        ("Cc", "cc", message.cc),
    ):
        if entries:
            mailboxes = [parse_mailbox(entry, field=field) for entry in entries]
            headers.append(mailbox_header(name, mailboxes))
    if replies := message.replies():
        headers.append(mailbox_header("Reply-To", replies))
    if message.subject:
        headers.append(text_header("Subject", message.subject))
    date = new_date() if message.date is None else format_datetime(message.date)
    headers.append(f"Date: {date}\r\n")
    headers.append(f"Message-ID: {_message_id(message, author)}\r\n")
    for name, value in message.header_pairs():
        if name.lower() in _MAILBOX_HEADERS:
            headers.append(mailbox_header(name, [parse_mailbox(value, field=name)]))
        else:
            headers.append(text_header(name, value))
    headers.append("MIME-Version: 1.0\r\n")
    return headers


def _message_id(message: Message, author: Mailbox) -> str:
    given = message.message_id
    if given is None:
        return new_message_id(author)
    if len(given) > _MAX_MESSAGE_ID or "=?" in given or _MESSAGE_ID.fullmatch(given) is None:
        raise BadHeaders("not a Message-ID", field="message_id", value=given)
    return given


def _body(message: Message) -> Part:
    if len(message.attachments) + 5 > gate.MAX_PARTS:
        raise MessageTooLarge(f"more than {gate.MAX_PARTS} parts", field="attachments")
    related: list[Part] = []
    files: list[Part] = []
    for attachment in message.attachments:
        shown = message.html and attachment.cid and _is_shown(attachment, message.html)
        (related if shown else files).append(attachment.to_part())
    parts = []
    if message.body:
        parts.append(_text(message.body, "plain", "body"))
    if message.html:
        html = _text(message.html, "html", "html")
        parts.append(multipart("related", [html, *related], type="text/html") if related else html)
    body = multipart("alternative", parts) if len(parts) > 1 else parts[0]
    return multipart("mixed", [body, *files]) if files else body


def _is_shown(attachment: Attachment, html: str | Attachment) -> bool:
    """True if `attachment` belongs to the HTML: it is inline, or called by its content id."""
    if attachment.inline:
        return True
    text = html.data if isinstance(html, Attachment) else html
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return f"cid:{attachment.cid}" in (text or "")


def _text(body: str | Attachment, subtype: str, field: str) -> Part:
    if isinstance(body, Attachment):
        return body.to_part(f"text/{subtype}")
    try:
        octets = crlf(body.encode())
    except UnicodeEncodeError:
        raise InvalidMessage("a lone surrogate in the text", field=field) from None
    if not octets.endswith(b"\r\n"):
        octets += b"\r\n"
    encoding = best_encoding(octets)
    headers = (
        parameter_header("Content-Type", f"text/{subtype}", {"charset": "utf-8"}),
        f"Content-Transfer-Encoding: {encoding}\r\n",
    )
    if encoding != "7bit":
        octets = encode_body(octets, encoding, text=True, field=field)
    return Part(headers, octets)
