"""Octets and addresses: what the standard library and users make of the cases' neighbours."""

from __future__ import annotations

import email
import email.policy
from email.message import EmailMessage
from email.message import Message as OldMessage

import pytest

from txmail import Attachment, Envelope, Message
from txmail.exceptions import AddressError, MessageError
from txmail.message.to_envelope import to_envelope


def new(to: str) -> EmailMessage:
    message = EmailMessage()
    message["From"] = "a@example.com"
    message["To"] = to
    message.set_content("hello")
    return message


def old(to: str) -> OldMessage:
    message = OldMessage()
    message["From"] = "a@example.com"
    message["To"] = to
    message.set_payload("hello")
    return message


def parsed(to: str) -> OldMessage:
    return email.message_from_bytes(f"From: a@b.c\r\nTo: {to}\r\n\r\nhello\r\n".encode())


LOCALS = ["a..b", ".a", "a.", "..", "a...b.", "a..b c"]


@pytest.mark.parametrize("made", [new, old, parsed])
@pytest.mark.parametrize("local", LOCALS)
def test_c16_an_address_written_with_its_quotes_is_taken_in_a_standard_message(made, local):
    """Stands for advice that does not help whoever follows it."""
    for to in (f'"{local}"@docomo.ne.jp', f'Ann <"{local}"@docomo.ne.jp>'):
        envelope = to_envelope(made(to))
        assert envelope.recipients == (f'"{local}"@docomo.ne.jp',)
        assert f'"{local}"@docomo.ne.jp'.encode() in envelope.content


@pytest.mark.parametrize("made", [new, old, parsed])
@pytest.mark.parametrize("local", LOCALS[:-1])
def test_c16_the_same_without_quotes_is_refused_with_what_to_write(made, local):
    """Stands for the same: quotes that nobody has written are not made up."""
    with pytest.raises((AddressError, MessageError)) as caught:
        to_envelope(made(f"{local}@docomo.ne.jp"))
    assert caught.value.field == "To"


@pytest.mark.parametrize("made", [new, old, parsed])
@pytest.mark.parametrize(
    "to", ["@b", "a@b@c", "a@b..c", "J. Doe, Jr. <b@example.com>", "b@example.com, @c"]
)
def test_c16_an_error_shows_the_header_as_it_was_written(made, to):
    """Stands for errors that show what a parser has made of the text."""
    with pytest.raises((AddressError, MessageError)) as caught:
        to_envelope(made(to))
    assert caught.value.field == "To"
    assert "'<>'" not in str(caught.value)
    assert str(caught.value).rpartition(": ")[2].strip("'") in to


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("charset", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp037"])
def test_c6_quoted_printable_of_a_wide_charset_keeps_its_octets(charset, line_end):
    """Stands for line ends that are octets of something else: they become base64."""
    message = new("b@example.com")
    message.set_content(f"Grüße{line_end}von\nhier", charset=charset, cte="quoted-printable")
    octets = message.get_payload(decode=True)
    content = to_envelope(message).content
    assert email.message_from_bytes(content).get_payload(decode=True) == octets


def test_c6_quoted_printable_of_a_wide_charset_without_a_bare_line_end_stays():
    """Stands for the neighbour that is right as it is: what a parser has read."""
    raw = b"From: a@b.c\r\nTo: d@e.f\r\nContent-Type: text/plain; charset=utf-16-le\r\n"
    raw += b"Content-Transfer-Encoding: quoted-printable\r\n\r\na=00=0A=00=\r\nb=00\r\n"
    content = to_envelope(email.message_from_bytes(raw)).content
    assert content.endswith(b"a=00=0A=00=\r\nb=00\r\n")


INVITATION = "BEGIN:VCALENDAR\r\n{}VERSION:2.0\r\nBEGIN:VEVENT\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n"


@pytest.mark.parametrize(
    ("file", "method"),
    [
        (lambda text: Attachment("invite.ics", "text/calendar", text), "REQUEST"),
        (lambda text: Attachment("invite.ics", None, text.encode()), "REQUEST"),
        (lambda text: Attachment("INVITE.ICS", None, text), "REQUEST"),
        (lambda text: Attachment(None, "Text/Calendar; charset=utf-8", text), "REQUEST"),
        (lambda text: Attachment("i.ics", "text/calendar; method=CANCEL", text), "CANCEL"),
        (lambda text: Attachment("i.ics", "application/ics", text), None),
        (lambda text: Attachment("i.txt", None, text), None),
        (lambda text: Attachment(None, None, text), None),
        (lambda text: Attachment("i.ics", None, text.replace("METHOD", "X-METHOD")), None),
    ],
)
def test_c8_a_calendar_that_is_attached_says_its_method_too(file, method):
    """Stands for an invitation in the other place where it may be put; it stays attached."""
    attached = file(INVITATION.format("METHOD:REQUEST\r\n"))
    message = Message("Meeting", ["b@c.d"], "Come!", sender="me@x.y", attachments=[attached])
    content = message.to_envelope().content
    part = [*email.message_from_bytes(content, policy=email.policy.default).walk()][-1]
    assert part["Content-Type"].params.get("method") == method
    assert part.get_content_disposition() == "attachment"


@pytest.mark.parametrize("content", ["secret", bytearray(b"secret"), memoryview(b"secret"), 7])
def test_c16_an_error_about_a_content_shows_nothing_of_it(content):
    """Stands for bodies in errors."""
    with pytest.raises(MessageError, match="as bytes") as caught:
        Envelope("a@b.c", ["d@e.f"], content)
    assert "secret" not in str(caught.value)
