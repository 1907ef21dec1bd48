"""`Message`: what an application says in a mail, in its own words."""

from __future__ import annotations

import email
import email.policy
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from email.message import EmailMessage
from typing import Any

from zope.interface import implementer

from ..address import parse_mailbox
from ..common.shown import echo
from ..envelope import Envelope, pass_gate
from ..exceptions import BadHeaders, InvalidMessage, MessageTooLarge
from ..interfaces import IMessage
from ..types import Several
from .addresses import (
    Entry,
    check_entry,
    entries_of,
    overriding,
    reverse_path,
)
from .attachment import Attachment
from .checks import address_headers, check_header_texts
from .extra_headers import copy_headers
from .plain_copy import plain_copy
from .render import render


@implementer(IMessage)
class Message:
    """A mail to be sent. Mutable: it is rendered, and thereby copied, when it is handed in.

    `subject`, `body`, `html`
        Text, and nothing but text: ``{{`` or ``=?`` in it reach the receiver as they are. `body` or
        `html` has to have some; either may be an `Attachment`.
    `recipients`, `cc`, `bcc`
        Lists of addresses: ``"a@b.c"``, ``"Name <a@b.c>"`` or pairs of name and address. One of
        them has to have some. `bcc` is in the envelope only.
    `sender`
        The From, in the same forms; a mailer's default sender otherwise.
    `extra_headers`
        A mapping or a list of pairs. Headers that have an argument of their own, and those that
        are made of the parts or by servers, cannot be named. Values are text; where a header has a
        syntax of its own, such as References, they are written as they are, without the blanks
        around them. A TAB is written as a blank.
    `attachments`
        A list of `Attachment` s. One that is inline, or that the HTML names by ``cid:``, goes with
        the HTML (RFC 2387).
    `reply_to`
        One entry or a list of them.
    `envelope_sender`
        Where bounces go: an addr-spec, or ``"<>"`` for nowhere. Otherwise the sender's address.
    `message_id`, `date`
        ``"<left@right>"`` and an aware datetime; made anew at each rendering otherwise. With both
        of them told, the same message is rendered to the same octets.
    `calendar`
        An invitation or an answer to one: iCalendar text, its octets in UTF-8, or an `Attachment`;
        shown by mail programs in place of the text and HTML that say the same. Its METHOD becomes
        that of the part (RFC 6047).
    `list_id`, `list_help`, `list_unsubscribe`, `list_subscribe`, `list_post`, `list_owner`,
    `list_archive`, `one_click`, `auto_submitted`
        The headers of mailing lists and automatic mail: see `txmail.message.list_headers`.

    A string in place of a list is an `InvalidMessage` at once; all else is checked by `validate`,
    and when the message is rendered.
    """

    def __init__(
        self,
        subject: str | None = None,
        recipients: Several[Entry] | None = None,
        body: str | Attachment | None = None,
        html: str | Attachment | None = None,
        sender: Entry | None = None,
        cc: Several[Entry] | None = None,
        bcc: Several[Entry] | None = None,
        extra_headers: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
        attachments: Iterable[Attachment] | None = None,
        reply_to: Entry | list[Entry] | None = None,
        envelope_sender: str | None = None,
        *,
        message_id: str | None = None,
        date: datetime | None = None,
        calendar: str | bytes | Attachment | None = None,
        list_id: str | tuple[str, str] | None = None,
        list_help: str | list[str] | None = None,
        list_unsubscribe: str | list[str] | None = None,
        list_subscribe: str | list[str] | None = None,
        list_post: str | list[str] | None = None,
        list_owner: str | list[str] | None = None,
        list_archive: str | list[str] | None = None,
        one_click: bool = False,
        auto_submitted: str | None = None,
    ) -> None:
        self.subject = subject or ""
        self.recipients = recipients
        self.body = body
        self.html = html
        self.sender = sender
        self.cc = cc
        self.bcc = bcc
        self.extra_headers = extra_headers
        self.attachments: list[Attachment] = []
        for attachment in attachments or ():
            self.attach(attachment)
        self.reply_to = reply_to
        self.envelope_sender = envelope_sender
        self.message_id = message_id
        self.date = date
        self.calendar = calendar
        self.list_id = list_id
        self.list_help = list_help
        self.list_unsubscribe = list_unsubscribe
        self.list_subscribe = list_subscribe
        self.list_post = list_post
        self.list_owner = list_owner
        self.list_archive = list_archive
        self.one_click = one_click
        self.auto_submitted = auto_submitted

    @property
    def recipients(self) -> list[Entry]:
        """The entries of To."""
        return self._recipients

    @recipients.setter
    def recipients(self, entries: Iterable[Entry] | None) -> None:
        self._recipients = entries_of(entries, "recipients")

    @property
    def cc(self) -> list[Entry]:
        """The entries of Cc."""
        return self._cc

    @cc.setter
    def cc(self, entries: Iterable[Entry] | None) -> None:
        self._cc = entries_of(entries, "cc")

    @property
    def bcc(self) -> list[Entry]:
        """The recipients nobody sees."""
        return self._bcc

    @bcc.setter
    def bcc(self, entries: Iterable[Entry] | None) -> None:
        self._bcc = entries_of(entries, "bcc")

    @property
    def extra_headers(self) -> Any:
        """A dict, or a list of pairs if it was not a mapping that was set."""
        return self._extra_headers

    @extra_headers.setter
    def extra_headers(self, headers: Any) -> None:
        self._extra_headers = copy_headers(headers)

    @property
    def send_to(self) -> set[str]:
        """All recipients: strings as they were given, and the addr-specs of pairs."""
        entries = [*self.recipients, *self.cc, *self.bcc]
        return {e if isinstance(e, str) else parse_mailbox(e).address.text for e in entries}

    def add_recipient(self, recipient: Entry) -> None:
        """Add an entry to To."""
        self.recipients.append(recipient)

    def add_cc(self, recipient: Entry) -> None:
        """Add an entry to Cc."""
        self.cc.append(recipient)

    def add_bcc(self, recipient: Entry) -> None:
        """Add a recipient nobody sees."""
        self.bcc.append(recipient)

    def attach(self, attachment: Attachment) -> None:
        """Add an `Attachment`; an `InvalidMessage` for anything else."""
        if not isinstance(attachment, Attachment):
            raise InvalidMessage("an Attachment is needed", field="attachments", value=attachment)
        self.attachments.append(attachment)

    def is_bad_headers(self) -> bool:
        """True if a header has a name or a value that must not be sent."""
        own = plain_copy(self)
        replies = own.reply_to if isinstance(own.reply_to, list) else [own.reply_to]
        entries: dict[str, list[Any]] = {
            "sender": [own.sender],
            "envelope_sender": [own.envelope_sender],
            "recipients": own.recipients,
            "cc": own.cc,
            "bcc": own.bcc,
            "reply_to": replies,
        }
        try:
            check_header_texts(own)
            for field, of_field in entries.items():
                for entry in of_field:
                    check_entry(entry, field)
        except (BadHeaders, MessageTooLarge):
            return True
        return False

    def validate(self) -> None:
        """Raise what sending this message would, as far as it can be told without rendering it.

        `InvalidMessage` if something is missing, `BadHeaders` for a value that must not stand in a
        header, `AddressError` for an address that is not one, `MessageTooLarge` beyond the bounds;
        each names the argument.
        """
        own = plain_copy(self)
        address_headers(own, None)
        for part in (own.body, own.html, own.calendar, *own.attachments):
            if isinstance(part, Attachment):
                part.validate()

    def to_message(self) -> EmailMessage:
        """The message as the standard library reads it. Raises what `validate` raises."""
        self.validate()
        own = plain_copy(self)
        content = render(own, address_headers(own, None))
        return email.message_from_bytes(content, policy=email.policy.SMTP)

    def to_envelope(
        self,
        *,
        sender: Entry | None = None,
        recipients: Iterable[Entry] | None = None,
        default_sender: Entry | None = None,
        html_to_text: Callable[[str], str] | None = None,
    ) -> Envelope:
        """Render to an `Envelope`, as `IMessage` has it; nothing is written to the message.

        `sender` and `recipients` replace the envelope's only; `default_sender` is the From of a
        message without one. `html_to_text`, an `IHtmlToText`, makes the text of a message that has
        HTML only.
        """
        own = plain_copy(self)
        addresses = address_headers(own, default_sender)
        chosen = addresses.recipients if recipients is None else overriding(recipients)
        content = render(own, addresses, html_to_text)
        if sender is None:
            sender = own.envelope_sender
        path = addresses.author.address.text if sender is None else reverse_path(sender)
        return pass_gate(Envelope(path, tuple([m.address.text for m in chosen]), content))

    def header_pairs(self) -> list[tuple[str, str]]:
        """The extra headers as pairs, whichever way they were given."""
        headers = self._extra_headers
        if not headers:
            return []
        return list(headers.items()) if isinstance(headers, dict) else copy_headers(headers)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Message):
            return NotImplemented
        return vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        count = len(self.recipients) + len(self.cc) + len(self.bcc)
        return f"<{type(self).__name__} {echo(self.subject)} to {count} recipient(s)>"
