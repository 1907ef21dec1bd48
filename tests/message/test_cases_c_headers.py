"""Headers and addresses: C3 to C5, C10 to C13, C15 to C17."""

from __future__ import annotations

import email
import email.policy
import email.utils
import re
from datetime import UTC, datetime, timedelta, timezone
from email.header import Header
from email.headerregistry import Address
from email.message import EmailMessage
from email.mime.text import MIMEText

import pytest
import transaction
from hypothesis import given
from hypothesis import strategies as st

from txmail import Attachment, Envelope, Mailer, Message, Template, transport_from_url
from txmail.exceptions import AddressError, BadHeaders, DeliveryRefused
from txmail.message import to_envelope
from txmail.message.mime.header_write import LINE
from txmail.testing import ScriptedServer


def new(**headers):
    return filled(EmailMessage(), headers)


def old(**headers):
    return filled(MIMEText("text"), headers)


def parsed(**headers):
    lines = {"From": "me@x.y", "To": "a@b.c", **headers}
    source = "".join(f"{name.replace('_', '-')}: {value}\n" for name, value in lines.items())
    return email.message_from_bytes(source.encode() + b"\ntext\n", policy=email.policy.default)


def parsed_of_old(**headers):
    return email.message_from_bytes(parsed(**headers).as_bytes())


def filled(message, headers):
    if isinstance(message, EmailMessage):
        message.set_content("text")
    for name, value in {"From": "me@x.y", "To": "a@b.c", **headers}.items():
        message[name.replace("_", "-")] = value
    return message


MAKERS = {"new": new, "old": old, "parsed": parsed, "parsed as of old": parsed_of_old}
make_each = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def ours(**options):
    settings = {"subject": "hello", "recipients": ["a@b.c"], "body": "text", "sender": "me@x.y"}
    return Message(**{**settings, **options})


def sent(message, name):
    """The header `name` as it is sent, unfolded."""
    head = to_envelope(message).content.partition(b"\r\n\r\n")[0].decode() + "\r\n"
    found = re.findall(rf"^{name}: ?((?:[^\r]|\r\n[ \t])*)\r\n", head, re.MULTILINE)
    assert len(found) == 1, head
    return re.sub(r"\r\n(?=[ \t])", "", found[0]).strip()


def decoded(name):
    return str(email.header.make_header(email.header.decode_header(name)))


# C3


@pytest.mark.representative(every=4)
@make_each
@pytest.mark.parametrize(
    ("value", "shown", "address"),
    [
        ("Acme Inc. <a@b.c>", "Acme Inc.", "a@b.c"),
        ("J. R. Doe <a@b.c>", "J. R. Doe", "a@b.c"),
        ("Dr. Ann <a@b.c>", "Dr. Ann", "a@b.c"),
        ("Acme Inc.<a@b.c>", "Acme Inc.", "a@b.c"),
        ("a..b <a@b.c>", "a..b", "a@b.c"),
        (".hidden <a@b.c>", ".hidden", "a@b.c"),
        ('"x" Inc. <a@b.c>', "x Inc.", "a@b.c"),
        ("example.com <a@b.c>", "example.com", "a@b.c"),
        ("St. Mary's Ltd. (UK) <a@b.c>", "St. Mary's Ltd.", "a@b.c"),
    ],
)
@pytest.mark.parametrize("field", ["From", "To", "Reply-To"])
def test_c3_a_period_in_a_name_is_harmless_and_gets_its_quotes(make, field, value, shown, address):
    """Kind: a defect that is about the name and leaves the address as it is."""
    if (value.startswith(".") or ".<" in value) and make is new:
        pytest.skip("some versions of the standard library cannot parse it")
    if "(" in value and make is not new:
        pytest.skip("a comment stays where it came from")
    header = sent(make(**{field.replace("-", "_"): value}), field)
    assert email.utils.parseaddr(header) == (shown, address)
    if value not in ('"x" Inc. <a@b.c>',):
        assert header == f'"{shown}" <{address}>'


@make_each
def test_c3_several_of_them_are_several_recipients(make):
    """Kind: the same in a list."""
    message = make(To='Acme Inc. <a@b.c>, "Doe, J." <d@b.c>, e@b.c, F. <f@b.c>')
    envelope = to_envelope(message)
    assert envelope.recipients == ("a@b.c", "d@b.c", "e@b.c", "f@b.c")
    found = email.utils.getaddresses([sent(message, "To")])
    assert found == [("Acme Inc.", "a@b.c"), ("Doe, J.", "d@b.c"), ("", "e@b.c"), ("F.", "f@b.c")]


