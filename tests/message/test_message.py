"""`Message` and `Attachment`: from what an application says to an envelope."""

from __future__ import annotations

import copy
import email
import email.policy
import inspect
import io
import re
from datetime import UTC, datetime, timedelta, timezone
from email.utils import parsedate_to_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from letters import hello, parsed
from zope.interface.verify import verifyObject

from txmail.address import parse_mailbox, shown_name
from txmail.envelope import Envelope
from txmail.exceptions import AddressError, BadHeaders, InvalidMessage, MessageTooLarge
from txmail.interfaces import IMessage
from txmail.message import Attachment, Message, to_envelope
from txmail.message.mime import gate


def types(message):
    return [part.get_content_type() for part in parsed(message).walk()]


# The envelope.


def test_a_message_becomes_an_envelope():
    envelope = hello(cc=["C <c@d.e>"], bcc=[("B", "b@b.c")]).to_envelope()
    assert isinstance(envelope, Envelope)
    assert envelope.sender == "me@x.y"
    assert envelope.recipients == ("a@b.c", "c@d.e", "b@b.c")
    assert not envelope.needs_smtputf8
    assert not envelope.needs_8bitmime
    verifyObject(IMessage, hello())


def test_bcc_is_in_the_envelope_only():
    content = hello(bcc=["secret@x.y"]).to_envelope().content
    assert b"secret" not in content
    assert b"\r\nbcc" not in content.lower()


def test_a_message_to_bcc_only_has_no_to():
    message = hello(recipients=None, bcc=["secret@x.y"])
    assert message.to_envelope().recipients == ("secret@x.y",)
    assert parsed(message)["To"] is None


def test_a_recipient_named_twice_counts_once():
    assert hello(cc=["a@b.c", "A <a@b.c>"]).to_envelope().recipients == ("a@b.c",)


@pytest.mark.parametrize(
    ("own", "argument", "path"),
    [
        (None, None, "me@x.y"),
        ("bounce@x.y", None, "bounce@x.y"),
        ("<>", None, ""),
        ("bounce@x.y", "other@x.y", "other@x.y"),
        (None, "<>", ""),
        (None, "Other <other@x.y>", "other@x.y"),
        (None, ("Other", "other@x.y"), "other@x.y"),
    ],
)
def test_the_reverse_path_is_told_or_the_senders_address(own, argument, path):
    envelope = hello(sender="Me <me@x.y>", envelope_sender=own).to_envelope(sender=argument)
    assert envelope.sender == path
    assert b"\r\nFrom: Me <me@x.y>\r\n" in b"\r\n" + envelope.content


def test_recipients_that_are_told_replace_the_envelopes_only():
    message = hello(cc=["c@d.e"])
    envelope = message.to_envelope(recipients=["Z <z@z.z>"])
    assert envelope.recipients == ("z@z.z",)
    assert b"To: a@b.c\r\n" in envelope.content
    assert b"Cc: c@d.e\r\n" in envelope.content
    with pytest.raises(InvalidMessage, match="recipients"):
        message.to_envelope(recipients="z@z.z")
    with pytest.raises(InvalidMessage, match="recipients"):
        message.to_envelope(recipients=[])


def test_the_default_sender_stands_in_for_a_missing_one():
    message = hello(sender=None)
    with pytest.raises(InvalidMessage) as caught:
        message.to_envelope()
    assert caught.value.field == "sender"
    envelope = message.to_envelope(default_sender="App <app@x.y>")
    assert envelope.sender == "app@x.y"
    assert b"From: App <app@x.y>\r\n" in envelope.content
    assert hello().to_envelope(default_sender="app@x.y").sender == "me@x.y"
    with pytest.raises(AddressError) as wrong:
        message.to_envelope(default_sender="nobody")
    assert wrong.value.field == "default_sender"


def test_rendering_never_writes_to_the_message():
    message = hello(
        cc=["c@d.e"],
        bcc=[("B", "b@b.c")],
        html="<p>",
        extra_headers={"X-Tag": "tag"},
        attachments=[Attachment("a.txt", data="x")],
        reply_to=["r@x.y"],
    )
    before = copy.deepcopy(vars(message))
    to_envelope(message, sender="o@x.y", recipients=["p@x.y"], default_sender="q@x.y")
    assert vars(message) == before


