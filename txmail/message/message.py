"""`Message`: what an application says in a mail, in its own words."""

from __future__ import annotations

import email
import email.policy
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from email.message import EmailMessage
from typing import Any

from zope.interface import implementer

from ..address import Mailbox, parse_mailbox
from ..envelope import Envelope
from ..exceptions import BadHeaders, InvalidMessage, echo
from ..interfaces import IMessage
from .attachment import Attachment
from .entries import Entry, entries_of, overriding, reverse_path
from .headers import check_name, check_value
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
        describe MIME or the transport, cannot be named.
    `attachments`
        A list of `Attachment` s. One that is inline, or that the HTML names by ``cid:``, goes with
        the HTML (RFC 2387).
    `reply_to`
        One entry or a list of them.
    `envelope_sender`
        Where bounces go: an addr-spec, or ``"<>"`` for nowhere. Otherwise the sender's address.
    `message_id`, `date`
        ``"<left@right>"`` and an aware datetime; made anew at each rendering otherwise.

    A string in place of a list is an `InvalidMessage` at once; all else is checked by `validate`,
    and when the message is rendered.
    """

    def __init__(
        self,
        subject: str | None = None,
        recipients: Iterable[Entry] | None = None,
        body: str | Attachment | None = None,
        html: str | Attachment | None = None,
        sender: Entry | None = None,
        cc: Iterable[Entry] | None = None,
        bcc: Iterable[Entry] | None = None,
        extra_headers: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
        attachments: Iterable[Attachment] | None = None,
        reply_to: Entry | list[Entry] | None = None,
        envelope_sender: str | None = None,
        *,
        message_id: str | None = None,
        date: datetime | None = None,
    ) -> None:
        self.subject = subject or ""
        self.recipients = recipients
        self.body = body
        self.html = html
        self.sender = sender
        self.cc = cc
        self.bcc = bcc
        self.extra_headers = _pairs(extra_headers)
        self.attachments: list[Attachment] = []
        for attachment in attachments or ():
            self.attach(attachment)
        self.reply_to = reply_to
        self.envelope_sender = envelope_sender
        self.message_id = message_id
        self.date = date

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
        try:
            self._check_headers()
        except BadHeaders:
            return True
        return False

    def validate(self) -> None:
        """Raise what sending this message would, as far as it can be told without rendering it.

        `InvalidMessage` if something is missing, `BadHeaders` for a value that must not stand in a
        header, `AddressError` for an address that is not one; each names the argument.
        """
        self._validate(None)
        self.addressees()
        self.replies()
        for part in (self.body, self.html, *self.attachments):
            if isinstance(part, Attachment):
                part.validate()

    def to_message(self) -> EmailMessage:
        """The message as the standard library reads it. Raises what `validate` raises."""
        self.validate()
        content = render(self, self._validate(None))
        return email.message_from_bytes(content, policy=email.policy.SMTP)

    def to_envelope(
        self,
        *,
        sender: Entry | None = None,
        recipients: Iterable[Entry] | None = None,
        default_sender: Entry | None = None,
    ) -> Envelope:
        """Render to an `Envelope`, as `IMessage` has it; nothing is written to the message.

        `sender` and `recipients` replace the envelope's only; `default_sender` is the From of a
        message without one.
        """
        author = self._validate(default_sender)
        if sender is None:
            sender = self.envelope_sender
        chosen = self.addressees() if recipients is None else overriding(recipients)
        content = render(self, author)
        path = author.address.text if sender is None else reverse_path(sender)
        return Envelope(path, tuple(m.address.text for m in chosen), content)

    def addressees(self) -> list[Mailbox]:
        """The mailboxes of To, Cc and Bcc, in this order."""
        return [
            parse_mailbox(entry, field=field)
            for field in ("recipients", "cc", "bcc")
            for entry in getattr(self, field)
        ]

    def replies(self) -> list[Mailbox]:
        """The mailboxes of Reply-To."""
        if self.reply_to is None:
            return []
        entries = self.reply_to if isinstance(self.reply_to, list) else [self.reply_to]
        return [parse_mailbox(entry, field="reply_to") for entry in entries]

    def header_pairs(self) -> list[tuple[str, str]]:
        """The extra headers as pairs, whichever way they were given."""
        return list(_pairs(self.extra_headers, pairs=True))

    def _validate(self, default_sender: Entry | None) -> Mailbox:
        """Check what can be told without rendering; the author."""
        if not (self.recipients or self.cc or self.bcc):
            raise InvalidMessage("there is none", field="recipients")
        for field, value in (("body", self.body), ("html", self.html)):
            if value is not None and not isinstance(value, (str, Attachment)):
                raise InvalidMessage("text or an Attachment is needed", field=field, value=value)
        if self.body in (None, "") and self.html in (None, ""):
            raise InvalidMessage("No body: neither text nor HTML", field="body")
        self._check_headers()
        if self.date is not None and (
            not isinstance(self.date, datetime) or self.date.utcoffset() is None
        ):
            raise InvalidMessage("an aware datetime is needed", field="date")
        if self.envelope_sender is not None:
            reverse_path(self.envelope_sender, field="envelope_sender")
        if self.sender:
            return parse_mailbox(self.sender, field="sender")
        if default_sender:
            return parse_mailbox(default_sender, field="default_sender")
        raise InvalidMessage("there is none, and no default", field="sender")

    def _check_headers(self) -> None:
        for field, text in self._texts():
            check_value(text, field)
        for name, value in self.header_pairs():
            check_name(name, "extra_headers")
            lower = name.lower()
            if lower in _RESERVED or lower.startswith(("content-", "resent-")):
                raise BadHeaders("cannot be an extra header", field="extra_headers", value=name)
            check_value(value, name)

    def _texts(self) -> Iterator[tuple[str, Any]]:
        """Every text that goes into a header, with the name of its argument."""
        yield "subject", self.subject
        if self.message_id is not None:
            yield "message_id", self.message_id
        replies = self.reply_to if isinstance(self.reply_to, list) else [self.reply_to]
        for field, entries in (
            ("sender", [self.sender]),
            ("envelope_sender", [self.envelope_sender]),
            ("recipients", self.recipients),
            ("cc", self.cc),
            ("bcc", self.bcc),
            ("reply_to", replies),
        ):
            for entry in entries:
                for text in entry if isinstance(entry, tuple) else (entry,):
                    # What is no text at all is an address error, told later.
                    if isinstance(text, str):
                        yield field, text

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Message):
            return NotImplemented
        return vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        count = len(self.recipients) + len(self.cc) + len(self.bcc)
        return f"<{type(self).__name__} {echo(self.subject)} to {count} recipient(s)>"


#: Headers that have an argument, or belong to MIME or to those who carry mail.
_CONTENT = {"from", "to", "cc", "bcc", "subject", "reply-to", "date", "message-id"}
_TRANSPORT = {"mime-version", "received", "return-path", "delivered-to"}
_RESERVED = frozenset(_CONTENT | _TRANSPORT)


def _pairs(headers: Any, *, pairs: bool = False) -> Any:
    """`headers` copied: a dict for a mapping (unless `pairs`), a list of pairs otherwise."""
    if headers is None:
        return {}
    if isinstance(headers, Mapping):
        return list(headers.items()) if pairs else dict(headers)
    if not isinstance(headers, (str, bytes)) and isinstance(headers, Iterable):
        headers = list(headers)
        if all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in headers):
            return [tuple(pair) for pair in headers]
    problem = "a mapping or a list of pairs is needed"
    raise BadHeaders(problem, field="extra_headers", value=headers)
