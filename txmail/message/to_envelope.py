"""One door for everything that can be sent: `to_envelope`."""

from __future__ import annotations

import email.message
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from ..common.shown import name_of
from ..envelope import Envelope, pass_gate
from ..exceptions import InvalidMessage
from .addresses import Entry, overriding, reverse_path
from .message import Message
from .mime import gate
from .stdlib.convert import envelope_of_stdlib


def to_envelope(
    message: Any,
    *,
    sender: Entry | None = None,
    recipients: Iterable[Entry] | None = None,
    default_sender: Entry | None = None,
    html_to_text: Callable[[str], str] | None = None,
) -> Envelope:
    """The `Envelope` to be sent for `message`, which is not written to and has passed the gate.

    `message`
        An `IMessage` such as `Message`, a message of the standard library, or an `Envelope`, which
        is taken as it is.
    `sender`, `recipients`
        Replace the envelope's; the headers stay. A `sender` of ``"<>"`` is the null sender.
    `default_sender`
        The From of a message without one.
    `html_to_text`
        An `IHtmlToText` for a `Message` that has HTML only; the others are complete as they are.

    Raises `MessageError` or `AddressError` for what cannot be sent, naming what is wrong.
    """
    if isinstance(message, Envelope):
        if not message.gated:
            gate.check(message.content)
            pass_gate(message)
        changed: dict[str, Any] = {}
        if sender is not None:
            changed["sender"] = reverse_path(sender)
        if recipients is not None:
            changed["recipients"] = tuple(m.address.text for m in overriding(recipients))
        return pass_gate(replace(message, **changed)) if changed else message
    if isinstance(message, email.message.Message):
        return envelope_of_stdlib(
            message, sender=sender, recipients=recipients, default_sender=default_sender
        )
    # Only its type is told: text handed in by mistake must not show up in an error.
    kind = name_of(type(message))
    if isinstance(message, type) or not callable(getattr(message, "to_envelope", None)):
        raise InvalidMessage(f"a value of type {kind} is no message", field="message")
    options: dict[str, Any] = {"html_to_text": html_to_text} if isinstance(message, Message) else {}
    envelope = message.to_envelope(
        sender=sender, recipients=recipients, default_sender=default_sender, **options
    )
    if not isinstance(envelope, Envelope):
        raise InvalidMessage(f"to_envelope() of {kind} gave no Envelope", field="message")
    if not envelope.gated:
        gate.check(envelope.content)
        pass_gate(envelope)
    return envelope
