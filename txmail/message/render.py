"""From `Message` to content octets: which headers, and how the parts are put together.

What goes where (RFC 2046 section 5.1, RFC 2387)::

    mixed                       if there are attachments
        alternative             if there is more than one of text, HTML and calendar
            text
            related             if attachments are shown in the HTML
                html
                images ...
            calendar
        attachments ...
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from ..address import Mailbox, parse_mailbox
from ..common.ascii_text import ascii_lower
from ..common.shown import name_of
from ..exceptions import BadHeaders, InvalidMessage, MessageTooLarge
from .addresses import parse_mailboxes
from .attachment import Attachment
from .list_headers import has_list_headers, list_headers
from .mime import gate
from .mime.calendar_method import method_of
from .mime.encodings import crlf_text, encode_text
from .mime.header_write import MAILBOX_LISTS, header, mailbox_header, text_header
from .mime.parts import Part, check_headers, header_names, multipart, write
from .mime.related import content_ids

if TYPE_CHECKING:
    from .message import Message

_MESSAGE_ID = re.compile(
    r"<[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+@(?:[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+|\[[!-Z^-~]*\])>",
    re.ASCII,
)
_MAX_MESSAGE_ID = 250

#: Extra headers that hold mailboxes, not text.
MAILBOX_HEADERS = MAILBOX_LISTS | {"sender"}
#: Multiparts and bodies that a message may have beside its attachments.
_OTHER_PARTS = 6


class People(NamedTuple):
    """Who writes a message, and to whom."""

    author: Mailbox
    to: list[Mailbox]
    cc: list[Mailbox]
    bcc: list[Mailbox]
    replies: list[Mailbox]

    @property
    def everybody(self) -> list[Mailbox]:
        """The recipients, in the order of their headers."""
        return [*self.to, *self.cc, *self.bcc]


def render(
    message: Message, people: People, html_to_text: Callable[[str], str] | None = None
) -> bytes:
    """The content of `message`, past the gate. With `html_to_text`, HTML never goes alone.

    Raises `MessageError` or `AddressError`, naming the argument at fault.
    """
    part = body_of(message, html_to_text)
    message_id = message_id_of(message.message_id, people.author)
    headers = headers_of(message, people, message_id)
    names = [line.partition(":")[0] for line in headers] + header_names(part)
    check_headers(part)
    content, boundaries = write(headers, part, message_id)
    gate.check(content, intended_headers=names, boundaries=boundaries, known_parts=True)
    return content


def new_message_id(author: Mailbox) -> str:
    """A Message-ID nobody else has, in the author's domain; it tells nothing of this host."""
    return f"<{os.urandom(16).hex()}@{author.address.domain}>"


def new_date() -> str:
    """The present time as a Date header has it, in UTC (RFC 5322 section 3.3)."""
    return _date(int(time.time()))


def date_text(moment: datetime) -> str:
    """`moment` as a Date header has it: its zone in hours and minutes (RFC 5322 section 3.3).

    The same moment is given in a zone of whole minutes where its own has seconds.
    """
    offset = moment.utcoffset()
    if offset is not None and offset % timedelta(minutes=1):
        whole = offset // timedelta(minutes=1) * timedelta(minutes=1)
        moment = moment.astimezone(timezone(whole))
    return format_datetime(moment)


@lru_cache(4)
def _date(seconds: int) -> str:
    return format_datetime(datetime.fromtimestamp(seconds, UTC))


def headers_of(message: Message, people: People, message_id: str) -> list[str]:
    """The header fields of `message`, each folded and with its line end; those of MIME apart.

    Raises `MessageError`, naming the argument at fault.
    """
    headers = [mailbox_header("From", [people.author])]
    if people.to:
        headers.append(mailbox_header("To", people.to))
    if people.cc:
        headers.append(mailbox_header("Cc", people.cc))
    if people.replies:
        headers.append(mailbox_header("Reply-To", people.replies))
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


def message_id_of(given: str | None, author: Mailbox) -> str:
    """The Message-ID that was `given`, or a new one at the domain of `author`.

    Raises `BadHeaders` if it is no msg-id (RFC 5322 section 3.6.4).
    """
    if given is None:
        return new_message_id(author)
    if len(given) > _MAX_MESSAGE_ID or "=?" in given or _MESSAGE_ID.fullmatch(given) is None:
        raise BadHeaders("not a Message-ID", field="message_id", value=given)
    return given


