"""Messages of the standard library as input."""

from __future__ import annotations

import copy
import email
import email.policy
import re
from email.header import Header
from email.headerregistry import Address, Group
from email.message import EmailMessage
from email.message import Message as OldMessage
from email.mime.application import MIMEApplication
from email.mime.message import MIMEMessage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText

import pytest
from hypothesis import given
from hypothesis import strategies as st
from payloads import BAD_ADDRESSES, EXTENDED, FORBIDDEN, HARMLESS, HIDDEN_PARAMETERS

from txmail.exceptions import AddressError, BadHeaders, InvalidMessage, MessageTooLarge, TxmailError
from txmail.message import to_envelope
from txmail.message.mime import gate

POLICIES = [email.policy.default, email.policy.SMTP, email.policy.SMTPUTF8, email.policy.compat32]


def new(policy=email.policy.default, **headers):
    message = EmailMessage(policy=policy)
    fill(message, headers)
    message.set_content("Grüße\nFrom here\n.\n")
    return message


def old(message=None, **headers):
    message = MIMEText("Grüße\nFrom here\n.\n", "plain", "utf-8") if message is None else message
    fill(message, headers)
    return message


def fill(message, headers):
    settings = {"From": "Me <me@x.y>", "To": "a@b.c", "Subject": "hello"}
    for name, value in {**settings, **headers}.items():
        if value is not None:
            message[name.replace("_", "-")] = value


MAKERS = {
    "new": new,
    "for SMTP": lambda **headers: new(email.policy.SMTP, **headers),
    "old": old,
    "old with headers": lambda **headers: old(
        **{name: value and Header(value, "utf-8") for name, value in headers.items()}
    ),
    "parsed": lambda **headers: email.message_from_bytes(
        new(**headers).as_bytes(), policy=email.policy.default
    ),
    "parsed as of old": lambda **headers: email.message_from_bytes(new(**headers).as_bytes()),
}
make_each = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def snapshot(message):
    return [(list(p.raw_items()), p.is_multipart() or p.get_payload()) for p in message.walk()]


@make_each
def test_the_envelope_is_read_from_the_headers(make):
    message = make(Cc="C <c@d.e>, d@e.f", Bcc="g: h@i.j, k@l.m;")
    envelope = to_envelope(message)
    assert envelope.sender == "me@x.y"
    assert envelope.recipients == ("a@b.c", "c@d.e", "d@e.f", "h@i.j", "k@l.m")


@make_each
def test_the_sender_goes_before_the_author(make):
    assert to_envelope(make(Sender="Office <office@x.y>")).sender == "office@x.y"
    many = {"From": "a@x.y, b@x.y"}
    assert to_envelope(make(Sender="office@x.y", **many)).sender == "office@x.y"
    assert to_envelope(make(**many), sender="b@x.y").sender == "b@x.y"
    with pytest.raises(InvalidMessage) as caught:
        to_envelope(make(**many))
    assert caught.value.field == "From"


@make_each
def test_sender_and_recipients_can_be_told(make):
    envelope = to_envelope(make(To=None), sender="<>", recipients=["Z <z@z.z>"])
    assert (envelope.sender, envelope.recipients) == ("", ("z@z.z",))
    with pytest.raises(InvalidMessage) as caught:
        to_envelope(make(To=None))
    assert caught.value.field == "recipients"


@make_each
def test_a_missing_author_is_the_default_sender(make):
    envelope = to_envelope(make(From=None), default_sender=("Jörg", "app@x.y"))
    assert envelope.sender == "app@x.y"
    assert b"From: =?utf-8?b?SsO2cmc=?= <app@x.y>\r\n" in envelope.content
    with pytest.raises(InvalidMessage) as caught:
        to_envelope(make(From=None))
    assert caught.value.field == "From"


@make_each
def test_what_is_missing_is_added_and_bcc_taken_away(make):
    envelope = to_envelope(make(Bcc="secret@x.y"))
    parsed = email.message_from_bytes(envelope.content)
    assert b"secret" not in envelope.content
    assert re.fullmatch(r"<[0-9a-f]{32}@x\.y>", parsed["Message-ID"])
    assert parsed["Date"].endswith("+0000")
    kept = make(Message_ID="<1@x.y>", Date="Sat, 21 Nov 2026 12:00:00 +0100")
    parsed = email.message_from_bytes(to_envelope(kept).content)
    assert (parsed["Message-ID"], parsed["Date"]) == ("<1@x.y>", "Sat, 21 Nov 2026 12:00:00 +0100")


@make_each
def test_the_callers_message_is_not_touched(make):
    message = make(Bcc="secret@x.y", From=None)
    before, policy = snapshot(message), message.policy
    to_envelope(message, default_sender="me@x.y")
    assert snapshot(message) == before
    assert message.policy is policy