@make_each
@pytest.mark.parametrize(
    "value",
    [
        *("Acme, Inc. <a@b.c>", "Acme @ Home <a@b.c>", "Acme Inc. <a@b.c", "Inc. <a@b.c> <d@e.f>"),
        *("Inc. <a@b.c> SIZE=1", "Acme: Inc. <a@b.c>", "Acme Inc. <.a@b.c>", "Inc. <@x.y:a@b.c>"),
    ],
)
def test_c3_a_defect_that_mends_an_address_is_refused(make, value):
    """Kind: the neighbour on the other side, where two readers may see two addresses."""
    with pytest.raises((AddressError, BadHeaders)) as caught:
        to_envelope(make(To=value))
    assert caught.value.field == "To"


# C4

STRUCTURED = {
    "In-Reply-To": "<1@x.y>",
    "References": "<1@x.y> <2@x.y>",
    "List-Unsubscribe": "<https://x.y/u?a=%20>, <mailto:u@x.y>",
    "List-Archive": "<https://x.y/" + "a" * 200 + ">",
    "Auto-Submitted": "auto-replied",
    "Precedence": "bulk",
    "Content-Language": "de, en",
    "Autocrypt": "addr=a@b.c; keydata=" + "mDME " * 40 + "x",
    "Authentication-Results": "x.y; dkim=pass header.d=x.y " + "; spf=pass" * 12,
    "Message-ID": "<" + "a" * 120 + "@x.y>",
}


@pytest.mark.representative(every=3)
@pytest.mark.parametrize("name", STRUCTURED)
@pytest.mark.parametrize("blanks", ["{}", " {}", "{} ", "  {}\t", "\t{}"])
def test_c4_a_header_with_a_syntax_of_its_own_is_never_encoded(name, blanks):
    """Kind: a value that is read by programs, where an encoded word is data."""
    value = STRUCTURED[name]
    made = [new(**{name.replace("-", "_"): blanks.format(value)})]
    made.append(old(**{name.replace("-", "_"): Header(blanks.format(value), "us-ascii")}))
    made.append(old(**{name.replace("-", "_"): blanks.format(value)}))
    try:
        made.append(ours(extra_headers={name: blanks.format(value)}))
        made[-1].validate()
    except BadHeaders:
        made.pop()  # there is an argument for it
    for message in made:
        assert sent(message, name) == value
        line = f"{name}: {value}\r\n".encode()
        assert len(line) > LINE or line in to_envelope(message).content


@pytest.mark.parametrize("name", ["In-Reply-To", "References", "Content-Language", "Importance"])
def test_c4_what_cannot_be_written_is_refused(name):
    """Kind: the same, where only an encoding would help."""
    for value in ("<ü@x.y>", "<" + "a" * 1000 + "@x.y>"):
        for message in (ours(extra_headers={name: value}), new(**{name.replace("-", "_"): value})):
            with pytest.raises(BadHeaders) as caught:
                to_envelope(message)
            assert caught.value.field == name


def test_c4_a_long_list_of_references_is_folded_at_its_blanks():
    """Kind: the same, and longer than a line."""
    value = " ".join(f"<{n}.{'x' * n}@example.com>" for n in range(90))
    for message in (ours(extra_headers={"References": value}), new(References=value)):
        assert sent(message, "References") == value
        assert max(map(len, to_envelope(message).content.split(b"\r\n"))) <= 110


@given(st.lists(st.sampled_from(["<a@b.c>", "=?utf-8?q?x?=", "x" * 70, "(c)", "."]), min_size=1))
def test_c4_any_words_come_out_as_they_went_in(words):
    """Kind: the same, for any words."""
    value = " ".join(words)
    assert sent(ours(extra_headers={"References": f" {value} "}), "References") == value


@pytest.mark.parametrize("value", ["Über uns <news.x.y>", "<news.x.y>", '"a, b" <news.x.y>'])
def test_c4_the_id_of_a_list_is_never_encoded(value):
    """Kind: a phrase with something behind it that programs read."""
    for message in (new(List_Id=value), old(List_Id=Header(value, "utf-8"))):
        header = sent(message, "List-Id")
        assert header.endswith("<news.x.y>")
        assert decoded(header).replace('"', "").split() == value.replace('"', "").split()