def test_a_change_after_rendering_does_not_reach_the_envelope():
    message = hello()
    envelope = message.to_envelope()
    content = bytes(envelope.content)
    message.subject = "changed"
    message.add_recipient("new@x.y")
    assert (envelope.content, envelope.recipients) == (content, ("a@b.c",))


# Headers.


def test_the_headers_are_there_in_a_settled_order():
    message = hello(cc=["c@d.e"], reply_to="r@x.y", extra_headers=[("X-B", "1"), ("X-A", "2")])
    assert parsed(message).keys() == [
        *("From", "To", "Cc", "Reply-To", "Subject", "Date", "Message-ID", "X-B", "X-A"),
        *("MIME-Version", "Content-Type", "Content-Transfer-Encoding"),
    ]


def test_a_message_id_is_made_anew_in_the_senders_domain():
    first, second = (hello(sender="me@bücher.example").to_envelope() for _ in "12")
    assert re.fullmatch(r"<[0-9a-f]{32}@xn--bcher-kva\.example>", first.message_id)
    assert first.message_id != second.message_id
    assert parsed(hello())["Message-ID"].endswith("@x.y>")


def test_a_date_is_now_in_utc():
    date = parsed(hello())["Date"].datetime
    assert date.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - date) < timedelta(minutes=1)
    assert str(parsed(hello())["Date"]).endswith("+0000")


def test_message_id_and_date_can_be_told():
    date = datetime(2026, 11, 21, 12, 0, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    message = hello(message_id="<1.2@[192.0.2.1]>", date=date)
    envelope = message.to_envelope()
    assert envelope.message_id == "<1.2@[192.0.2.1]>"
    assert parsedate_to_datetime(parsed(message)["Date"]) == date


@pytest.mark.parametrize("wrong", ["1@x.y", "<1>", "<1@x.y> ", "<1@x y>", "", "<a@b><c@d>"])
def test_what_is_no_message_id_is_refused(wrong):
    with pytest.raises(BadHeaders) as caught:
        hello(message_id=wrong).to_envelope()
    assert caught.value.field == "message_id"


@pytest.mark.parametrize("wrong", [datetime(2026, 1, 1), "Sat, 21 Nov 2026", 0])
def test_a_date_without_a_zone_is_refused(wrong):
    with pytest.raises(InvalidMessage) as caught:
        hello(date=wrong).validate()
    assert caught.value.field == "date"


def test_no_subject_is_no_header():
    assert parsed(hello(subject=None))["Subject"] is None
    assert hello(subject=None).subject == ""


@pytest.mark.parametrize("name", ["Sender", "Errors-To", "disposition-notification-to"])
def test_an_extra_header_that_holds_an_address_is_written_as_one(name):
    message = hello(extra_headers={name: "Jörg <j@x.y>"})
    assert f"{name}: =?utf-8?b?SsO2cmc=?= <j@x.y>\r\n".encode() in message.to_envelope().content
    with pytest.raises(AddressError) as caught:
        hello(extra_headers={name: "nobody"}).to_envelope()
    assert caught.value.field == name


def test_an_extra_header_may_come_twice_unless_there_can_be_one_only():
    message = hello(extra_headers=[("X-Tag", "1"), ("x-tag", "2")])
    assert parsed(message).get_all("X-Tag") == ["1", "2"]
    with pytest.raises(BadHeaders) as caught:
        hello(extra_headers=[("References", "<1@x>"), ("references", "<2@x>")]).to_envelope()
    assert caught.value.field.lower() == "references"


@pytest.mark.parametrize("wrong", ["X-Tag: 1", b"X", 7, [("X-Tag",)], ["X-Tag"], [1]])
def test_extra_headers_are_a_mapping_or_pairs(wrong):
    with pytest.raises(BadHeaders) as caught:
        hello(extra_headers=wrong)
    assert caught.value.field == "extra_headers"


def test_extra_headers_can_be_changed_and_are_not_the_callers():
    given_headers = {"X-Tag": "1"}
    message = hello(extra_headers=given_headers)
    message.extra_headers["X-More"] = "2"
    assert given_headers == {"X-Tag": "1"}
    assert parsed(message)["X-More"] == "2"


def test_extra_headers_that_are_set_later_are_copied_and_checked_at_once():
    message = hello()
    message.extra_headers = (pair for pair in [("X-Tag", "1")])
    assert parsed(message)["X-Tag"] == parsed(message)["X-Tag"] == "1"
    with pytest.raises(BadHeaders):
        message.extra_headers = ["X-Tag"]
    message.extra_headers = [("X-Tag", "1")]
    message.extra_headers.append(("X-Tag",))
    for use in (message.validate, message.to_envelope):
        with pytest.raises(BadHeaders) as caught:
            use()
        assert caught.value.field == "extra_headers"


TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=300)


