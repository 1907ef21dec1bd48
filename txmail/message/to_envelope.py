"""`to_envelope`: the envelope of any message that can be sent."""

from __future__ import annotations

import email.message
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from ..common.shown import name_of
from ..envelope import Envelope, pass_gate
from ..exceptions import InvalidMessage
from .addresses import AddressLike, parse_envelope_sender, parse_recipients
from .message import Message
from .mime import gate
from .stdlib.convert import envelope_of_stdlib


def to_envelope(
    message: Any,
    *,
    sender: AddressLike | None = None,
    recipients: Iterable[AddressLike] | None = None,
    default_sender: AddressLike | None = None,
    html_to_text: Callable[[str], str] | None = None,
) -> Envelope:
    """The `Envelope` of `message`. The gate has checked it; `message` itself does not change.

    `message`
        An `IMessage` such as `Message`, a message of the standard library, or an `Envelope`, whose
        content stays as it is.
    `sender`, `recipients`
        Replace the addresses of the envelope. The headers stay. A `sender` of ``"<>"`` is the null
        sender.
    `default_sender`
        The From of a message without one.
    `html_to_text`
        An `IHtmlToText`. It makes the text part of a `Message` that has HTML only.

    Raises `MessageError` or `AddressError` for a message that cannot be sent. The error names the
    argument or header that is wrong.
    """
    if isinstance(message, Envelope):
        return _readdressed(_checked(message), sender, recipients)
    if isinstance(message, email.message.Message):
        return envelope_of_stdlib(
            message, sender=sender, recipients=recipients, default_sender=default_sender
        )
    # An error shows the type only: a text that was passed by mistake may be a secret.
    kind = name_of(type(message))
    if isinstance(message, type) or not callable(getattr(message, "to_envelope", None)):
        raise InvalidMessage(f"a value of type {kind} is not a message", field="message")
    options: dict[str, Any] = {"html_to_text": html_to_text} if isinstance(message, Message) else {}
    envelope = message.to_envelope(
        sender=sender, recipients=recipients, default_sender=default_sender, **options
    )
    if not isinstance(envelope, Envelope):
        raise InvalidMessage(f"to_envelope() of {kind} did not return an Envelope", field="message")
    return _checked(envelope)


def _checked(envelope: Envelope) -> Envelope:
    """`envelope`. The gate checks it, unless it has done so before."""
    if not envelope.gated:
        gate.check(envelope.content)
        pass_gate(envelope)
    return envelope


def _readdressed(
    envelope: Envelope, sender: AddressLike | None, recipients: Iterable[AddressLike] | None
) -> Envelope:
    """`envelope`, with another sender or other recipients if they are given."""
    changed: dict[str, Any] = {}
    if sender is not None:
        changed["sender"] = parse_envelope_sender(sender)
    if recipients is not None:
        changed["recipients"] = tuple(m.address.text for m in parse_recipients(recipients))
    return pass_gate(replace(envelope, **changed)) if changed else envelope
