"""Small messages, and what a server received of them."""

from __future__ import annotations

import email
import email.policy
from email.message import EmailMessage

from txmail import Message
from txmail.message import to_envelope

SENDER = "app@example.com"


def letter(subject: object, *recipients: str) -> Message:
    """A message to `recipients`, or to ann."""
    return Message(
        str(subject), list(recipients) or ["ann@example.com"], body="Hello.", sender=SENDER
    )


def hello(**options) -> Message:
    """A message with `options`, and with the least that it needs besides."""
    settings = {"subject": "hello", "recipients": ["a@b.c"], "body": "text", "sender": "me@x.y"}
    return Message(**{**settings, **options})


def parsed(message, **options) -> EmailMessage:
    """`message` as a server gets it, parsed."""
    content = to_envelope(message, **options).content
    return email.message_from_bytes(content, policy=email.policy.default)


def subjects(server) -> list[str]:
    """The subjects of what `server` has accepted, in order."""
    return [email.message_from_bytes(m.content)["Subject"] for m in server.messages]


def statuses(outcomes) -> list[str]:
    return [str(outcome.status) for outcome in outcomes]