@given(TEXT)
def test_any_subject_arrives_as_it_is(subject):
    if "=?" in subject and "?" in subject.replace("=?", ""):
        return  # may be refused for what it decodes to
    content = hello(subject=subject).to_envelope().content
    old = email.message_from_bytes(content)
    raw = re.sub(r"\r\n(?=[ \t])", "", old["Subject"] or "")
    assert str(email.header.make_header(email.header.decode_header(raw))) == subject
    head = content.partition(b"\r\n\r\n")[0]
    assert all(len(line) <= 76 or b"=?" not in line for line in head.split(b"\r\n"))


@given(TEXT)
def test_any_display_name_arrives_as_it_is(name):
    if "=?" in name and "?" in name.replace("=?", ""):
        return
    content = hello(recipients=[(name, "a@b.c"), ("Z, z", "z@b.c")]).to_envelope().content
    raw = re.sub(r"\r\n(?=[ \t])", "", email.message_from_bytes(content)["To"])
    (first, one), (second, two) = email.utils.getaddresses([raw])
    decoded = str(email.header.make_header(email.header.decode_header(first)))
    # All but marks of direction and characters of no width, which are left out of names.
    assert (decoded, one, second, two) == (shown_name(name), "a@b.c", "Z, z", "z@b.c")


def test_many_recipients_are_folded():
    entries = [(f"Name {n}", f"recipient{n}@example.com") for n in range(500)]
    content = hello(recipients=entries).to_envelope().content
    assert max(map(len, content.split(b"\r\n"))) <= 76
    found = email.message_from_bytes(content, policy=email.policy.default)["To"].addresses
    assert [(a.display_name, a.addr_spec) for a in found] == entries


def test_a_non_ascii_local_part_is_written_in_utf8_and_needs_smtputf8():
    envelope = hello(recipients=["Jörg <jörg@bücher.example>"]).to_envelope()
    assert envelope.needs_smtputf8
    assert "<jörg@xn--bcher-kva.example>".encode() in envelope.content
    assert envelope.forward_paths == ("<jörg@xn--bcher-kva.example>".encode(),)


def test_a_non_ascii_domain_needs_no_smtputf8():
    envelope = hello(recipients=["a@bücher.example"]).to_envelope()
    assert not envelope.needs_smtputf8
    assert b"To: a@xn--bcher-kva.example\r\n" in envelope.content


# Bodies.


def test_text_alone_is_text():
    assert types(hello()) == ["text/plain"]
    assert types(hello(body=None, html="<p>")) == ["text/html"]
    assert types(hello(body="", html="<p>")) == ["text/html"]
    assert types(hello(body="text", html="")) == ["text/plain"]


def test_text_and_html_are_alternatives_with_the_text_first():
    assert types(hello(html="<p>")) == ["multipart/alternative", "text/plain", "text/html"]


def test_attachments_are_mixed_and_images_of_the_html_related():
    message = hello(
        html='<img src="cid:logo">',
        attachments=[
            Attachment("logo.png", data=b"1", content_id="<logo>"),
            Attachment("shown.png", data=b"2", content_id="x@y", disposition="inline"),
            Attachment("other.png", data=b"3", content_id="other"),
            Attachment("a.pdf", data=b"4"),
        ],
    )
    assert types(message) == [
        *("multipart/mixed", "multipart/alternative", "text/plain"),
        *("multipart/related", "text/html", "image/png", "image/png"),
        *("image/png", "application/pdf"),
    ]
    ids = [part["Content-ID"] for part in parsed(message).walk() if part["Content-ID"]]
    assert ids == ["<logo>", "<x@y>", "<other>"]


def test_inline_attachments_without_html_are_mixed():
    message = hello(attachments=[Attachment("a.png", data=b"1", content_id="a")])
    assert types(message) == ["multipart/mixed", "text/plain", "image/png"]


BODIES = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=400),
    st.text(st.sampled_from("ab \t.=-\r\n\0é"), max_size=400),
)


