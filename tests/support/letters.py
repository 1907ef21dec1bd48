"""Small messages, and what a server received of them."""

from __future__ import annotations

import email

from txmail import Message

SENDER = "app@example.com"


def letter(subject: object, *recipients: str) -> Message:
    """A message to `recipients`, or to ann."""
    return Message(
        str(subject), list(recipients) or ["ann@example.com"], body="Hello.", sender=SENDER
    )


def subjects(server) -> list[str]:
    """The subjects of what `server` has accepted, in order."""
    return [email.message_from_bytes(m.content)["Subject"] for m in server.messages]


def statuses(outcomes) -> list[str]:
    return [str(outcome.status) for outcome in outcomes]
