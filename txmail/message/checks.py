"""Checks of a `Message` that need no rendering."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol

from ..exceptions import InvalidMessage, MessageTooLarge
from .addresses import (
    AddressHeaders,
    AddressLike,
    check_address_text,
    mailbox_of,
    mailboxes_of,
    parse_envelope_sender,
)
from .attachment import Attachment
from .extra_headers import check_extra_name
from .icalendar import calendar_text
from .list_headers import has_list_headers, list_headers
from .mime.header_check import MAX_HEADERS, check_value
from .render import Renderable


class Checkable(Renderable, Protocol):
    """The arguments of a `Message` that are checked here."""

    @property
    def sender(self) -> AddressLike | None: ...
    @property
    def recipients(self) -> Sequence[AddressLike]: ...
    @property
    def cc(self) -> Sequence[AddressLike]: ...
    @property
    def bcc(self) -> Sequence[AddressLike]: ...
    @property
    def reply_to(self) -> AddressLike | list[AddressLike] | None: ...
    @property
    def envelope_sender(self) -> str | None: ...
    @property
    def extra_headers(self) -> Any: ...


def address_headers(message: Checkable, default_sender: AddressLike | None) -> AddressHeaders:
    """Check `message` without rendering it. Returns the mailboxes of its address headers.

    `default_sender` is the author of a message that has no sender. Raises `MessageError` or
    `AddressError` for a wrong argument, which the error names.
    """
    _check_presence(message)
    check_header_texts(message)
    # The shortest address takes "a@b, ". This check comes before a million addresses are parsed.
    if (len(message.recipients) + len(message.cc)) * 5 > MAX_HEADERS:
        problem = f"the headers have more than {MAX_HEADERS} octets; move recipients to bcc"
        raise MessageTooLarge(problem, field="recipients")
    if message.envelope_sender is not None:
        check_address_text(message.envelope_sender, "envelope_sender")
        parse_envelope_sender(message.envelope_sender, field="envelope_sender")
    if message.sender:
        author = mailbox_of(message.sender, "sender")
    elif default_sender:
        author = mailbox_of(default_sender, "default_sender")
    else:
        raise InvalidMessage(
            "there is no sender; give one, or set a default sender", field="sender"
        )
    replies = [] if message.reply_to is None else message.reply_to
    if not isinstance(replies, list):
        replies = [replies]
    return AddressHeaders(
        author,
        mailboxes_of(message.recipients, "recipients"),
        mailboxes_of(message.cc, "cc"),
        mailboxes_of(message.bcc, "bcc"),
        mailboxes_of(replies, "reply_to"),
    )


def _check_presence(message: Checkable) -> None:
    if not (message.recipients or message.cc or message.bcc):
        raise InvalidMessage("there are none; give recipients, cc or bcc", field="recipients")
    for field in ("body", "html", "calendar"):
        value = getattr(message, field)
        kinds = (str, Attachment, bytes) if field == "calendar" else (str, Attachment)
        if value is not None and not isinstance(value, kinds):
            raise InvalidMessage("must be text or an Attachment", field=field, value=value)
    if isinstance(message.calendar, bytes):
        calendar_text(message.calendar)
    if message.body in (None, "") and message.html in (None, ""):
        raise InvalidMessage("there is no text; give body or html", field="body")
    if message.date is not None and (
        not isinstance(message.date, datetime) or message.date.utcoffset() is None
    ):
        raise InvalidMessage("must be a datetime with a time zone", field="date")


def check_header_texts(message: Checkable) -> None:
    """Raise `BadHeaders` for a text that no header may have. Address headers are not checked."""
    check_value(message.subject, "subject", tab=True)
    if message.message_id is not None:
        check_value(message.message_id, "message_id")
    if len(message.extra_headers) * len("X:\r\n") > MAX_HEADERS:
        problem = f"the headers have more than {MAX_HEADERS} octets; leave some out"
        raise MessageTooLarge(problem, field="extra_headers")
    for name, value in message.header_pairs():
        check_extra_name(name)
        check_value(value, name, tab=True)
    if has_list_headers(message):
        list_headers(message)