@given(BODIES, st.booleans())
def test_any_text_arrives_with_crlf_line_ends(text, alone):
    if not text:
        return
    content = hello(body=text, html=None if alone else "<p>").to_envelope().content
    part = next(p for p in email.message_from_bytes(content).walk() if not p.is_multipart())
    expected = re.sub("\r\n|\r|\n", "\r\n", text)
    if not expected.endswith("\r\n"):
        expected += "\r\n"
    got = part.get_payload(decode=True).decode()
    assert got.rstrip("\r\n") == expected.rstrip("\r\n")
    assert got.startswith(expected.removesuffix("\r\n"))
    assert content.isascii()
    assert max(map(len, content.split(b"\r\n"))) <= 998
    assert content.replace(b"\r\n", b"").isascii()
    assert not set(content.replace(b"\r\n", b"")) & set(b"\r\n\0")


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("plain\n", "7bit"),
        ("x" * 78, "7bit"),
        ("x" * 79, "quoted-printable"),
        ("Grüße an alle, die das lesen\n" * 3, "quoted-printable"),
        ("你好，世界\n" * 3, "base64"),
    ],
)
def test_a_body_is_encoded_no_more_than_it_has_to_be(text, encoding):
    assert parsed(hello(body=text))["Content-Transfer-Encoding"] == encoding


def test_text_is_never_a_template():
    found = parsed(hello(subject="{{ 7*7 }}", body="{{ 7*7 }} {% raw %}", html="{{ x }}"))
    plain, rich = found.iter_parts()
    assert found["Subject"] == "{{ 7*7 }}"
    assert plain.get_content() == "{{ 7*7 }} {% raw %}\r\n"
    assert rich.get_content() == "{{ x }}\r\n"


def test_a_body_may_be_an_attachment():
    body = Attachment(data="Grüße\n", transfer_encoding="quoted-printable")
    html = Attachment(data="<p>ü</p>", content_type="text/html; charset=iso-8859-1")
    message = hello(body=body, html=html)
    found = parsed(message)
    assert types(message) == ["multipart/alternative", "text/plain", "text/html"]
    plain, rich = found.iter_parts()
    assert plain["Content-Transfer-Encoding"] == "quoted-printable"
    assert plain.get_content() == "Grüße\r\n"
    assert plain["Content-Disposition"] is None
    assert rich.get_content() == "<p>ü</p>"
    assert rich.get_content_charset() == "iso-8859-1"
    assert types(hello(body=Attachment(data="x"), html=None)) == ["text/plain"]


@pytest.mark.parametrize(
    "options",
    [
        {"body": None},
        {"body": ""},
        {"body": "", "html": ""},
        {"body": b"octets"},
        {"body": 7},
        {"body": ["text"]},
        {"body": "\ud800"},
    ],
)
def test_a_message_without_a_proper_body_is_refused(options):
    with pytest.raises(InvalidMessage) as caught:
        hello(**options).to_envelope()
    assert caught.value.field == "body"


# Attachments.


def attached(*arguments, **options):
    message = hello(attachments=[Attachment(*arguments, **options)])
    return list(parsed(message).iter_attachments())[-1]


@given(st.binary(max_size=500), st.sampled_from(["base64", "quoted-printable"]))
def test_any_octets_arrive_as_they_are(data, encoding):
    part = attached("a.bin", "application/octet-stream", data, transfer_encoding=encoding)
    assert part.get_payload(decode=True) == data


@pytest.mark.parametrize(
    ("filename", "given_type", "expected"),
    [
        ("a.pdf", None, "application/pdf"),
        ("a.unknown", None, "application/octet-stream"),
        (None, None, "application/octet-stream"),
        ("a.pdf", "text/x-other", "text/x-other"),
    ],
)
def test_the_type_is_told_or_guessed(filename, given_type, expected):
    assert attached(filename, given_type, b"x").get_content_type() == expected


def test_parameters_of_the_type_are_kept():
    part = attached("a.csv", 'text/csv; charset=iso-8859-1; header="present; yes"', "ü")
    assert part.get_param("header") == "present; yes"
    assert part.get_content_charset() == "iso-8859-1"
    assert part.get_payload(decode=True) == b"\xfc"
    assert part.get_filename() == "a.csv"


