"""Values and structures that are not what they seem: types that lie, boundaries that meet."""

from __future__ import annotations

import email
import email.policy
from email.message import EmailMessage
from email.message import Message as OldMessage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText

import pytest
from letters import hello

from txmail import Attachment, Envelope
from txmail.address import Address, Mailbox
from txmail.exceptions import FieldError, InvalidMessage, TxmailError
from txmail.message import to_envelope
from txmail.message.mime import gate

HEAD = "From: me@x.y\r\nDate: x\r\nMessage-ID: <a@b>\r\n"
EVIL = "x\r\nBcc: eve@example.com\r\n\r\nevil"


class Liar(str):
    """Harmless whoever asks, and something else when it is written."""

    __slots__ = ()

    def isascii(self):
        return True

    def isprintable(self):
        return True

    def __contains__(self, part):
        return False

    def __len__(self):
        return 3

    def __str__(self):
        return "abc"

    def __format__(self, specification):
        return EVIL

    def __eq__(self, other):
        return other == "abc"

    __hash__ = str.__hash__

    def strip(self, *arguments):
        return self

    def lower(self):
        return "abc"

    def replace(self, *arguments):
        return self

    def encode(self, *arguments):
        return EVIL.encode()

    def translate(self, table):
        return EVIL


class LiarOctets(bytes):
    def __len__(self):
        return 3

    def isascii(self):
        return True

    def count(self, *arguments):
        return 0

    def decode(self, *arguments):
        return "abc"

    def __bytes__(self):
        return b"abc"

    def __contains__(self, part):
        return False

    def startswith(self, *arguments):
        return True


def attached(**options):
    given = {"filename": "a.bin", "content_type": "text/plain", "data": b"x", **options}
    return hello(attachments=[Attachment(**given)])


LIES = {
    "subject": lambda lie: hello(subject=lie),
    "body": lambda lie: hello(body=lie),
    "html": lambda lie: hello(html=lie),
    "calendar": lambda lie: hello(calendar=lie),
    "sender": lambda lie: hello(sender=lie),
    "sender's name": lambda lie: hello(sender=(lie, "a@b.c")),
    "recipients": lambda lie: hello(recipients=[lie]),
    "recipient's address": lambda lie: hello(cc=[("Name", lie)]),
    "reply_to": lambda lie: hello(reply_to=lie),
    "envelope_sender": lambda lie: hello(envelope_sender=lie),
    "value of a header": lambda lie: hello(extra_headers={"X-A": lie}),
    "name of a header": lambda lie: hello(extra_headers={lie: "x"}),
    "pair of a header": lambda lie: hello(extra_headers=[("Keywords", lie)]),
    "message_id": lambda lie: hello(message_id=lie),
    "list_id": lambda lie: hello(list_id=lie),
    "list_unsubscribe": lambda lie: hello(list_unsubscribe=[lie]),
    "auto_submitted": lambda lie: hello(auto_submitted=lie),
    "filename": lambda lie: attached(filename=lie),
    "content_type": lambda lie: attached(content_type=lie),
    "disposition": lambda lie: attached(disposition=lie),
    "transfer_encoding": lambda lie: attached(transfer_encoding=lie),
    "content_id": lambda lie: attached(content_id=lie),
    "data": lambda lie: attached(data=lie, transfer_encoding="7bit"),
    "body as attachment": lambda lie: hello(body=Attachment(data=lie, transfer_encoding="8bit")),
}


@pytest.mark.parametrize("field", LIES)
@pytest.mark.parametrize("text", [EVIL, "x\n\ny", "\r\n--b", "a@b.c", "7bit\0"])
def test_s10_a_text_that_lies_is_taken_for_what_it_is(field, text):
    """Stands for any value that answers checks in one way and is written in another."""
    message = LIES[field](Liar(text))
    try:
        content = message.to_envelope().content
    except TxmailError:
        content = b""
    assert b"eve@example.com" not in content.partition(b"\r\n\r\n")[0]
    for part in email.message_from_bytes(content).walk():
        assert part["Bcc"] is None
    # It is what a plain text would have been.
    try:
        plain = LIES[field](str.__str__(Liar(text))).to_envelope()
    except FieldError:
        plain = None
    assert (plain is None) is (content == b"")
    if plain is not None:
        assert len(plain.content) == len(content)


def test_s10_octets_that_lie_are_taken_for_what_they_are():
    """The same for `bytes`, in an attachment and in an envelope."""
    octets = LiarOctets(b"a\nb\0" + b"x" * 2000)
    with pytest.raises(InvalidMessage):
        attached(data=octets, transfer_encoding="7bit").to_envelope()
    content = LiarOctets(HEAD.encode() + b"\r\na\nb\r\n")
    envelope = Envelope("a@b.c", ["a@b.c"], content)
    assert type(envelope.content) is bytes
    assert type(envelope.with_content(content).content) is bytes
    with pytest.raises(InvalidMessage):
        to_envelope(envelope)


def test_s10_what_an_envelope_holds_is_plain():
    """The same for addresses: what stands in a command is what was parsed."""
    with pytest.raises(FieldError):
        Envelope(Liar("me@x.y> SIZE=1"), ["a@b.c"], b"")
    envelope = Envelope(Liar("me@x.y"), [Liar("a@b.c")], b"")
    assert [type(t) for t in (envelope.sender, *envelope.recipients)] == [str, str]
    forged = Mailbox("Name", Address("a@b.c> X", "a", "b.c", b"<a@b.c>\r\nRSET", False))
    with pytest.raises(FieldError):
        hello(recipients=[forged]).to_envelope()
    lying = Mailbox(Liar(EVIL), Address("a@b.c", "eve", "example.com", b"<eve@example.com>", False))
    with pytest.raises(FieldError):
        hello(recipients=[lying]).to_envelope()


