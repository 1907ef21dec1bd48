"""The headers of `txmail.message.templates.compiled`: most stay, some are made for each message."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from datetime import datetime

from ...address import Mailbox
from ...common.ascii_text import ascii_lower
from ..list_headers import ListArguments, list_headers
from ..mime.date import date_text, new_date
from ..mime.header_check import check_value
from ..mime.header_write import header as written_header
from ..mime.header_write import mailbox_header
from ..render import MAILBOX_HEADERS
from .compiled_body import NotPlain, Places, has_fields, plain
from .template_parts import Compilable, HeaderTemplate, MailboxTemplate, UriTemplate
from .template_values import in_uri

#: Makes a header, or the value of one, from the values of the fields.
_Maker = Callable[[list[str]], str]


class Headers:
    """The headers of a template's messages.

    `fixed` is what they are in `prototype`, which has all that these messages have in common.
    """

    def __init__(
        self, template: Compilable, prototype: ListArguments, fixed: list[str], places: Places
    ) -> None:
        self._fixed = fixed
        self._prototype = prototype
        self._to, self._date, self._id = map(self._index, ("To", "Date", "Message-ID"))
        # MIME-Version is last, after those that the template names.
        first = len(fixed) - 1 - len(template.headers)
        self._lists = slice(self._id + 1, first)
        self._makers: list[tuple[int, _Maker]] = []
        if has_fields(plain(template.subject.pieces)):
            maker = _text(places, "Subject", template.subject)
            self._makers.append((self._index("Subject"), maker))
        for index, (name, header) in enumerate(template.headers, first):
            if has_fields(plain(header.pieces)):
                self._makers.append((index, _text(places, name, header)))
        senders = [template.sender] if template.sender else []
        for name, mailboxes in (("From", senders), ("Reply-To", template.reply_to)):
            if any(has_fields(plain(mailbox.name.pieces)) for mailbox in mailboxes):
                self._makers.append((self._index(name), _mailboxes(places, name, mailboxes)))
        self._uris = {
            field: [_uri(places, uri) for uri in uris]
            for field, uris in template.uris.items()
            if any(has_fields(plain(uri.pieces)) for uri in uris)
        }

    def _index(self, name: str) -> int:
        return next(n for n, header in enumerate(self._fixed) if header.startswith(f"{name}:"))

    def of(
        self, values: list[str], recipient: Mailbox, message_id: str, date: datetime | None
    ) -> list[str]:
        """The headers of one message."""
        if date is not None and (not isinstance(date, datetime) or date.utcoffset() is None):
            raise NotPlain
        headers = self._fixed.copy()
        headers[self._to] = mailbox_header("To", [recipient])
        headers[self._date] = f"Date: {new_date() if date is None else date_text(date)}\r\n"
        headers[self._id] = f"Message-ID: {message_id}\r\n"
        for index, make in self._makers:
            headers[index] = make(values)
        if self._uris:
            message = copy.copy(self._prototype)
            for field, makers in self._uris.items():
                uris = [make(values) for make in makers]
                setattr(message, field, uris[0] if len(uris) == 1 else uris)
            found = list_headers(message)
            if len(found) != self._lists.stop - self._lists.start:
                raise NotPlain  # one of them is empty
            headers[self._lists] = found
        return headers


def _text(places: Places, name: str, header: HeaderTemplate) -> _Maker:
    if ascii_lower(name) in MAILBOX_HEADERS:
        raise NotPlain
    line = places.line(plain(header.pieces))

    def make(values: list[str]) -> str:
        text = line.text(values)
        if not text and name == "Subject":
            raise NotPlain  # there is no such header then
        check_value(text, header.field, tab=True)
        return written_header(name, text)

    return make


def _mailboxes(places: Places, name: str, mailboxes: Iterable[MailboxTemplate]) -> _Maker:
    parts = [(_value(places, mailbox.name), mailbox) for mailbox in mailboxes]

    def make(values: list[str]) -> str:
        found = []
        for value, mailbox in parts:
            display_name = value(values)
            check_value(display_name, mailbox.name.field)
            found.append(Mailbox(display_name, mailbox.mailbox.address))
        return mailbox_header(name, found)

    return make


def _value(places: Places, header: HeaderTemplate) -> _Maker:
    pieces = plain(header.pieces)
    return places.line(pieces).text if has_fields(pieces) else lambda values: header.constant


def _uri(places: Places, uri: UriTemplate) -> _Maker:
    pieces = plain(uri.pieces)
    if not has_fields(pieces):
        return lambda values: str(pieces[0])
    text = places.line(pieces).text
    if len(pieces) == 1:
        return text
    return lambda values: text([in_uri(value) for value in values])