@pytest.mark.parametrize(
    ("given_name", "shown"),
    [
        ("a.txt", "a.txt"),
        ("/etc/a.txt", "a.txt"),
        ("C:\\docs\\a.txt", "a.txt"),
        ("../../a.txt", "a.txt"),
        ("Grüße 你好.txt", "Grüße 你好.txt"),
        ("x" * 200 + ".txt", "x" * 200 + ".txt"),
        ('quo"te.txt', 'quo"te.txt'),
        ("semi;colon=a.txt", "semi;colon=a.txt"),
    ],
)
def test_a_file_name_is_the_last_component_and_arrives_whole(given_name, shown):
    for options in (
        {"filename": given_name},
        {"disposition": f"inline; filename={quote(given_name)}"},
    ):
        part = attached(data=b"x", **options)
        assert part.get_filename() == shown
        assert part.get_param("name", header="content-type") is not None


def quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@pytest.mark.parametrize("name", ["/", "a/", "..", ".", "x\\", " "])
def test_a_file_name_that_names_nothing_is_refused(name):
    with pytest.raises(BadHeaders) as caught:
        attached(name, data=b"x")
    assert caught.value.field == "filename"


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("content_type", "text"),
        ("content_type", "text/"),
        ("content_type", "text/plain; charset"),
        ("content_type", "text/plain; x*=utf-8''y"),
        ("content_type", "text/plain; x=1; x=2"),
        ("content_type", "text/plain; charset=no-such"),
        ("content_type", "text/plain; charset=unicode_escape"),
        ("content_type", "text/plain, text/html"),
        ("content_type", "multipart/mixed; boundary=b"),
        ("content_type", 7),
        ("disposition", "attachment/x"),
        ("disposition", "attachment; filename*=utf-8''x"),
        ("disposition", ";"),
        ("transfer_encoding", "binary"),
        ("transfer_encoding", "rot13"),
        ("transfer_encoding", 7),
        ("content_id", "a b"),
        ("content_id", "<a"),
        ("content_id", "a>\r\nX: y"),
        ("content_id", ""),
        ("filename", 7),
    ],
)
def test_a_bad_argument_of_an_attachment_is_refused_by_name(field, wrong):
    attachment = Attachment(**{"data": "x", field: wrong})
    for use in (hello(attachments=[attachment]).to_envelope, hello(html=attachment).to_envelope):
        with pytest.raises(InvalidMessage) as caught:
            use()
        assert caught.value.field == field


@pytest.mark.parametrize("data", ["text ü", b"octets", bytearray(b"octets"), memoryview(b"o"), ""])
def test_data_is_text_or_octets(data):
    expected = data.encode() if isinstance(data, str) else bytes(data)
    assert attached("a.bin", data=data).get_payload(decode=True) == expected


@pytest.mark.parametrize("data", [7, object(), ["x"]])
def test_data_of_another_kind_is_refused_at_once(data):
    with pytest.raises(InvalidMessage) as caught:
        Attachment("a.bin", data=data)
    assert caught.value.field == "data"
    with pytest.raises(InvalidMessage):
        Attachment("a.bin").data = data


def test_an_attachment_without_data_is_refused():
    for use in (hello(attachments=[Attachment("a")]).to_envelope, Attachment("a").validate):
        with pytest.raises(InvalidMessage) as caught:
            use()
        assert caught.value.field == "data"


@pytest.mark.parametrize("file", [io.BytesIO(b"headdata"), io.StringIO("headdata")])
def test_a_file_is_read_at_once_from_where_it_stands_and_left_open_at_its_end(file):
    file.seek(4)
    attachment = Attachment("a.txt", data=file)
    assert (file.tell(), file.closed) == (8, False)
    assert attachment.data in ("data", b"data")
    file.seek(0)
    attachment.data = file
    assert attachment.data in ("headdata", b"headdata")
    file.close()
    assert len(attachment.data) == 8