def test_c4_a_thread_holds_together():
    """Kind: the case itself, from one message to the answer."""
    first = email.message_from_string("Message-ID:\n <1@x.y>\n\n", policy=email.policy.default)
    answer = ours(extra_headers={"In-Reply-To": " " + first["Message-ID"].strip()})
    assert sent(answer, "In-Reply-To") == "<1@x.y>"


# C5


@pytest.mark.parametrize("text", ["a\tb", "\ta b", "a b\t", "a\t\tb", "Grüße\tund mehr", "a \t b"])
@pytest.mark.parametrize("field", ["Subject", "References", "X-Tag", "Comments"])
def test_c5_a_tab_is_white_space_and_written_as_a_blank(field, text):
    """Kind: white space in text that was taken from a received mail."""
    if field == "References" and not text.isascii():
        return
    made = [new(**{field: text}), old(**{field: Header(text, "utf-8")})]
    if text.isascii():
        made.append(old(**{field: text}))
    made.append(ours(subject=text) if field == "Subject" else ours(extra_headers={field: text}))
    if field == "Subject":
        made.append(Template(subject="{{ x }}", text="x").render({"x": text}, ["a@b.c"]))
    for message in made:
        envelope = to_envelope(message, default_sender="me@x.y")
        assert b"\t" not in envelope.content
        found = email.message_from_bytes(envelope.content, policy=email.policy.default)[field]
        assert str(found).split() == text.split()
        if field != "References" and isinstance(message, Message):
            assert str(found) == text.replace("\t", " ")


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n", "\n\t", "\r\n\t", "\x0b", "\x0c", "\x85"])
def test_c5_other_controls_are_refused_as_before(end):
    """Kind: the neighbours that end a line somewhere."""
    for message in (ours(subject=f"a{end}b"), ours(extra_headers={"References": f"a{end}b"})):
        with pytest.raises(BadHeaders):
            to_envelope(message)


# C10

ODD_ZONES = [
    *(timedelta(minutes=19, seconds=32), -timedelta(minutes=44, seconds=30)),
    *(timedelta(hours=-4, minutes=-56, seconds=-2), timedelta(hours=5, minutes=53, seconds=20)),
    *(timedelta(microseconds=1), timedelta(hours=23, minutes=59, seconds=59)),
    *(timedelta(0), timedelta(hours=5, minutes=45), -timedelta(hours=9, minutes=30)),
]


@pytest.mark.parametrize("offset", ODD_ZONES, ids=str)
def test_c10_a_zone_has_four_digits_and_the_moment_stays(offset):
    """Kind: a zone whose offset is not whole minutes, as local mean times are."""
    moment = datetime(1930, 5, 17, 12, 0, 0, tzinfo=timezone(offset))
    compiled = Template(subject="x", text="{{ x }}", sender="me@x.y").compile()
    made = [ours(date=moment), new(Date=moment), old(Date=email.utils.format_datetime(moment))]
    contents = [to_envelope(message).content for message in made]
    contents.append(compiled.envelope("a@b.c", {"x": "1"}, date=moment).content)
    for content in contents:
        value = email.message_from_bytes(content)["Date"]
        assert re.fullmatch(r"Sat, 17 May 1930 \d\d:\d\d:\d\d [+-]\d{4}", value), value
        told = email.utils.parsedate_to_datetime(value)
        assert abs(told.astimezone(UTC) - moment.astimezone(UTC)) < timedelta(seconds=1)


# C11


@pytest.fixture(scope="module")
def plain_server():
    with ScriptedServer(extensions=("8BITMIME", "PIPELINING")) as server:
        yield server


