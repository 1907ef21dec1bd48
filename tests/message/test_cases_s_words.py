"""Encoded words: none in an address, and none that a lenient reader decodes to a line end."""

from __future__ import annotations

import email
import email.policy
from email.message import EmailMessage

import pytest

from txmail import Envelope, Message
from txmail.address import parse_address
from txmail.exceptions import AddressError, BadHeaders, FieldError
from txmail.message import to_envelope

HEAD = "From: me@x.y\r\nDate: x\r\nMessage-ID: <a@b>\r\n"

#: What some reader decodes to another address than the server delivers to.
ADDRESSES = [
    "=?utf-8?q?b=40evil.example=3e?=a@example.com",
    "=?utf-8?q?b?=@example.com",
    "a.=?utf-8?B?Yg==?=@example.com",
    "a=?utf-8?q?b?=c@example.com",
    "=?utf-8*en?Q?b?=@example.com",
    "=??q?b?=@example.com",
    "=?utf-8?q?b@example.com",
    '"=?utf-8?q?b=40evil?="@example.com',
    "é=?utf-8?q?b?=@example.com",
]


def parsed(policy, **headers):
    lines = {"From": "me@x.y", "To": "a@b.c", **headers}
    text = "".join(f"{name}: {value}\n" for name, value in lines.items())
    return email.message_from_bytes(f"{text}\ntext\n".encode(), policy=policy)


@pytest.mark.parametrize("address", ADDRESSES)
def test_s4_an_encoded_word_in_an_address_is_refused(address):
    """Stands for any text that readers of headers decode and mail servers do not."""
    with pytest.raises(AddressError):
        parse_address(address)
    for entry in (address, f"Name <{address}>", ("Name", address)):
        with pytest.raises(AddressError):
            Message("hello", [entry], "text", sender="me@x.y").to_envelope()
    with pytest.raises(AddressError):
        Envelope("me@x.y", [address], b"")


@pytest.mark.parametrize("policy", [email.policy.compat32, email.policy.SMTP], ids=["old", "new"])
@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("name", ["To", "From", "Cc", "Reply-To"])
def test_s4_an_encoded_word_in_an_address_of_a_header_is_refused(address, policy, name):
    """The same in a message of the standard library, and in the octets of an envelope."""
    for value in (address, f"<{address}>", f"Name <{address}>", f"b@c.d, {address}"):
        with pytest.raises(FieldError):
            to_envelope(parsed(policy, **{name: value}), sender="me@x.y", recipients=["a@b.c"])
        head = HEAD.replace("From: me@x.y\r\n", "") if name == "From" else HEAD
        content = f"{head}{name}: {value}\r\n\r\ntext\r\n".encode()
        with pytest.raises(BadHeaders):
            to_envelope(Envelope("me@x.y", ["a@b.c"], content))


@pytest.mark.parametrize("address", ADDRESSES)
def test_s4_an_encoded_word_that_the_standard_library_has_decoded_is_refused(address):
    """The same where only the tree of a parsed header still knows it."""
    message = EmailMessage()
    message["From"], message["To"] = "me@x.y", address
    message.set_content("text")
    with pytest.raises(FieldError):
        to_envelope(message)


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("=?utf-8", "?q?b=40evil.example=3e?=a@example.com"),
        ("?q?b=40evil?=", "a@example.com"),
        ("a?B?YQ==", "a@example.com"),
    ],
)
def test_s4_no_word_is_made_of_a_name_and_an_address(name, address):
    """The same where each part alone is harmless: the mark of the encoding is never in clear."""
    try:
        message = Message("hello", [(name, address)], "text", sender="me@x.y")
        found = email.message_from_bytes(message.to_envelope().content, policy=email.policy.SMTP)
    except AddressError:
        return
    [shown] = found["To"].addresses
    assert (shown.display_name, shown.addr_spec) == (name, address)


@pytest.mark.parametrize(
    "value",
    [
        "=?utf-8?q?B=C3=B6b?= <a@b.c>",
        "=?utf-8?q?joe@b.c?= <joe@b.c>",
        '"=?utf-8?q?Bob_=40?=" <a@b.c>, c@d.e',
        "=?utf-8?q?a?= =?utf-8?q?b?= <a@b.c>, =?utf-8?b?YQ==?= <x@y.z>",
        "Mr. =?utf-8?q?x?= (=?utf-8?q?com?=) <a@b.c>",
        "=?utf-8?q?x?=<a@b.c>",
        "a=?^b@c.d",
    ],
)
def test_s4_an_encoded_word_in_a_name_is_taken(value):
    """What is often found in front of an address is not refused with it."""
    for policy in (email.policy.compat32, email.policy.SMTP):
        assert to_envelope(parsed(policy, To=value)).recipients
    content = f"{HEAD}To: {value}\r\n\r\ntext\r\n".encode()
    assert to_envelope(Envelope("me@x.y", ["a@b.c"], content))


@pytest.mark.parametrize(
    "text",
    [
        "=?utf-8?q?=0d=0aBcc:_x=40y.z",
        "=?utf-8?Q?=0D",
        "hello =?utf-8?q?=0a there",
        "=??b?DQo",
        "=?utf-8?b?DQoNCg",
        "=?x-unknown?q?=00",
        "=?utf-8*en?q?=0d=0ax",
        "=?utf-8?q?a_b?= =?utf-8?q?=0d",
        "=?utf-8?q?=E2=80=A8",
        "=?utf-8?q?a=?utf-8?q?=0d",
    ],
)
def test_s5_a_word_without_its_end_is_decoded_before_it_is_taken(text):
    """Stands for any encoding that is not closed, and that lenient readers decode."""
    for policy in (email.policy.compat32, email.policy.SMTP):
        for name in ("Subject", "X-Text", "Comments"):
            with pytest.raises(BadHeaders):
                to_envelope(parsed(policy, **{name: text}))
    for value in (text, f"\r\n {text}", f"{text}\r\n\tx"):
        content = f"{HEAD}Subject: {value}\r\n\r\ntext\r\n".encode()
        with pytest.raises(BadHeaders):
            to_envelope(Envelope("me@x.y", ["a@b.c"], content))
    with pytest.raises(BadHeaders):
        Message(text, ["a@b.c"], "text", sender="me@x.y").to_envelope()


@pytest.mark.parametrize("text", ["=?utf-8?q?hello", "=? what", "=?utf-8?b?aGVsbG8", "a =?x?y?"])
def test_s5_a_word_without_its_end_that_hides_nothing_is_taken(text):
    """It is no defect that anybody is harmed by."""
    assert to_envelope(parsed(email.policy.SMTP, Subject=text))
    assert Message(text, ["a@b.c"], "text", sender="me@x.y").to_envelope()
