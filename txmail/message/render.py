"""`Message` to content octets: its headers, and the order of its parts.

The parts (RFC 2046 section 5.1, RFC 2387)::

    mixed                       if there are attachments
        alternative             if there is more than one of text, HTML and calendar
            text
            related             if the HTML shows attachments
                html
                images ...
            calendar
        attachments ...
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol

from ..address import parse_mailbox
from ..common.ascii_text import ascii_lower
from ..common.shown import name_of
from ..exceptions import InvalidMessage, MessageTooLarge
from .addresses import AddressHeaders, parse_mailboxes
from .attachment import Attachment
from .content_ids import content_ids
from .icalendar import calendar_method, calendar_text
from .list_headers import ListArguments, has_list_headers, list_headers
from .mime import gate
from .mime.date import date_text, new_date
from .mime.encodings import crlf_text, encode_text
from .mime.header_write import MAILBOX_LISTS, header, mailbox_header, text_header
from .mime.message_id import message_id_of
from .mime.parts import Part, check_part_headers, header_names, multipart, write_content

#: Extra headers that have mailboxes in them.
MAILBOX_HEADERS = MAILBOX_LISTS | {"sender"}
#: Multiparts and bodies that a message may have besides its attachments.
_OTHER_PARTS = 6


class Renderable(ListArguments, Protocol):
    """The arguments of a `Message` that this module reads."""

    @property
    def subject(self) -> str: ...
    @property
    def body(self) -> str | Attachment | None: ...
    @property
    def html(self) -> str | Attachment | None: ...
    @property
    def calendar(self) -> str | bytes | Attachment | None: ...
    @property
    def attachments(self) -> Sequence[Attachment]: ...
    @property
    def message_id(self) -> str | None: ...
    @property
    def date(self) -> datetime | None: ...

    def header_pairs(self) -> list[tuple[str, str]]:
        """The extra headers."""


def render(
    message: Renderable, addresses: AddressHeaders, html_to_text: Callable[[str], str] | None = None
) -> bytes:
    """The content of `message`. The gate has checked it.

    `html_to_text` makes the text part of a message that has HTML only. Raises `MessageError` or
    `AddressError` for a wrong argument, which the error names.
    """
    part = body_part(message, html_to_text)
    message_id = message_id_of(message.message_id, addresses.author)
    headers = write_headers(message, addresses, message_id)
    names = [line.partition(":")[0] for line in headers] + header_names(part)
    check_part_headers(part)
    content, boundaries = write_content(headers, part, message_id)
    gate.check(content, intended_headers=names, boundaries=boundaries, known_parts=True)
    return content


def write_headers(message: Renderable, addresses: AddressHeaders, message_id: str) -> list[str]:
    """The headers of `message`, each folded and with its line end, without those of its body part.

    Raises `MessageError` for a wrong argument, which the error names.
    """
    headers = [mailbox_header("From", [addresses.author])]
    if addresses.to:
        headers.append(mailbox_header("To", addresses.to))
    if addresses.cc:
        headers.append(mailbox_header("Cc", addresses.cc))
    if addresses.reply_to:
        headers.append(mailbox_header("Reply-To", addresses.reply_to))
    if message.subject:
        headers.append(text_header("Subject", message.subject))
    date = new_date() if message.date is None else date_text(message.date)
    headers.append(f"Date: {date}\r\n")
    headers.append(f"Message-ID: {message_id}\r\n")
    if has_list_headers(message):
        headers += list_headers(message)
    for name, value in message.header_pairs():
        if ascii_lower(name) in MAILBOX_LISTS:
            headers.append(mailbox_header(name, parse_mailboxes(value, field=name)))
        elif ascii_lower(name) in MAILBOX_HEADERS:
            headers.append(mailbox_header(name, [parse_mailbox(value, field=name)]))
        else:
            headers.append(header(name, value))
    headers.append("MIME-Version: 1.0\r\n")
    return headers


def body_part(message: Renderable, html_to_text: Callable[[str], str] | None) -> Part:
    """The MIME part that has the text, HTML, calendar and attachments of `message`.

    Raises `MessageTooLarge` for too many parts, `InvalidMessage` for a part that cannot be sent.
    """
    if len(message.attachments) + _OTHER_PARTS > gate.MAX_PARTS:
        raise MessageTooLarge(f"more than {gate.MAX_PARTS} parts", field="attachments")
    related: list[Part] = []
    files: list[Part] = []
    referenced = (
        content_ids(_as_string(message.html)) if message.html and message.attachments else ()
    )
    for attachment in message.attachments:
        is_referenced = attachment.cid in referenced
        belongs = is_referenced or (message.html and attachment.cid and attachment.inline)
        (related if belongs else files).append(attachment.to_part(shown=is_referenced))
    parts = []
    if message.body:
        parts.append(_text_part(message.body, "plain", "body"))
    elif message.html and html_to_text and (text := _html_as_text(message.html, html_to_text)):
        parts.append(_text_part(text, "plain", "html"))
    if message.html:
        html = _text_part(message.html, "html", "html")
        parts.append(_related_part(html, related) if related else html)
    if message.calendar:
        parts.append(_calendar_part(message.calendar))
    body = multipart("alternative", *parts) if len(parts) > 1 else parts[0]
    return multipart("mixed", body, *files) if files else body


def _as_string(text: str | Attachment) -> str:
    return text.text if isinstance(text, Attachment) else text


def _html_as_text(html: str | Attachment, html_to_text: Callable[[str], str]) -> str:
    """The text that `html_to_text` makes of `html`; empty if it has only white space."""
    try:
        text = html_to_text(_as_string(html))
    except Exception as error:
        # A parser of another library may raise anything, and its error may repeat the text.
        problem = f"html_to_text failed ({name_of(type(error))})"
        raise InvalidMessage(problem, field="html") from None
    if not isinstance(text, str):
        raise InvalidMessage("html_to_text did not return text", field="html")
    return text if text.strip() else ""


def _related_part(html: Part, related: list[Part]) -> Part:
    # RFC 2387 section 3.1: the multipart repeats the type of its first part.
    media_type = html.headers[0].removeprefix("Content-Type: ").partition(";")[0].strip("\r\n")
    return multipart(f'related; type="{media_type}"', html, *related)


def _calendar_part(calendar: str | bytes | Attachment) -> Part:
    """The calendar part, in the form that mail programs look for (RFC 6047 section 2.4)."""
    if isinstance(calendar, Attachment):
        # UTF-8 is the default of a calendar (RFC 5545 section 3.1.4), but not of other text.
        parameters = {"charset": "utf-8"} if _is_utf8(calendar.data) else {}
        return calendar.to_part("text/calendar", parameters=parameters)
    text = calendar_text(calendar) if isinstance(calendar, bytes) else calendar
    method = calendar_method(text)
    return _text_part(text, "calendar", "calendar", f"; method={method}" if method else "")


def _is_utf8(data: str | bytes | None) -> bool:
    """True if `data` is octets of UTF-8 beyond ASCII."""
    if not isinstance(data, bytes) or data.isascii():
        return False
    try:
        return bool(data.decode("utf-8"))
    except UnicodeDecodeError:
        return False


def _text_part(text: str | Attachment, subtype: str, field: str, parameters: str = "") -> Part:
    if isinstance(text, Attachment):
        return text.to_part(f"text/{subtype}")
    if len(text) > gate.MAX_CONTENT:
        raise MessageTooLarge(f"more than {gate.MAX_CONTENT} octets", field=field)
    try:
        octets = crlf_text(text).encode()
    except UnicodeEncodeError:
        raise InvalidMessage("the text has a lone surrogate; remove it", field=field) from None
    encoding, body = encode_text(octets)
    headers = (
        f"Content-Type: text/{subtype}; charset=utf-8{parameters}\r\n",
        f"Content-Transfer-Encoding: {encoding}\r\n",
    )
    return Part(headers, body)