@pytest.mark.parametrize("policy", [email.policy.default, email.policy.compat32])
@pytest.mark.parametrize(
    "line",
    [
        "Subject: Grüße 你好",
        "To: Jörg <a@b.c>",
        "X-Tag: ü",
        "Subject: a\n ü\n 🎉",
        "From: Zoë <me@x.y>",
    ],
)
def test_c11_utf8_in_headers_of_a_parsed_message_is_taken(policy, line, plain_server):
    """Kind: an internationalized header (RFC 6532) that a parser has kept as octets."""
    lines = {"From": "From: me@x.y", "To": "To: a@b.c", line.partition(":")[0]: line}
    source = "\n".join([*lines.values(), "", "text", ""]).encode()
    message = email.message_from_bytes(source, policy=policy)
    envelope = to_envelope(message)
    assert envelope.needs_smtputf8
    assert line.replace("\n", "\r\n").encode() in envelope.content
    assert envelope.recipients == ("a@b.c",)
    with ScriptedServer() as server:
        mailer = Mailer(transport_from_url(server.url))
        mailer.send(message)
        transaction.commit()
        mailer.close()
        assert server.messages[0].content == mailer_content(server, message)
        assert "SMTPUTF8" in server.messages[0].parameters
    mailer = Mailer(transport_from_url(plain_server.url))
    mailer.send(message)
    with pytest.raises(DeliveryRefused, match="SMTPUTF8"):
        transaction.commit()
    transaction.abort()
    mailer.close()


def mailer_content(server, message):
    content = server.messages[0].content
    for name in message.keys():  # noqa: SIM118
        raw = dict(message.raw_items())[name].encode("ascii", "surrogateescape")
        assert b"\r\n".join(raw.splitlines()) in content
    return content


@pytest.mark.representative(every=4)
@pytest.mark.parametrize("octets", [b"\xe4", b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"a\xc2\x85b"])
@pytest.mark.parametrize("name", ["Subject", "To", "X-Tag"])
@pytest.mark.parametrize("policy", [email.policy.default, email.policy.compat32])
def test_c11_other_octets_are_refused_in_so_many_words(policy, name, octets):
    """Kind: octets of no known charset, and controls in UTF-8."""
    lines = {"From": b"me@x.y", "To": b"a@b.c", name: b"x " + octets + b" <a@b.c>"}
    source = b"".join(k.encode() + b": " + v + b"\n" for k, v in lines.items()) + b"\ntext\n"
    with pytest.raises(BadHeaders) as caught:
        to_envelope(email.message_from_bytes(source, policy=policy))
    assert caught.value.field == name
    if octets != b"a\xc2\x85b":
        assert "neither ASCII nor UTF-8" in str(caught.value)


@pytest.mark.parametrize("policy", [email.policy.default, email.policy.compat32])
def test_c11_utf8_in_headers_of_parts_is_encoded(policy):
    """Kind: the same where nothing says that it needs SMTPUTF8."""
    source = (
        "From: me@x.y\nTo: a@b.c\nContent-Type: multipart/mixed; boundary=b\n\n--b\n"
        'Content-Type: application/pdf; name="Grüße.pdf"\nContent-Description: über\n\nx\n--b--\n'
    ).encode()
    envelope = to_envelope(email.message_from_bytes(source, policy=policy))
    assert envelope.content.isascii()
    message = email.message_from_bytes(envelope.content, policy=email.policy.default)
    (part,) = message.iter_parts()
    assert part.get_filename() == "Grüße.pdf"
    assert part["Content-Description"] == "über"


# C12


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["a@b.c", "a@B.C"], ["a@b.c"]),
        (["a@B.C", "a@b.c"], ["a@B.C"]),
        (["a@bücher.example", "a@XN--BCHER-KVA.example"], ["a@bücher.example"]),
        (["a@xn--bcher-kva.EXAMPLE", "a@bücher.example"], ["a@xn--bcher-kva.EXAMPLE"]),
        (["a@[IPv6:FE80::1]", "a@[ipv6:fe80::1]"], ["a@[IPv6:FE80::1]"]),
        (["a@b.c", "A@b.c", "A@B.c"], ["a@b.c", "A@b.c"]),
        (['"a"@b.c', "a@b.c", '"a"@B.C'], ['"a"@b.c', "a@b.c"]),
        (["ü@b.c", "Ü@b.c", "ü@B.c"], ["ü@b.c", "Ü@b.c"]),
    ],
)
def test_c12_the_domain_has_no_case(given, expected):
    """Kind: one mailbox in two spellings, which a server must not be asked and sent twice."""
    note = to_envelope(ours()).content
    assert list(Envelope("me@x.y", tuple(given), note).recipients) == expected
    assert list(to_envelope(ours(recipients=given)).recipients) == expected
    assert list(to_envelope(ours(recipients=given[:1], bcc=given[1:])).recipients) == expected
    envelope = to_envelope(ours(), recipients=given)
    assert list(envelope.recipients) == expected
    assert len(envelope.forward_paths) == len(expected)