@pytest.mark.parametrize(
    ("data", "encoding", "passes"),
    [
        (b"plain\r\n", "7bit", True),
        ("plain\n", "7bit", True),
        ("ü\n", "7bit", False),
        (b"a\0b", "7bit", False),
        (b"a\0b", "8bit", False),
        ("ü\n", "8bit", True),
        ("x" * 999, "7bit", False),
        ("x" * 999, "8bit", False),
        ("x" * 999, "QUOTED-PRINTABLE", True),
        (b"a\r\nb\rc\n", "quoted-printable", True),
    ],
)
def test_a_transfer_encoding_is_used_only_where_it_can_carry_the_data(data, encoding, passes):
    message = hello(
        attachments=[Attachment("a.txt", "text/plain", data, transfer_encoding=encoding)]
    )
    if not passes:
        with pytest.raises(InvalidMessage) as caught:
            message.to_envelope()
        assert caught.value.field == "data"
        return
    envelope = message.to_envelope()
    octets = data.encode() if isinstance(data, str) else data
    part = list(parsed(message).iter_attachments())[-1]
    assert part["Content-Transfer-Encoding"] == encoding.lower()
    assert part.get_payload(decode=True) == re.sub(rb"\r\n|\r|\n", b"\r\n", octets)
    assert envelope.needs_8bitmime is not envelope.content.isascii()


def test_octets_that_are_no_text_are_not_broken_into_lines():
    with pytest.raises(InvalidMessage):
        attached("a.pdf", data=b"a\nb", transfer_encoding="7bit")


def test_an_attached_message_is_not_encoded_where_that_is_possible():
    inner = hello(subject="inner").to_envelope().content
    message = hello(attachments=[Attachment("a.eml", data=inner)])
    assert types(message) == ["multipart/mixed", "text/plain", "message/rfc822", "text/plain"]
    found = list(parsed(message).walk())[3]
    assert found["Subject"] == "inner"
    binary = hello(attachments=[Attachment("a.eml", data=inner + b"\xff")])
    assert types(binary)[-1] == "application/octet-stream"


def test_status_parts_can_be_attached():
    part = attached("a", "message/delivery-status", "Reporting-MTA: dns; x.y\n")
    assert part.get_content_type() == "message/delivery-status"


# Bounds.


def test_a_message_beyond_the_bounds_is_refused():
    big = b"x" * gate.MAX_CONTENT
    with pytest.raises(MessageTooLarge):
        hello(attachments=[Attachment("a", data=big)]).to_envelope()
    many = [Attachment("a", data=b"x")] * gate.MAX_PARTS
    with pytest.raises(MessageTooLarge) as caught:
        hello(attachments=many).to_envelope()
    assert caught.value.field == "attachments"
    with pytest.raises(MessageTooLarge):
        hello(extra_headers={"X-Tag": "x " * gate.MAX_HEADERS}).to_envelope()


# The face of pyramid_mailer.


def test_the_constructors_take_what_pyramid_mailers_take_in_its_order():
    assert list(inspect.signature(Message).parameters)[:9] == [
        *("subject", "recipients", "body", "html", "sender", "cc", "bcc", "extra_headers"),
        "attachments",
    ]
    assert list(inspect.signature(Attachment).parameters) == [
        *("filename", "content_type", "data", "disposition", "transfer_encoding", "content_id"),
    ]


def test_recipients_can_be_added_and_are_not_the_callers():
    recipients = ["a@b.c"]
    message = hello(recipients=recipients)
    message.add_recipient("d@e.f")
    message.add_cc("C <c@d.e>")
    message.add_bcc(("B", "b@b.c"))
    message.attach(Attachment("a.txt", data="x"))
    assert recipients == ["a@b.c"]
    assert message.send_to == {"a@b.c", "d@e.f", "C <c@d.e>", "b@b.c"}
    assert message.to_envelope().recipients == ("a@b.c", "d@e.f", "c@d.e", "b@b.c")
    assert len(message.attachments) == 1


@pytest.mark.parametrize("field", ["recipients", "cc", "bcc"])
@pytest.mark.parametrize("wrong", ["a@b.c", b"a@b.c", 7, {"a@b.c": "A"}])
def test_what_is_no_list_of_recipients_is_refused_at_once(field, wrong):
    with pytest.raises(InvalidMessage) as caught:
        hello(**{field: wrong})
    assert caught.value.field == field
    message = hello()
    with pytest.raises(InvalidMessage):
        setattr(message, field, wrong)


@pytest.mark.parametrize("field", ["recipients", "cc", "bcc", "reply_to"])
@pytest.mark.parametrize("wrong", [None, 7, b"a@b.c", ["a@b.c"], ("a@b.c",)])
def test_what_is_no_recipient_is_refused_by_field(field, wrong):
    with pytest.raises(AddressError) as caught:
        hello(**{field: [wrong]}).to_envelope()
    assert caught.value.field == field


