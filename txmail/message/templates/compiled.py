"""`CompiledTemplate`: a template for many messages that differ in a few fields.

The constant lines and headers are rendered once, to their final octets. Each message needs only the
lines and headers that have fields. A field is encoded when it is filled in, never before.

The octets are always those of ``template.render(...).to_envelope()``. Where this is not certain,
`CompiledTemplate` calls just that: a part has more than text and fields, or a field has a control
character or a line end.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import partial
from typing import Any

from ...address import Mailbox, plain_text
from ...envelope import Envelope, pass_gate
from ...exceptions import FieldError
from ..addresses import AddressLike, mailbox_of, parse_envelope_sender
from ..attachment import Attachment
from ..checks import address_headers
from ..content_ids import UNKNOWN, content_ids
from ..message import Message
from ..mime import gate
from ..mime.header_check import check_value
from ..mime.message_id import message_id_of
from ..mime.parts import Part, check_part_headers, header_names, write_content
from ..render import body_part, write_headers
from .compiled_body import CompiledBody, EncodedBody
from .compiled_headers import CompiledHeaders
from .compiled_layout import CompiledLayout
from .placeholders import NotCompilable, Placeholders, compilable, constant_text, has_fields
from .template_parts import Compilable, MailboxTemplate, UriTemplate
from .template_values import in_html

_MARKUP = re.compile("[&<>\"']", re.ASCII)
_STAND_IN_ID = "<x@example.com>"


class CompiledTemplate:
    """Makes envelopes of the messages of one `Template`. `Template.compile` makes it.

    Any number of threads can share one.
    """

    def __init__(
        self,
        template: Compilable,
        *,
        default_sender: AddressLike | None = None,
        html_to_text: Callable[[str], str] | None = None,
    ) -> None:
        self.template = template
        self._default_sender = default_sender
        self._html_to_text = html_to_text
        self._compiled: _CompiledMessage | None = None
        # `envelope` raises the error, if there is one.
        with contextlib.suppress(NotCompilable, FieldError):
            self._compiled = _CompiledMessage(template, default_sender, html_to_text)

    @property
    def prepared(self) -> bool:
        """False if a part has more than text and fields: all messages are rendered in full then."""
        return self._compiled is not None

    def envelope(
        self,
        recipient: AddressLike,
        fields: Mapping[str, Any] | None = None,
        *,
        message_id: str | None = None,
        date: datetime | None = None,
    ) -> Envelope:
        """The `Envelope` of the message to `recipient` with `fields` in it.

        Raises what `Template.render` and `Message.to_envelope` raise.
        """
        if self._compiled is not None:
            # After an error too: the full rendering decides which of several errors is raised.
            try:
                return self._compiled.envelope(recipient, fields, message_id, date)
            except (NotCompilable, FieldError):
                pass
        message = self.template.render(fields, [recipient], message_id=message_id, date=date)
        return message.to_envelope(
            default_sender=self._default_sender, html_to_text=self._html_to_text
        )

    def __reduce__(self) -> tuple[Callable[[Compilable], CompiledTemplate], tuple[Compilable]]:
        again = partial(
            type(self), default_sender=self._default_sender, html_to_text=self._html_to_text
        )
        return again, (self.template,)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.template!r}>"


class _CompiledMessage:
    """The constant octets of the messages of a template, and the places of its fields.

    Raises `NotCompilable` for a template that must be rendered in full.
    """

    def __init__(
        self,
        template: Compilable,
        default_sender: AddressLike | None,
        html_to_text: Callable[[str], str] | None,
    ) -> None:
        self._placeholders = Placeholders()
        prototype = _prototype(template)
        addresses = address_headers(prototype, default_sender)
        self._author = addresses.author
        self._others = tuple([m.address.text for m in (*addresses.cc, *addresses.bcc)])
        path = prototype.envelope_sender
        self._path = addresses.author.address.text if path is None else parse_envelope_sender(path)
        part = body_part(prototype, html_to_text)
        self._bodies: list[CompiledBody] = []
        self._layout = CompiledLayout(
            part, self._find_bodies(template, part, html_to_text is not None)
        )
        _check_related(template, prototype.attachments)
        headers = write_headers(prototype, addresses, _STAND_IN_ID)
        self._headers = CompiledHeaders(template, prototype, headers, self._placeholders)
        names = [header.partition(":")[0] for header in headers]
        self._names = names + header_names(part)
        # The gate checks the constant octets once, here.
        check_part_headers(part)
        content, boundaries = write_content(headers, part, _STAND_IN_ID)
        gate.check(content, intended_headers=self._names, boundaries=boundaries, known_parts=True)

    def _find_bodies(self, template: Compilable, part: Part, makes_text: bool) -> list[Part]:
        """Note the bodies that have fields. Returns the parts of the prototype for them."""
        texts = [(compilable(template.text.pieces), False)] if template.text else []
        texts += [(compilable(template.html.pieces), True)] if template.html else []
        # An empty text makes no part.
        texts = [(pieces, html) for pieces, html in texts if any(pieces)]
        if makes_text and texts[0][1] and has_fields(texts[0][0]):
            raise NotCompilable
        found = []
        for body, (pieces, html) in zip(_body_parts(part), texts, strict=False):
            if has_fields(pieces):
                self._bodies.append(CompiledBody(pieces, self._placeholders, html=html))
                found.append(body)
        return found

    def envelope(
        self, recipient: AddressLike, fields: Any, message_id: str | None, date: datetime | None
    ) -> Envelope:
        """The envelope of one message."""
        values, joined = self._placeholders.values(fields)
        mailbox = mailbox_of(recipient, "recipients")
        if message_id is not None:
            message_id = plain_text(message_id)
            check_value(message_id, "message_id")
        message_id = message_id_of(message_id, self._author)
        headers = self._headers.write(values, mailbox, message_id, date)
        head = "".join(headers).encode()
        bodies = self._encode_bodies(values, joined)
        content = self._layout.write(head, message_id, bodies)
        # The gate has checked all other octets before.
        end = content.index(b"\r\n\r\n") + 4
        variable = b"".join([content[:end], *[body.variable for body in bodies]])
        gate.check(variable, intended_headers=self._names, known_parts=True)
        return pass_gate(Envelope(self._path, (mailbox.address.text, *self._others), content))

    def _encode_bodies(self, values: list[str], joined: str) -> list[EncodedBody]:
        escaped = values
        if _MARKUP.search(joined):
            escaped = [in_html(value) for value in values]
        simple = joined.isascii() and joined.isprintable() and "=" not in joined
        return [
            body.encode(escaped if body.html else values, simple=simple) for body in self._bodies
        ]


def _body_parts(part: Part) -> Iterator[Part]:
    """The parts that are no multiparts. Text and HTML come first."""
    if not part.parts:
        yield part
    for child in part.parts:
        yield from _body_parts(child)


def _check_related(template: Compilable, attachments: Iterable[Attachment]) -> None:
    """Raise `NotCompilable` if a field may decide whether the HTML shows an attachment."""
    pieces = compilable(template.html.pieces) if template.html else ()
    if not has_fields(pieces):
        return
    texts = [piece if isinstance(piece, str) else UNKNOWN for piece in pieces]
    referenced = content_ids("".join(texts))
    for attachment in attachments:
        if attachment.cid and not (attachment.inline or attachment.cid in referenced):
            raise NotCompilable


def _prototype(template: Compilable) -> Message:
    """A message with everything that the messages of `template` have in common."""

    def stand_in(pieces: Any) -> str:
        return "x" if has_fields(compilable(pieces)) else constant_text(pieces)

    def named(mailbox: MailboxTemplate) -> Mailbox:
        return Mailbox(stand_in(mailbox.name.pieces), mailbox.mailbox.address)

    def uri(uri: UriTemplate) -> str:
        return constant_text(compilable(uri.pieces)) or "https://example.com"

    def body(text: Any) -> str | None:
        pieces = compilable(text.pieces) if text else ()
        return constant_text(pieces) or ("x" if has_fields(pieces) else None)

    options = {**template.constants, "recipients": ["x@example.com"]}
    for field, uris in template.uris.items():
        found = [uri(each) for each in uris]
        options[field] = found[0] if len(found) == 1 else found
    return Message(
        stand_in(template.subject.pieces),
        body=body(template.text),
        html=body(template.html),
        sender=named(template.sender) if template.sender else None,
        extra_headers=[(name, stand_in(header.pieces)) for name, header in template.headers],
        reply_to=[named(mailbox) for mailbox in template.reply_to] or None,
        message_id=_STAND_IN_ID,
        **options,
    )