def test_c12_the_server_is_asked_once():
    """Kind: the same, at the server."""
    with ScriptedServer() as server:
        mailer = Mailer(transport_from_url(server.url))
        mailer.send(ours(recipients=["Ann <a@example.com>"], cc=["a@EXAMPLE.com", "b@Example.com"]))
        transaction.commit()
        mailer.close()
        assert server.messages[0].recipients == ("a@example.com", "b@Example.com")
        assert [o.recipient for o in mailer.last_outcomes] == ["a@example.com", "b@Example.com"]


# C13


@pytest.mark.representative(every=3)
@pytest.mark.parametrize(
    "name",
    ["Disposition-Notification-To", "Return-Receipt-To", "Errors-To", "Mail-Followup-To"],
)
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a@b.c", [("", "a@b.c")]),
        ("a@b.c, d@e.f", [("", "a@b.c"), ("", "d@e.f")]),
        ("Ann <a@b.c>,d@e.f", [("Ann", "a@b.c"), ("", "d@e.f")]),
        ('"Doe, Ann" <a@b.c>, Bob <d@e.f>', [("Doe, Ann", "a@b.c"), ("Bob", "d@e.f")]),
        ('"a, \\"b\\"" <a@b.c>, "c,d"@e.f', [('a, "b"', "a@b.c"), ("", '"c,d"@e.f')]),
        ("Jörg <a@b.c>, Zoë Inc. <d@e.f>", [("Jörg", "a@b.c"), ("Zoë Inc.", "d@e.f")]),
    ],
)
def test_c13_such_a_header_is_a_list_of_mailboxes(name, value, expected):
    """Kind: an address header beside those of RFC 5322."""
    for message in (
        ours(extra_headers={name: value}),
        new(**{name.replace("-", "_"): value}),
        old(**{name.replace("-", "_"): Header(value, "utf-8")}),
    ):
        parsed = email.message_from_bytes(to_envelope(message).content)
        found = email.utils.getaddresses([re.sub(r"\r\n(?=[ \t])", "", parsed[name])])
        shown = [
            (str(email.header.make_header(email.header.decode_header(n))), a) for n, a in found
        ]
        assert shown == expected


@pytest.mark.parametrize("value", ["", ",", "nobody", "a@b.c, nobody", '"a@b.c', "a@b.c d@e.f"])
def test_c13_what_is_no_list_is_refused_by_name(value):
    """Kind: the same, wrong."""
    for name in ("Disposition-Notification-To", "Errors-To"):
        with pytest.raises(AddressError) as caught:
            ours(extra_headers={name: value}).to_envelope()
        assert caught.value.field == name


# C15


@pytest.mark.representative(every=4)
@pytest.mark.parametrize("length", [1, 40, 59, 60, 61, 62, 63, 64, 65])
@pytest.mark.parametrize("stem", ["x", "a b", "it's (1)", 'quo"te', "back;slash"])
def test_c15_a_name_that_fits_a_line_is_a_quoted_string(length, stem):
    """Kind: a parameter that older readers can read as it is."""
    name = (stem * length)[: length - 4].strip() + ".txt"
    token = name.replace('"', '\\"')
    if len(token) > 65 or not name[:-4]:
        return
    files = [Attachment(name, "text/plain", b"x", disposition) for disposition in (None, "inline")]
    message = new()
    message.add_attachment(b"x", "application", "pdf", filename=name)
    for content in (
        *(to_envelope(ours(attachments=[file])).content for file in files),
        to_envelope(message).content,
    ):
        assert b"filename*" not in content
        assert f'filename="{token}"'.encode() in content or f"filename={name}".encode() in content
        assert max(map(len, content.split(b"\r\n"))) <= LINE + 2
        parsed = email.message_from_bytes(content, policy=email.policy.default)
        assert list(parsed.iter_attachments())[-1].get_filename() == name