@pytest.mark.parametrize("policy", [email.policy.compat32, email.policy.SMTP], ids=["old", "new"])
@pytest.mark.parametrize("place", ["header", "name", "part", "body"])
def test_s10_a_text_that_lies_in_a_message_of_the_standard_library(policy, place):
    """The same where the standard library has kept it."""
    message = MIMEMultipart(policy=policy)
    message["From"], message["To"] = "me@x.y", "a@b.c"
    part = MIMEText("text", policy=policy)
    message.attach(part)
    if place == "header":
        message._headers.append(("X-A", Liar(EVIL)))
    elif place == "name":
        message._headers.append((Liar(EVIL), "x"))
    elif place == "part":
        part._headers.append(("X-A", Liar(EVIL)))
    else:
        part._payload = Liar("a\0b")
    with pytest.raises(FieldError):
        to_envelope(message)


@pytest.mark.parametrize(
    "header",
    [
        "X-A: =?utf-8?q?=0d=0aBcc:_eve?=",
        "Content-Disposition: attachment; filename*=utf-8''a%0d%0ab",
        "Content-Type: text/plain; name=\"=?utf-8?b?DQo=?=\"",
        "X-A: a\x01b",
        "X-A: =?utf-8?q?=00",
    ],
)  # fmt: skip
@pytest.mark.parametrize("deep", [False, True])
def test_s10_the_gate_looks_into_the_headers_of_each_part(header, deep):
    """The same for octets: a part's header is read as the message's is."""
    inner = f"--b\r\n{header}\r\n\r\ntext\r\n--b--\r\n"
    if deep:
        inner = f"--o\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n{inner}\r\n--o--\r\n"
    outer = "o" if deep else '"b"'
    content = f"{HEAD}Content-Type: multipart/mixed;\r\n boundary={outer}\r\n\r\n{inner}"
    with pytest.raises(FieldError):
        gate.check(content.encode())
    gate.check(content.replace(header, "X-A: x").encode())


def nested(outer, inner, *, message=False):
    """A multipart in another, or in a message that is attached to it."""
    kind = "Content-Type: message/rfc822\r\n\r\nSubject: x\r\n" if message else ""
    return (
        f"{HEAD}Content-Type: multipart/mixed; boundary=\"{outer}\"\r\n\r\n--{outer}\r\n{kind}"
        f"Content-Type: multipart/mixed; boundary=\"{inner}\"\r\n\r\n--{inner}\r\n\r\nx\r\n"
        f"--{inner}--\r\n\r\n--{outer}--\r\n"
    ).encode()  # fmt: skip


@pytest.mark.parametrize("message", [False, True])
@pytest.mark.parametrize(
    ("outer", "inner"), [("b", "b"), ("a b", "a b"), ("b", "b--"), ("x=_1", "x=_1"), ("'", "'")]
)
def test_s6_a_multipart_with_the_boundary_of_one_around_it_is_refused(outer, inner, message):
    """Stands for parts that readers attach to another multipart than the writer meant."""
    with pytest.raises(InvalidMessage, match="boundary"):
        to_envelope(Envelope("a@b.c", ["a@b.c"], nested(outer, inner, message=message)))
    for policy in (email.policy.compat32, email.policy.SMTP):
        with pytest.raises(InvalidMessage):
            to_envelope(
                email.message_from_bytes(nested(outer, inner, message=message), policy=policy),
                sender="a@b.c",
                recipients=["a@b.c"],
            )
    gate.check(nested("outer", "inner", message=message))


@pytest.mark.parametrize("kind", [EmailMessage, OldMessage])
@pytest.mark.parametrize("attached", [False, True])
def test_s6_a_tree_with_one_boundary_for_two_levels_is_refused(kind, attached):
    """The same where the tree is right, and the octets would not be."""
    message, inner, leaf = kind(), kind(), kind()
    for multipart in (message, inner):
        multipart["Content-Type"] = 'multipart/mixed; boundary="same"'
    message["From"], message["To"] = "me@x.y", "a@b.c"
    leaf.set_payload("text")
    inner.set_payload([leaf])
    child = inner
    if attached:
        child = kind()
        child["Content-Type"] = "message/rfc822"
        child.set_payload([inner])
    message.set_payload([child])
    with pytest.raises(InvalidMessage, match="boundary"):
        to_envelope(message)


def test_s6_siblings_may_share_a_boundary():
    """The other side of it (RFC 2046 section 5.1.2): each has ended before the next begins."""
    part = "Content-Type: multipart/mixed; boundary=i\r\n\r\n--i\r\n\r\nx\r\n--i--\r\n"
    content = (
        f"{HEAD}Content-Type: multipart/mixed; boundary=o\r\n\r\n"
        f"--o\r\n{part}\r\n--o\r\n{part}\r\n--o--\r\n"
    ).encode()
    assert to_envelope(Envelope("a@b.c", ["a@b.c"], content))
    assert (
        to_envelope(
            email.message_from_bytes(content), sender="a@b.c", recipients=["a@b.c"]
        ).content.count(b"--i--")
        == 2
    )