def body_of(message: Message, html_to_text: Callable[[str], str] | None) -> Part:
    """The MIME part that is the body of `message`, with all that is in it.

    Raises `MessageTooLarge` for too many parts, and `InvalidMessage` for one that cannot be sent.
    """
    if len(message.attachments) + _OTHER_PARTS > gate.MAX_PARTS:
        raise MessageTooLarge(f"more than {gate.MAX_PARTS} parts", field="attachments")
    related: list[Part] = []
    files: list[Part] = []
    called = content_ids(_string(message.html)) if message.html and message.attachments else ()
    for attachment in message.attachments:
        is_called = attachment.cid in called
        belongs = is_called or (message.html and attachment.cid and attachment.inline)
        (related if belongs else files).append(attachment.to_part(shown=is_called))
    parts = []
    if message.body:
        parts.append(_text(message.body, "plain", "body"))
    elif message.html and html_to_text and (text := _text_of(message.html, html_to_text)):
        parts.append(_text(text, "plain", "html"))
    if message.html:
        html = _text(message.html, "html", "html")
        parts.append(_related(html, related) if related else html)
    if message.calendar:
        parts.append(_calendar(message.calendar))
    body = multipart("alternative", *parts) if len(parts) > 1 else parts[0]
    return multipart("mixed", body, *files) if files else body


def _string(text: str | Attachment) -> str:
    return text.text if isinstance(text, Attachment) else text


def _text_of(html: str | Attachment, html_to_text: Callable[[str], str]) -> str:
    """The text that `html_to_text` makes of `html`; empty if there is none in it."""
    try:
        text = html_to_text(_string(html))
    except Exception as error:
        # Other people's parsers fail in many ways, and their errors may repeat the text.
        problem = f"no text could be made of it ({name_of(type(error))})"
        raise InvalidMessage(problem, field="html") from None
    if not isinstance(text, str):
        raise InvalidMessage("what was made of it is no text", field="html")
    return text if text.strip() else ""


def _related(html: Part, related: list[Part]) -> Part:
    # RFC 2387 section 3.1 wants to be told the type of the HTML again.
    media_type = html.headers[0].removeprefix("Content-Type: ").partition(";")[0].strip("\r\n")
    return multipart(f'related; type="{media_type}"', html, *related)


def _calendar(calendar: str | bytes | Attachment) -> Part:
    """An invitation as mail programs look for it (RFC 6047 section 2.4)."""
    if isinstance(calendar, Attachment):
        # What a calendar is in if nothing is said (RFC 5545 section 3.1.4), but not other text.
        parameters = {"charset": "utf-8"} if _is_utf8(calendar.data) else {}
        return calendar.to_part("text/calendar", parameters=parameters)
    text = calendar_text(calendar) if isinstance(calendar, bytes) else calendar
    method = method_of(text)
    return _text(text, "calendar", "calendar", f"; method={method}" if method else "")


def _is_utf8(data: str | bytes | None) -> bool:
    """True for octets of UTF-8 that are not ASCII."""
    if not isinstance(data, bytes) or data.isascii():
        return False
    try:
        return bool(data.decode("utf-8"))
    except UnicodeDecodeError:
        return False


def calendar_text(octets: bytes) -> str:
    """The text of a calendar. Raises `InvalidMessage` if the octets are not UTF-8."""
    try:
        return octets.decode("utf-8-sig")
    except UnicodeDecodeError:
        problem = "octets that are not UTF-8; an Attachment can say their charset"
        raise InvalidMessage(problem, field="calendar") from None


def _text(text: str | Attachment, subtype: str, field: str, parameters: str = "") -> Part:
    if isinstance(text, Attachment):
        return text.to_part(f"text/{subtype}")
    if len(text) > gate.MAX_CONTENT:
        raise MessageTooLarge(f"more than {gate.MAX_CONTENT} octets", field=field)
    try:
        octets = crlf_text(text).encode()
    except UnicodeEncodeError:
        raise InvalidMessage("a lone surrogate in the text", field=field) from None
    encoding, body = encode_text(octets)
    headers = (
        f"Content-Type: text/{subtype}; charset=utf-8{parameters}\r\n",
        f"Content-Transfer-Encoding: {encoding}\r\n",
    )
    return Part(headers, body)
