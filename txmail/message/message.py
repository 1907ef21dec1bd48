"""`Message`: the mail that an application makes of text, addresses and attachments."""

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
    AddressLike,
    address_list,
    check_address_text,
    parse_envelope_sender,
    parse_recipients,
)
from .attachment import Attachment
from .checks import address_headers, check_header_texts
from .extra_headers import copy_headers
from .plain_copy import plain_copy
from .render import render


@implementer(IMessage)
class Message:
    """A mail to be sent. Mutable: `send()` renders it, so later changes have no effect.

    `subject`, `body`, `html`
        Text. It is never read as a template or as markup of mail: the receiver sees ``{{`` and
        ``=?`` as they are. `body` or `html` must have some text. Either may be an `Attachment`.
    `recipients`, `cc`, `bcc`
        Lists of addresses: ``"a@b.c"``, ``"Name <a@b.c>"`` or pairs of name and address. One of
        them must have an address. `bcc` is in the envelope only.
    `sender`
        The From, in the same forms. The default is the default sender of the mailer.
    `extra_headers`
        A mapping or a list of pairs. It cannot name headers that have an argument of their own,
        headers that txmail makes of the parts, and headers that mail servers add. Values are text.
        A header with a syntax of its own, such as References, gets its value as it is, without
        blanks around it. A TAB becomes a blank.
    `attachments`
        A list of `Attachment` s. An attachment that is inline, or that the HTML refers to by
        ``cid:``, goes into one multipart with the HTML (RFC 2387).
    `reply_to`
        An address or a list of addresses.
    `envelope_sender`
        The address that bounces go to: an addr-spec, or ``"<>"`` for no bounces. The default is
        the address of the sender.
    `message_id`, `date`
        ``"<left@right>"`` and a datetime with a time zone. By default each rendering makes new
        ones. A message that has both always becomes the same octets.
    `calendar`
        An invitation or an answer to one: iCalendar text, its octets in UTF-8, or an `Attachment`.
        Mail programs show it in place of the text and the HTML. The part gets the METHOD of the
        calendar (RFC 6047).
    `list_id`, `list_help`, `list_unsubscribe`, `list_subscribe`, `list_post`, `list_owner`,
    `list_archive`, `one_click`, `auto_submitted`
        The headers of mailing lists and automatic mail: see `txmail.message.list_headers`.

    A string in place of a list raises `InvalidMessage` at once. `validate` and rendering check
    everything else.
    """

    def __init__(
        self,
        subject: str | None = None,
        recipients: Several[AddressLike] | None = None,
        body: str | Attachment | None = None,
        html: str | Attachment | None = None,
        sender: AddressLike | None = None,
        cc: Several[AddressLike] | None = None,
        bcc: Several[AddressLike] | None = None,
        extra_headers: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
        attachments: Iterable[Attachment] | None = None,
        reply_to: AddressLike | list[AddressLike] | None = None,
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
    def recipients(self) -> list[AddressLike]:
        """The addresses of To."""
        return self._recipients

    @recipients.setter
    def recipients(self, addresses: Iterable[AddressLike] | None) -> None:
        self._recipients = address_list(addresses, "recipients")

    @property
    def cc(self) -> list[AddressLike]:
        """The addresses of Cc."""
        return self._cc

    @cc.setter
    def cc(self, addresses: Iterable[AddressLike] | None) -> None:
        self._cc = address_list(addresses, "cc")

    @property
    def bcc(self) -> list[AddressLike]:
        """The recipients that no header names."""
        return self._bcc

    @bcc.setter
    def bcc(self, addresses: Iterable[AddressLike] | None) -> None:
        self._bcc = address_list(addresses, "bcc")

    @property
    def extra_headers(self) -> Any:
        """A dict; a list of pairs if they were set from pairs."""
        return self._extra_headers

    @extra_headers.setter
    def extra_headers(self, headers: Any) -> None:
        self._extra_headers = copy_headers(headers)

    @property
    def send_to(self) -> set[str]:
        """All recipients: strings as they are, and the addr-specs of pairs."""
        addresses = [*self.recipients, *self.cc, *self.bcc]
        return {e if isinstance(e, str) else parse_mailbox(e).address.text for e in addresses}

    def add_recipient(self, recipient: AddressLike) -> None:
        """Add an address to To."""
        self.recipients.append(recipient)

    def add_cc(self, recipient: AddressLike) -> None:
        """Add an address to Cc."""
        self.cc.append(recipient)

    def add_bcc(self, recipient: AddressLike) -> None:
        """Add a recipient that no header names."""
        self.bcc.append(recipient)

    def attach(self, attachment: Attachment) -> None:
        """Add an `Attachment`. Raises `InvalidMessage` for anything else."""
        if not isinstance(attachment, Attachment):
            raise InvalidMessage("must be an Attachment", field="attachments", value=attachment)
        self.attachments.append(attachment)

    def is_bad_headers(self) -> bool:
        """True if a header has a name or a value that cannot be sent."""
        own = plain_copy(self)
        replies = own.reply_to if isinstance(own.reply_to, list) else [own.reply_to]
        addresses: dict[str, list[Any]] = {
            "sender": [own.sender],
            "envelope_sender": [own.envelope_sender],
            "recipients": own.recipients,
            "cc": own.cc,
            "bcc": own.bcc,
            "reply_to": replies,
        }
        try:
            check_header_texts(own)
            for field, of_field in addresses.items():
                for address in of_field:
                    check_address_text(address, field)
        except (BadHeaders, MessageTooLarge):
            return True
        return False

    def validate(self) -> None:
        """Check this message without rendering it. Raises what sending it would raise.

        `InvalidMessage` if something is missing, `BadHeaders` for a value that no header may have,
        `AddressError` for a bad address, `MessageTooLarge` beyond the limits. Each names the
        argument.
        """
        own = plain_copy(self)
        address_headers(own, None)
        for part in (own.body, own.html, own.calendar, *own.attachments):
            if isinstance(part, Attachment):
                part.validate()

    def to_message(self) -> EmailMessage:
        """This message, as an `EmailMessage`. Raises what `validate` raises."""
        self.validate()
        own = plain_copy(self)
        content = render(own, address_headers(own, None))
        return email.message_from_bytes(content, policy=email.policy.SMTP)

    def to_envelope(
        self,
        *,
        sender: AddressLike | None = None,
        recipients: Iterable[AddressLike] | None = None,
        default_sender: AddressLike | None = None,
        html_to_text: Callable[[str], str] | None = None,
    ) -> Envelope:
        """Render to an `Envelope` (`IMessage`). The message itself does not change.

        `sender` and `recipients` replace the addresses of the envelope, not the headers.
        `default_sender` is the From of a message without one. `html_to_text`, an `IHtmlToText`,
        makes the text part of a message that has HTML only.
        """
        own = plain_copy(self)
        addresses = address_headers(own, default_sender)
        chosen = addresses.recipients if recipients is None else parse_recipients(recipients)
        content = render(own, addresses, html_to_text)
        if sender is None:
            sender = own.envelope_sender
        path = addresses.author.address.text if sender is None else parse_envelope_sender(sender)
        return pass_gate(Envelope(path, tuple([m.address.text for m in chosen]), content))

    def header_pairs(self) -> list[tuple[str, str]]:
        """The extra headers as pairs of name and value."""
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
