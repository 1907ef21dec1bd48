"""The headers of a template: only headers with fields are written for each message."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from datetime import datetime

from ...address import Mailbox
from ...common.ascii_text import ascii_lower
from ..list_headers import ListArguments, list_headers
from ..mime import header_write
from ..mime.date import date_text, new_date
from ..mime.header_check import check_value
from ..render import MAILBOX_HEADERS
from .placeholders import NotCompilable, Placeholders, compilable, has_fields
from .template_parts import Compilable, HeaderTemplate, MailboxTemplate, UriTemplate
from .template_values import in_uri

#: Writes a header, or the value of a header, from the values of the fields.
_Writer = Callable[[list[str]], str]


class CompiledHeaders:
    """The headers of the messages of a template.

    `fixed` are the headers of `prototype`, which has everything that these messages have in common.
    """

    def __init__(
        self,
        template: Compilable,
        prototype: ListArguments,
        fixed: list[str],
        placeholders: Placeholders,
    ) -> None:
        self._fixed = fixed
        self._prototype = prototype
        self._to, self._date, self._id = map(self._index, ("To", "Date", "Message-ID"))
        # MIME-Version is last, after the extra headers of the template.
        first = len(fixed) - 1 - len(template.headers)
        self._lists = slice(self._id + 1, first)
        self._writers: list[tuple[int, _Writer]] = []
        if has_fields(compilable(template.subject.pieces)):
            writer = _text(placeholders, "Subject", template.subject)
            self._writers.append((self._index("Subject"), writer))
        for index, (name, header) in enumerate(template.headers, first):
            if has_fields(compilable(header.pieces)):
                self._writers.append((index, _text(placeholders, name, header)))
        senders = [template.sender] if template.sender else []
        for name, mailboxes in (("From", senders), ("Reply-To", template.reply_to)):
            if any(has_fields(compilable(mailbox.name.pieces)) for mailbox in mailboxes):
                self._writers.append((self._index(name), _mailboxes(placeholders, name, mailboxes)))
        self._uris = {
            field: [_uri(placeholders, uri) for uri in uris]
            for field, uris in template.uris.items()
            if any(has_fields(compilable(uri.pieces)) for uri in uris)
        }

    def _index(self, name: str) -> int:
        return next(n for n, header in enumerate(self._fixed) if header.startswith(f"{name}:"))

    def write(
        self, values: list[str], recipient: Mailbox, message_id: str, date: datetime | None
    ) -> list[str]:
        """The headers of one message. Raises `NotCompilable` for a message to render in full."""
        if date is not None and (not isinstance(date, datetime) or date.utcoffset() is None):
            raise NotCompilable
        headers = self._fixed.copy()
        headers[self._to] = header_write.mailbox_header("To", [recipient])
        headers[self._date] = f"Date: {new_date() if date is None else date_text(date)}\r\n"
        headers[self._id] = f"Message-ID: {message_id}\r\n"
        for index, make in self._writers:
            headers[index] = make(values)
        if self._uris:
            message = copy.copy(self._prototype)
            for field, writers in self._uris.items():
                uris = [make(values) for make in writers]
                setattr(message, field, uris[0] if len(uris) == 1 else uris)
            found = list_headers(message)
            if len(found) != self._lists.stop - self._lists.start:
                raise NotCompilable  # an argument is empty
            headers[self._lists] = found
        return headers


def _text(placeholders: Placeholders, name: str, header: HeaderTemplate) -> _Writer:
    if ascii_lower(name) in MAILBOX_HEADERS:
        raise NotCompilable
    line = placeholders.text_format(compilable(header.pieces))

    def make(values: list[str]) -> str:
        text = line.fill(values)
        if not text and name == "Subject":
            raise NotCompilable  # an empty subject has no header
        check_value(text, header.field, tab=True)
        return header_write.header(name, text)

    return make


def _mailboxes(
    placeholders: Placeholders, name: str, mailboxes: Iterable[MailboxTemplate]
) -> _Writer:
    parts = [(_value(placeholders, mailbox.name), mailbox) for mailbox in mailboxes]

    def make(values: list[str]) -> str:
        found = []
        for value, mailbox in parts:
            display_name = value(values)
            check_value(display_name, mailbox.name.field)
            found.append(Mailbox(display_name, mailbox.mailbox.address))
        return header_write.mailbox_header(name, found)

    return make


def _value(placeholders: Placeholders, header: HeaderTemplate) -> _Writer:
    pieces = compilable(header.pieces)
    return (
        placeholders.text_format(pieces).fill
        if has_fields(pieces)
        else lambda values: header.constant
    )


def _uri(placeholders: Placeholders, uri: UriTemplate) -> _Writer:
    pieces = compilable(uri.pieces)
    if not has_fields(pieces):
        return lambda values: str(pieces[0])
    fill = placeholders.text_format(pieces).fill
    if len(pieces) == 1:
        return fill
    return lambda values: fill([in_uri(value) for value in values])