@make_each
def test_content_has_crlf_line_ends_and_seven_bits(make):
    content = to_envelope(make()).content
    assert content.isascii()
    assert content.endswith(b"\r\n")
    assert not set(content.replace(b"\r\n", b"")) & set(b"\r\n")
    body = email.message_from_bytes(content).get_payload(decode=True)
    assert body.decode().split() == ["Grüße", "From", "here", "."]
    assert b">From" not in content


@make_each
def test_a_subject_beyond_ascii_arrives(make):
    # What a parser gets was written by the standard library, which loses blanks in long ones.
    subjects = ["Grüße", "plain", "a  b"]
    if make not in (MAKERS["parsed"], MAKERS["parsed as of old"]):
        subjects += ["Grüße 你好 " * 20, "long " * 40]
    for subject in subjects:
        message = make(Subject=subject)
        content = to_envelope(message).content
        parsed = email.message_from_bytes(content, policy=email.policy.default)
        assert parsed["Subject"].split() == subject.split()


@make_each
def test_a_resent_message_needs_its_recipients_told(make):
    message = make(Resent_To="r@x.y", Resent_From="s@x.y", Resent_Bcc="secret@x.y")
    with pytest.raises(InvalidMessage) as caught:
        to_envelope(message)
    assert caught.value.field == "recipients"
    envelope = to_envelope(message, recipients=["r@x.y"])
    assert envelope.recipients == ("r@x.y",)
    assert b"Resent-To: r@x.y" in envelope.content
    assert b"secret" not in envelope.content


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_of_the_standard_library_will_do(policy):
    source = new(Subject="Grüße", Bcc="b@c.d").as_bytes()
    message = email.message_from_bytes(source, policy=policy)
    envelope = to_envelope(message)
    assert envelope.recipients == ("a@b.c", "b@c.d")
    assert (
        email.message_from_bytes(envelope.content, policy=email.policy.default)["Subject"]
        == "Grüße"
    )


def test_names_with_special_characters_stay_one_mailbox():
    # The standard library's own folding turns a long name of this kind into several addresses.
    name = "Doe, Jöhn <evil@x.y>, " + "and so on, " * 8
    message = new(To=[Address(name, "a", "b.c"), Address('q"uo', "b", "b.c")])
    envelope = to_envelope(message)
    assert envelope.recipients == ("a@b.c", "b@b.c")
    raw = re.sub("\r\n(?= )", "", email.message_from_bytes(envelope.content)["To"])
    found = email.utils.getaddresses([raw])
    assert [address for _, address in found] == ["a@b.c", "b@b.c"]
    decoded = email.header.make_header(email.header.decode_header(found[0][0]))
    assert str(decoded) == name


def test_text_that_looks_encoded_after_it_was_decoded_is_encoded_again():
    message = new(Subject="=?utf-8?q?=3D=3Futf-8=3Fq=3Fhello=3F=3D?=")
    assert message["Subject"] == "=?utf-8?q?hello?="
    content = to_envelope(message).content
    parsed = email.message_from_bytes(content, policy=email.policy.default)
    assert parsed["Subject"] == "=?utf-8?q?hello?="


def test_groups_are_kept():
    group = Group("Föes, all", (Address("A", "a", "b.c"), Address("", "b", "b.c")))
    envelope = to_envelope(new(To=[group, Address("", "c", "b.c")]))
    assert envelope.recipients == ("a@b.c", "b@b.c", "c@b.c")
    parsed = email.message_from_bytes(envelope.content, policy=email.policy.default)
    assert [g.display_name for g in parsed["To"].groups] == ["Föes, all", None]
    undisclosed = new(To="undisclosed-recipients:;", Bcc="b@b.c")
    assert to_envelope(undisclosed).recipients == ("b@b.c",)
    assert b"To: undisclosed-recipients:;\r\n" in to_envelope(undisclosed).content


def test_names_of_old_messages_beyond_ascii_leave_the_address_readable():
    envelope = to_envelope(old(From="Jörg Müller <me@x.y>", To="Ü <a@b.c>, b@c.d"))
    assert (envelope.sender, envelope.recipients) == ("me@x.y", ("a@b.c", "b@c.d"))
    parsed = email.message_from_bytes(envelope.content)
    assert email.utils.parseaddr(parsed["From"])[1] == "me@x.y"