def test_recipients_may_be_any_iterable_and_mailboxes():
    message = hello(recipients=(entry for entry in ("a@b.c", parse_mailbox("D <d@e.f>"))))
    assert message.to_envelope().recipients == ("a@b.c", "d@e.f")
    assert message.to_envelope().recipients == ("a@b.c", "d@e.f")


def test_a_message_without_recipients_is_refused():
    with pytest.raises(InvalidMessage) as caught:
        hello(recipients=[]).validate()
    assert caught.value.field == "recipients"


def test_what_is_no_attachment_is_refused_at_once():
    with pytest.raises(InvalidMessage):
        hello(attachments=["a.txt"])
    with pytest.raises(InvalidMessage):
        hello().attach(b"data")


def test_validate_and_is_bad_headers_agree():
    hello().validate()
    assert not hello().is_bad_headers()
    bad = hello(subject="a\nb")
    assert bad.is_bad_headers()
    with pytest.raises(BadHeaders):
        bad.validate()
    assert issubclass(BadHeaders, InvalidMessage)


def test_to_message_gives_what_would_be_sent_to_the_standard_library():
    message = hello(subject="Grüße", html="<p>", attachments=[Attachment("ü.txt", data="x")])
    made = message.to_message()
    assert isinstance(made, email.message.EmailMessage)
    assert made["Subject"] == "Grüße"
    assert made["To"].addresses[0].addr_spec == "a@b.c"
    assert [part.get_filename() for part in made.iter_attachments()] == ["ü.txt"]
    again = to_envelope(made)
    assert again.recipients == ("a@b.c",)
    assert again.message_id == made["Message-ID"]
    with pytest.raises(InvalidMessage):
        Message().to_message()


def test_messages_are_equal_by_what_they_say():
    assert hello() == hello()
    assert hello() != hello(body="other")
    assert hello() != "hello"
    assert hello(attachments=[Attachment("a", data=b"x")]) == hello(
        attachments=[Attachment("a", data=b"x")]
    )
    assert Attachment("a", data=b"x") != Attachment("a", data=b"y")
    assert Attachment("a") != "a"
    assert copy.deepcopy(hello()) == hello()


def test_a_repr_shows_no_text():
    attachment = Attachment("a.txt", "text/plain", "SECRET")
    message = hello(body="SECRET", html="SECRET", attachments=[attachment])
    assert "SECRET" not in repr(message) + repr(attachment) + repr(message.to_envelope())
    assert repr(message) == "<Message 'hello' to 1 recipient(s)>"
    assert repr(attachment) == "<Attachment 'a.txt' text/plain 6 long>"
    assert repr(Attachment()) == "<Attachment None - no data>"


# The one door.


def test_whatever_is_no_message_is_refused_by_its_type_alone():
    class Liar:
        def to_envelope(self, **options):
            return "SECRET"

    for wrong in ("SECRET", b"SECRET", None, 7, Message, Liar(), ["SECRET"], {"SECRET": 1}):
        with pytest.raises(InvalidMessage) as caught:
            to_envelope(wrong)
        assert type(wrong).__name__ in str(caught.value)
        assert "SECRET" not in str(caught.value)


def test_a_foreign_message_passes_the_gate_too():
    class Foreign:
        def __init__(self, content):
            self.content = content

        def to_envelope(self, *, sender=None, recipients=None, default_sender=None):
            return Envelope(sender or default_sender, recipients, self.content)

    good = hello().to_envelope().content
    options = {"recipients": ("a@b.c",), "default_sender": "me@x.y"}
    assert to_envelope(Foreign(good), **options).content == good
    with pytest.raises(BadHeaders):
        to_envelope(Foreign(b"Bcc: evil@x.y\r\n" + good), **options)


def test_a_ready_envelope_is_taken_as_it_is_after_the_gate():
    envelope = hello().to_envelope()
    assert to_envelope(envelope) is envelope
    other = to_envelope(envelope, sender="<>", recipients=["Z <z@z.z>"])
    assert (other.sender, other.recipients) == ("", ("z@z.z",))
    assert other.content is envelope.content
    assert to_envelope(envelope, sender="o@x.y").recipients == ("a@b.c",)
    with pytest.raises(InvalidMessage):
        to_envelope(Envelope("me@x.y", ("a@b.c",), b"no message"))
    with pytest.raises(BadHeaders, match="Message-ID"):
        to_envelope(Envelope("", ("a@b.c",), b"From: a@b.c\r\nDate: now\r\n\r\n"))
