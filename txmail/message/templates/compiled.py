"""`CompiledTemplate`: a template prepared for many messages that differ in a few fields.

What does not change is rendered once, to its final octets. Of each message only the lines that have
a field on them are made, in the encoding of the body they stand in, and the headers that have one,
by the header writer; fields are encoded for their place and never before.

Nothing here has a will of its own: the octets are those of ``template.render(...).to_envelope()``.
Where that is not certain, because there is more than text and fields in a part, or a field has a
control character or a line end, this is just what is called.
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
from ..addresses import Entry, mailbox_of, reverse_path
from ..attachment import Attachment
from ..checks import address_headers
from ..content_ids import UNKNOWN, content_ids
from ..message import Message
from ..mime import gate
from ..mime.header_check import check_value
from ..mime.message_id import message_id_of
from ..mime.parts import Part, check_headers, header_names, write
from ..render import body_of, headers_of
from .compiled_body import Body, Filled, NotPlain, Places, constant, has_fields, plain
from .compiled_headers import Headers
from .compiled_layout import Layout
from .template_parts import Compilable, MailboxTemplate, UriTemplate
from .template_values import in_html

_MARKUP = re.compile("[&<>\"']", re.ASCII)
_STAND_IN_ID = "<x@example.com>"


class CompiledTemplate:
    """Makes the envelopes of messages that have one `Template`. Made by `Template.compile`.

    One serves any number of threads.
    """

    def __init__(
        self,
        template: Compilable,
        *,
        default_sender: Entry | None = None,
        html_to_text: Callable[[str], str] | None = None,
    ) -> None:
        self.template = template
        self._default_sender = default_sender
        self._html_to_text = html_to_text
        self._plan: _Plan | None = None
        # What is wrong, if anything, is told when an envelope is wanted.
        with contextlib.suppress(NotPlain, FieldError):
            self._plan = _Plan(template, default_sender, html_to_text)

    @property
    def prepared(self) -> bool:
        """False if all messages are rendered in full: a part has more than text and fields."""
        return self._plan is not None

    def envelope(
        self,
        recipient: Entry,
        fields: Mapping[str, Any] | None = None,
        *,
        message_id: str | None = None,
        date: datetime | None = None,
    ) -> Envelope:
        """The `Envelope` of the message to `recipient` with `fields` in it, past the gate.

        Raises what `Template.render` and `Message.to_envelope` raise.
        """
        if self._plan is not None:
            # An error is left to the full rendering, too: it has several to choose from.
            try:
                return self._plan.envelope(recipient, fields, message_id, date)
            except (NotPlain, FieldError):
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


class _Plan:
    """All that is known of the messages of a template. Raises `NotPlain` if it is too little."""

    def __init__(
        self,
        template: Compilable,
        default_sender: Entry | None,
        html_to_text: Callable[[str], str] | None,
    ) -> None:
        self._places = Places()
        prototype = _prototype(template)
        addresses = address_headers(prototype, default_sender)
        self._author = addresses.author
        self._others = tuple([m.address.text for m in (*addresses.cc, *addresses.bcc)])
        path = prototype.envelope_sender
        self._path = addresses.author.address.text if path is None else reverse_path(path)
        part = body_of(prototype, html_to_text)
        self._bodies: list[Body] = []
        self._layout = Layout(part, self._find_bodies(template, part, html_to_text is not None))
        _check_places(template, prototype.attachments)
        headers = headers_of(prototype, addresses, _STAND_IN_ID)
        self._headers = Headers(template, prototype, headers, self._places)
        names = [header.partition(":")[0] for header in headers]
        self._names = names + header_names(part)
        # What does not change passes the gate now.
        check_headers(part)
        content, boundaries = write(headers, part, _STAND_IN_ID)
        gate.check(content, intended_headers=self._names, boundaries=boundaries, known_parts=True)

    def _find_bodies(self, template: Compilable, part: Part, makes_text: bool) -> list[Part]:
        """Note the bodies that have fields in them; the parts in which the prototype has them."""
        texts = [(plain(template.text.pieces), False)] if template.text else []
        texts += [(plain(template.html.pieces), True)] if template.html else []
        # An empty one is no part of a message.
        texts = [(pieces, html) for pieces, html in texts if any(pieces)]
        if makes_text and texts[0][1] and has_fields(texts[0][0]):
            raise NotPlain
        found = []
        for leaf, (pieces, html) in zip(_leaves(part), texts, strict=False):
            if has_fields(pieces):
                self._bodies.append(Body(pieces, self._places, html=html))
                found.append(leaf)
        return found

    def envelope(
        self, recipient: Entry, fields: Any, message_id: str | None, date: datetime | None
    ) -> Envelope:
        """The envelope of one message."""
        values, together = self._places.values(fields)
        mailbox = mailbox_of(recipient, "recipients")
        if message_id is not None:
            message_id = plain_text(message_id)
            check_value(message_id, "message_id")
        message_id = message_id_of(message_id, self._author)
        headers = self._headers.of(values, mailbox, message_id, date)
        head = "".join(headers).encode()
        bodies = self._filled(values, together)
        content = self._layout.write(head, message_id, bodies)
        # All else has been here before.
        end = content.index(b"\r\n\r\n") + 4
        made = b"".join([content[:end], *[body.made for body in bodies]])
        gate.check(made, intended_headers=self._names, known_parts=True)
        return pass_gate(Envelope(self._path, (mailbox.address.text, *self._others), content))

    def _filled(self, values: list[str], together: str) -> list[Filled]:
        escaped = values
        if _MARKUP.search(together):
            escaped = [in_html(value) for value in values]
        simple = together.isascii() and together.isprintable() and "=" not in together
        return [
            body.filled(escaped if body.html else values, simple=simple) for body in self._bodies
        ]


def _leaves(part: Part) -> Iterator[Part]:
    """The parts that are no multiparts: text and HTML come first, whatever else there is."""
    if not part.parts:
        yield part
    for child in part.parts:
        yield from _leaves(child)


def _check_places(template: Compilable, attachments: Iterable[Attachment]) -> None:
    """Raise `NotPlain` if it may depend on a field whether an attachment is shown in the HTML."""
    pieces = plain(template.html.pieces) if template.html else ()
    if not has_fields(pieces):
        return
    texts = [piece if isinstance(piece, str) else UNKNOWN for piece in pieces]
    called = content_ids("".join(texts))
    for attachment in attachments:
        if attachment.cid and not (attachment.inline or attachment.cid in called):
            raise NotPlain


def _prototype(template: Compilable) -> Message:
    """A message with all that those of `template` have in common; raises `NotPlain`."""

    def stand_in(pieces: Any) -> str:
        return "x" if has_fields(plain(pieces)) else constant(pieces)

    def named(mailbox: MailboxTemplate) -> Mailbox:
        return Mailbox(stand_in(mailbox.name.pieces), mailbox.mailbox.address)

    def uri(uri: UriTemplate) -> str:
        return constant(plain(uri.pieces)) or "https://example.com"

    def body(text: Any) -> str | None:
        pieces = plain(text.pieces) if text else ()
        return constant(pieces) or ("x" if has_fields(pieces) else None)

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