def test_addresses_beyond_ascii():
    message = new(email.policy.SMTPUTF8, To="Jörg <jörg@bücher.example>", Cc="a@bücher.example")
    envelope = to_envelope(message)
    assert envelope.needs_smtputf8
    assert envelope.forward_paths == (
        "<jörg@xn--bcher-kva.example>".encode(),
        b"<a@xn--bcher-kva.example>",
    )
    assert "jörg@xn--bcher-kva.example".encode() in envelope.content
    assert not to_envelope(new(To="a@bücher.example")).needs_smtputf8


@make_each
@pytest.mark.parametrize("wrong", ["nobody", "<@x.y:a@b.c>", "a@b.c> SIZE=1", "a@b_c.d", "a@b.c;"])
@pytest.mark.parametrize("field", ["From", "To", "Cc", "Bcc", "Sender"])
def test_what_is_no_address_is_refused_by_field(make, wrong, field):
    with pytest.raises((AddressError, BadHeaders)) as caught:
        to_envelope(make(**{field: wrong}))
    assert caught.value.field == field


def test_attachments_arrive_whole():
    message = new()
    message.add_attachment(b"\x00\xff" * 100, "application", "pdf", filename="Grüße 你好.pdf")
    message.add_attachment("text ü", filename="x" * 150 + ".txt")
    parsed = email.message_from_bytes(to_envelope(message).content, policy=email.policy.default)
    first, second = parsed.iter_attachments()
    assert first.get_filename() == "Grüße 你好.pdf"
    assert first.get_content() == b"\x00\xff" * 100
    assert second.get_filename() == "x" * 150 + ".txt"
    assert second.get_content().strip() == "text ü"


def test_parts_of_old_messages_arrive_whole():
    message = old(MIMEMultipart())
    message.attach(MIMEText("Grüße", "html", "iso-8859-1"))
    part = MIMEApplication(b"\x00\xff" * 100)
    part.add_header("Content-Disposition", "attachment", filename=("utf-8", "", "Grüße.bin"))
    message.attach(part)
    message.attach(MIMEMessage(new(Subject="inner")))
    content = to_envelope(message).content
    parts = list(email.message_from_bytes(content, policy=email.policy.default).walk())
    assert parts[1].get_content().strip() == "Grüße"
    assert parts[2].get_filename() == "Grüße.bin"
    assert parts[2].get_payload(decode=True) == b"\x00\xff" * 100
    assert parts[4]["Subject"] == "inner"


def test_octets_beyond_ascii_are_encoded():
    source = (
        b"From: me@x.y\nTo: a@b.c\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n"
        b"Content-Transfer-Encoding: 8bit\n\n" + "Grüße\n".encode()
    )
    for policy in POLICIES:
        envelope = to_envelope(email.message_from_bytes(source, policy=policy))
        body = email.message_from_bytes(envelope.content).get_payload(decode=True)
        assert body.decode().strip() == "Grüße"
        bare = source.replace(b"; charset=utf-8", b"")
        envelope = to_envelope(email.message_from_bytes(bare, policy=policy))
        assert not envelope.needs_8bitmime
        body = email.message_from_bytes(envelope.content).get_payload(decode=True)
        assert body.decode().strip() == "Grüße"


def test_lines_that_are_too_long_are_encoded():
    text = "x" * 2000
    for message in (old(MIMEText(text, "html", "us-ascii")), old(MIMEMultipart())):
        if message.is_multipart():
            message.attach(MIMEText(text, "html", "us-ascii"))
        content = to_envelope(message).content
        assert max(map(len, content.split(b"\r\n"))) <= 998
        part = list(email.message_from_bytes(content).walk())[-1]
        assert part.get_payload(decode=True).decode().rstrip() == text.rstrip()
    for encoding in (None, "7bit", "binary", "base64"):
        part = OldMessage()
        part["Content-Type"] = "application/x-thing"
        if encoding:
            part["Content-Transfer-Encoding"] = encoding
        part.set_payload("yyyy" * 500)
        outer = old(MIMEMultipart())
        outer.attach(part)
        content = to_envelope(outer).content
        (sent,) = email.message_from_bytes(content).get_payload()
        assert sent["Content-Transfer-Encoding"] == "base64"
        assert sent.get_payload(decode=True) == part.get_payload(decode=True)
        assert max(map(len, content.split(b"\r\n"))) <= 78
    part.replace_header("Content-Transfer-Encoding", "x-uuencode")
    with pytest.raises(InvalidMessage):
        to_envelope(outer)


def test_a_long_header_of_a_parser_is_folded():
    source = new(X_Tag="x").as_bytes().replace(b"X-Tag: x", b"X-Tag: " + b"word " * 400)
    for policy in POLICIES:
        content = to_envelope(email.message_from_bytes(source, policy=policy)).content
        assert max(map(len, content.split(b"\r\n"))) <= 998
        parsed = email.message_from_bytes(content, policy=email.policy.default)
        assert parsed["X-Tag"].split() == ["word"] * 400