@pytest.mark.parametrize("name", ["x" * 70, "ä" * 10, "=?utf-8?q?x?=.txt", 'x"' * 30 + "x"])
def test_c15_what_does_not_fit_is_written_by_rfc_2231(name):
    """Kind: the neighbour that has to be folded or encoded."""
    content = to_envelope(ours(attachments=[Attachment(name, "text/plain", b"x")])).content
    assert b"filename*" in content
    assert max(map(len, content.split(b"\r\n"))) <= LINE + 2
    parsed = email.message_from_bytes(content, policy=email.policy.default)
    assert next(parsed.iter_attachments()).get_filename() == name


# C16


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        *(("Reply-To", "reply_to"), ("Date", "date"), ("Message-ID", "message_id")),
        *(("message-id", "message_id"), ("Subject", "subject"), ("From", "sender")),
        *(("To", "recipients"), ("Cc", "cc"), ("BCC", "bcc"), ("List-Id", "list_id")),
        ("Auto-Submitted", "auto_submitted"),
    ],
)
def test_c16_a_header_with_an_argument_names_it(name, argument):
    """Kind: a refusal that says what to do."""
    with pytest.raises(BadHeaders, match=rf"extra_headers: .*\b{argument}\b") as caught:
        ours(extra_headers={name: "x"}).to_envelope()
    assert caught.value.field == "extra_headers"
    assert argument in vars(ours()) or f"_{argument}" in vars(ours())


@pytest.mark.parametrize("name", ["MIME-Version", "Content-Type", "Received", "Resent-To"])
def test_c16_others_say_whose_they_are(name):
    """Kind: the same, where there is no argument."""
    with pytest.raises(BadHeaders, match=r"made (of|by)|standard library"):
        ours(extra_headers={name: "x"}).to_envelope()


@pytest.mark.parametrize(
    "text", ["a..b@docomo.ne.jp", ".a@docomo.ne.jp", "a.@docomo.ne.jp", "a...b.@x.y", "..@x.y"]
)
def test_c16_an_address_that_has_to_be_quoted_says_so(text):
    """Kind: an address that exists, and is legal in quotes only."""
    local, _, domain = text.partition("@")
    for make in (
        lambda text: ours(recipients=[text]),
        lambda text: ours(recipients=[f"Ann <{text}>"]),
        lambda text: ours(recipients=[("Ann", text)]),
    ):
        with pytest.raises(AddressError) as caught:
            make(text).to_envelope()
        assert f'"{local}"@{domain}' in str(caught.value)
        assert caught.value.field == "recipients"
        sent = make(f'"{local}"@{domain}').to_envelope()
        assert sent.forward_paths == (f'<"{local}"@{domain}>'.encode(),)
    for message in (new(To=text), old(To=text)):
        with pytest.raises(AddressError) as caught:
            to_envelope(message)
        assert f'"{local}"@{domain}' in str(caught.value)


@pytest.mark.parametrize(
    "text", ["a@b..c", "a b@c.d", "@b.c", "a@", "a@b@c.d", "a..b@c..d", "ü..b@c"]
)
def test_c16_others_get_no_advice_that_does_not_help(text):
    """Kind: the neighbours that quotes do not help."""
    with pytest.raises(AddressError) as caught:
        ours(recipients=[text]).to_envelope()
    assert "quoted" not in str(caught.value)


# C17


@pytest.mark.parametrize(
    "name",
    [
        *("Content-Language", "Content-Description", "Content-Location", "content-anything"),
        *("Sensitivity", "Importance", "Priority", "X-Priority", "Precedence", "Organization"),
        *("Keywords", "Comments", "Expires", "Supersedes", "X-Mailer", "User-Agent", "Feedback-ID"),
        *("Accept-Language", "Archived-At", "X-MS-Exchange-Organization-AuthAs", "Thread-Topic"),
        *("References", "Sender", "Face", "OpenPGP", "TLS-Required"),
    ],
)
def test_c17_any_header_that_is_not_ours_to_make_is_taken(name):
    """Kind: a header that nothing here writes."""
    value = "me@x.y" if name == "Sender" else "value"
    for message in (ours(extra_headers={name: value}), new(**{name.replace("-", "_"): value})):
        assert sent(message, name) == value
    both = ours(extra_headers=[(name, value)], html="<p>text</p>")
    assert sent(both, name) == value


def test_c3_a_header_of_objects_is_quoted_too():
    """Kind: the same from the standard library's own address objects."""
    message = new(From=Address("Acme Inc.", "a", "b.c"))
    assert sent(message, "From") == '"Acme Inc." <a@b.c>'