def test_folded_headers_of_a_parser_stay_as_they_are():
    source = new().as_bytes().replace(b"Subject: hello", b"X-Sig: a=b;\n\tc=d;\n  e=f")
    content = to_envelope(email.message_from_bytes(source, policy=email.policy.default)).content
    assert b"X-Sig: a=b;\r\n\tc=d;\r\n  e=f\r\n" in content


def nested(depth: int):
    message = MIMEText("text")
    for _ in range(depth - 1):
        outer = MIMEMultipart()
        outer.attach(message)
        message = outer
    return old(message)


def test_nesting_is_bounded_and_costs_no_stack():
    to_envelope(nested(gate.MAX_NESTING))
    for depth in (gate.MAX_NESTING + 1, 500, 5000):
        with pytest.raises(MessageTooLarge, match="nested"):
            to_envelope(nested(depth))


def test_parts_are_bounded():
    message = old(MIMEMultipart())
    for _ in range(gate.MAX_PARTS - 1):
        message.attach(MIMEText("text"))
    to_envelope(message)
    message.attach(MIMEText("text"))
    with pytest.raises(MessageTooLarge, match="parts"):
        to_envelope(message)


def test_a_message_inside_itself_is_refused():
    message = old(MIMEMultipart())
    message.attach(message)
    with pytest.raises(MessageTooLarge):
        to_envelope(message)


def empty_multipart():
    return old(MIMEMultipart())


def text_multipart():
    message = OldMessage()
    message["Content-Type"] = 'multipart/mixed; boundary="b"'
    message.set_payload("--b\n\nforged\n--b--\n")
    return old(message)


def text_part():
    message = old(MIMEMultipart())
    message.set_payload(["text"])
    return message


def unencoded_body():
    message = old(OldMessage())
    message.set_payload("Grüße")
    return message


def number_header():
    return old(X_Tag=7)


def nameless_header():
    message = old()
    message.set_raw("X Tag", "x")
    return message


def twice(name, value):
    def make():
        message = old()
        message[name] = value
        return message

    return make


@pytest.mark.parametrize(
    "make",
    [
        *(empty_multipart, text_multipart, text_part, unencoded_body),
        *(number_header, nameless_header),
        *(twice("Subject", "again"), twice("From", "me@x.y"), twice("To", "b@c.d")),
    ],
)
def test_what_cannot_be_written_is_refused(make):
    message = make()
    with pytest.raises(InvalidMessage) as caught:
        to_envelope(message, sender="me@x.y", recipients=["a@b.c"])
    assert caught.value.field
    assert "Grüße" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_deep_copy_is_worked_on():
    message = new()
    message.add_attachment(b"x", "application", "pdf", filename="a.pdf")
    twin = copy.deepcopy(message)
    to_envelope(message)
    assert snapshot(message) == snapshot(twin)
    assert message.get_boundary() is None


NAMES = (
    b"From To Bcc Subject Content-Type Content-Disposition Content-Transfer-Encoding Message-ID "
    b"Date X-Tag"
).split()
VALUES = st.one_of(
    st.sampled_from(
        [
            *({**FORBIDDEN, **EXTENDED, **HARMLESS, **HIDDEN_PARAMETERS, **BAD_ADDRESSES}.values()),
            *("a@b.c", "Name <a@b.c>", "multipart/mixed; boundary=b", "message/rfc822", "base64"),
        ]
    ).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=30),
    st.text(st.sampled_from("<>@,;:\\\".()[]=?*%' \tab\r\n"), max_size=30).map(str.encode),
)
LINES = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(NAMES),
            VALUES,
        ).map(b": ".join),
        st.sampled_from([b"", b"--b", b"--b--", b" folded", b"text", b"From: a@b.c", b"To: a@b.c"]),
    ),
    max_size=10,
)


@given(LINES, st.sampled_from(POLICIES), st.sampled_from([b"\r\n", b"\n"]))
def test_whatever_a_parser_makes_of_anything_is_refused_or_keeps_its_headers(lines, policy, end):
    message = email.message_from_bytes(end.join(lines), policy=policy)
    try:
        envelope = to_envelope(message, default_sender="me@x.y", recipients=["a@b.c"])
    except TxmailError:
        return
    names = [name.lower() for name in email.message_from_bytes(envelope.content)]
    expected = [name.lower() for name in message.keys() if name.lower() != "bcc"]  # noqa: SIM118
    added = [name for name in names if name not in expected]
    assert [name for name in names if name not in added] == expected
    assert set(added) <= {"from", "date", "message-id", "content-transfer-encoding"}
