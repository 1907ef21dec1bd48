"""Parts of a message and what is said of them: C6 to C9, C14."""

from __future__ import annotations

import bz2
import codecs
import email
import email.policy
import gzip
import lzma
from email.message import Message as OldMessage
from email.mime.multipart import MIMEMultipart

import pytest

from txmail import Attachment, Message, Template
from txmail.exceptions import InvalidMessage
from txmail.message import to_envelope


def ours(*attachments, **options):
    settings = {"subject": "hello", "recipients": ["a@b.c"], "body": "text", "sender": "me@x.y"}
    return Message(**{**settings, **options}, attachments=attachments)


def parts_of(message, policy=email.policy.default):
    content = to_envelope(message).content
    return list(email.message_from_bytes(content, policy=policy).walk())


def outer(part):
    """A message of the standard library around `part`."""
    message = MIMEMultipart()
    message["From"], message["To"] = "me@x.y", "a@b.c"
    message.attach(part)
    return message


# C6

TEXT = "Grüße\nvon\r\nhier\u0a0d\u0d0a\u2028x\rend"
LINES = "Grüße\r\nvon\r\nhier\u0a0d\u0d0a\u2028x\r\nend"
#: Characters that these charsets have, some with the octets of CR and LF in them.
WIDE = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "UTF-16LE"]
EBCDIC = ["cp037", "cp500", "cp1140"]


@pytest.mark.representative(every=3)
@pytest.mark.parametrize("charset", WIDE + EBCDIC)
@pytest.mark.parametrize("encoding", ["quoted-printable", "base64"])
def test_c6_text_whose_line_ends_are_other_octets_arrives_whole(charset, encoding):
    """Kind: a charset in which CR and LF are not what they are in ASCII, or parts of characters."""
    text = TEXT if charset in WIDE else "Gruesse\nvon\r\nhier\x85 und \x15 da"
    file = Attachment("a.txt", f"text/plain; charset={charset}", text, None, encoding)
    part = parts_of(ours(file))[-1]
    found = part.get_payload(decode=True).decode(charset)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\r\n")
    assert found == (text if encoding == "base64" else lines)
    body = parts_of(ours(body=Attachment(None, f"text/plain; charset={charset}", text)))[0]
    assert body.get_payload(decode=True).decode(charset) == text


@pytest.mark.representative(every=3)
@pytest.mark.parametrize("charset", WIDE + EBCDIC + ["ISO-10646-UCS-2", "csUnicode", "IBM01140"])
@pytest.mark.parametrize("encoding", ["quoted-printable", "base64"])
def test_c6_octets_of_such_a_charset_stay_as_they_are(charset, encoding):
    """Kind: the same, in octets, of which the label may be unknown."""
    octets = b"\0a\n\r\0\x0a\x0d\xff\n"
    file = Attachment("a.txt", f"text/plain; charset={charset}", octets, None, encoding)
    assert parts_of(ours(file))[-1].get_payload(decode=True) == octets


@pytest.mark.representative(every=3)
@pytest.mark.parametrize("encoding", ["7bit", "8bit"])
@pytest.mark.parametrize("charset", [*WIDE, *EBCDIC])
def test_c6_what_cannot_be_lines_is_refused(charset, encoding):
    """Kind: the same, where the encoding leaves no way."""
    for data in ("text\ntext", b"\0a\0b"):
        file = Attachment("a.txt", f"text/plain; charset={charset}", data, None, encoding)
        with pytest.raises(InvalidMessage, match="base64") as caught:
            ours(file).to_envelope()
        assert caught.value.field == "transfer_encoding"


@pytest.mark.parametrize("charset", ["utf-8", "iso-8859-1", "shift_jis", "iso-2022-jp", "gb18030"])
@pytest.mark.parametrize("encoding", ["quoted-printable", "8bit"])
def test_c6_other_text_has_its_line_ends_made_crlf(charset, encoding):
    """Kind: the neighbour, as before."""
    text = "a\nb\r\nc\rd" if charset == "iso-8859-1" else "日本\nb\r\nc\rd"
    text = text if charset != "utf-8" else "日本\nb\r\nc\rd"
    file = Attachment("a.txt", f"text/plain; charset={charset}", text, None, encoding)
    found = parts_of(ours(file))[-1].get_payload(decode=True).decode(charset)
    assert found.splitlines() == text.splitlines()


@pytest.mark.parametrize("charset", ["utf-16", "utf-16-le", "utf-32", "cp037", "iso-10646-ucs-2"])
@pytest.mark.parametrize("encoding", ["8bit", "binary", None])
def test_c6_octets_of_a_standard_message_stay_as_they_are(charset, encoding):
    """Kind: the same, from the standard library."""
    for octets in ("Grüße\nvon\r\nhier".encode("utf-16"), b"\0a\0\n\r\0", b"plain\nlines\r\r\n"):
        part = OldMessage()
        part["Content-Type"] = f"text/plain; charset={charset}"
        if encoding:
            part["Content-Transfer-Encoding"] = encoding
        part.set_payload(octets.decode("ascii", "surrogateescape"))
        assert parts_of(outer(part))[-1].get_payload(decode=True) == octets


@pytest.mark.parametrize("octets", [b"a\nb\r\nc\rd", b"\n", b"\r\r", b"plain", b"\0\n", b"\xff\n"])
def test_c6_data_that_calls_itself_binary_has_no_lines(octets):
    """Kind: octets that are no text, in the one encoding that says so."""
    part = OldMessage()
    part["Content-Type"] = "application/octet-stream"
    part["Content-Transfer-Encoding"] = "binary"
    part.set_payload(octets.decode("ascii", "surrogateescape"))
    assert parts_of(outer(part))[-1].get_payload(decode=True) == octets


# C7


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(("data.csv.gz", "application/gzip"), ("DATA.CSV.GZ", "application/gzip")),
        *(("logs.tar.gz", "application/gzip"), ("logs.tgz", "application/gzip")),
        *(("x.html.bz2", "application/x-bzip2"), ("x.txt.xz", "application/x-xz")),
        *(("x.txt.Z", "application/x-compress"), ("image.svgz", "application/gzip")),
        *(("x.json.br", "application/x-brotli"), ("x.gz", "application/gzip")),
        *(("data.csv", "text/csv"), ("x.tar", "application/x-tar"), ("x.pdf", "application/pdf")),
        *(("x", "application/octet-stream"), ("x.csv.unheard-of", "application/octet-stream")),
    ],
)
def test_c7_the_type_is_that_of_the_octets(name, expected):
    """Kind: a name that says what the data is once it has been unpacked."""
    packers = {"gz": gzip, "tgz": gzip, "svgz": gzip, "bz2": bz2, "xz": lzma}
    packer = packers.get(name.lower().rpartition(".")[2])
    data = packer.compress(b"a,b\n") if packer else b"data"
    part = parts_of(ours(Attachment(name, data=data)))[-1]
    assert part.get_content_type() == expected
    assert part.get_filename() == name
    assert part.get_payload(decode=True) == data
    assert "charset" not in dict(part["Content-Type"].params)
    said = Attachment(name, "text/x-own", data)
    assert parts_of(ours(said))[-1].get_content_type() == "text/x-own"


# C8

INVITATION = "BEGIN:VCALENDAR\r\n{}VERSION:2.0\r\nBEGIN:VEVENT\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n"
GIVEN = {
    "text": lambda text: text,
    "LF": lambda text: text.replace("\r\n", "\n"),
    "octets": lambda text: text.encode(),
    "octets with a mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "attachment": lambda text: Attachment(data=text),
    "attachment of octets": lambda text: Attachment(data=text.encode()),
    "attachment with a type": lambda text: Attachment(None, "text/calendar; charset=utf-8", text),
    "attachment with a name": lambda text: Attachment("invite.ics", "text/calendar", text.encode()),
    "latin-1": lambda text: Attachment(None, "TEXT/Calendar; charset=latin-1", text),
    "utf-16": lambda text: Attachment(None, "text/calendar; charset=utf-16", text),
}


@pytest.mark.representative(every=4)
@pytest.mark.parametrize("how", GIVEN)
@pytest.mark.parametrize(
    ("line", "method"),
    [
        *(("METHOD:REQUEST\r\n", "REQUEST"), ("method:cancel\r\n", "CANCEL")),
        *(("PRODID:-//x\r\nMETHOD:REPLY \r\n", "REPLY"), ("METHOD:REQ\r\n UEST\r\n", "REQUEST")),
        *(("METHOD;X-A=b:PUBLISH\r\n", "PUBLISH"), ("X-METHOD:CANCEL\r\n", None), ("", None)),
        *(("X-WR-CALDESC:a\r\n METHOD:CANCEL\r\n", None), ("METHOD:REQUE\u017fT\r\n", None)),
    ],
)
def test_c8_the_method_is_read_from_the_content(how, line, method):
    """Kind: an invitation in any form in which it may be handed in."""
    if not line.isascii() and how == "latin-1":
        return
    calendar = GIVEN[how](INVITATION.format(line))
    part = parts_of(ours(calendar=calendar))[-1]
    assert part.get_content_type() == "text/calendar"
    assert part["Content-Type"].params.get("method") == method
    assert part.get_content_disposition() in (None, "inline")
    assert part.get_content().replace("\r\n", "\n").lstrip("\ufeff") == INVITATION.format(
        line
    ).replace("\r\n", "\n")


def test_c8_what_was_said_stays():
    """Kind: the same, where somebody knows better."""
    text = INVITATION.format("METHOD:REQUEST\r\n")
    own = Attachment("i.ics", "text/calendar; method=CANCEL", text, "attachment; filename=i.ics")
    part = parts_of(ours(calendar=own))[-1]
    assert part["Content-Type"].params["method"] == "CANCEL"
    assert part.get_content_disposition() == "attachment"
    other = Attachment("i.ics", "application/ics", text)
    assert "method" not in parts_of(ours(calendar=other))[-1]["Content-Type"].params


def test_c8_a_method_of_a_component_is_none_of_the_calendar():
    """Kind: a line of the same name at another place."""
    text = INVITATION.format("").replace("END:VEVENT", "METHOD:CANCEL\r\nEND:VEVENT")
    for calendar in (text, text.encode(), Attachment(data=text)):
        assert "method" not in parts_of(ours(calendar=calendar))[-1]["Content-Type"].params


@pytest.mark.parametrize("calendar", [b"\xff", "Grüße".encode("latin-1"), b"\xed\xa0\x80"])
def test_c8_octets_that_are_no_utf8_are_refused_with_what_to_do(calendar):
    """Kind: the same, in a charset that nobody has told."""
    for use in (Message.validate, Message.to_envelope):
        with pytest.raises(InvalidMessage, match="Attachment") as caught:
            use(ours(calendar=calendar))
        assert caught.value.field == "calendar"


# C9


def shown(html, content_id="logo", disposition=None):
    """Whether an image belongs to `html`, and its disposition."""
    image = Attachment("x.png", "image/png", b"x", disposition, content_id=content_id)
    found = {p.get_content_type(): p for p in parts_of(ours(image, html=html))}
    return "multipart/related" in found, found["image/png"].get_content_disposition()


@pytest.mark.representative(every=5)
@pytest.mark.parametrize(
    ("url", "content_id"),
    [
        *(("cid:logo", "logo"), ("CID:logo", "logo"), ("Cid:Logo", "Logo")),
        *(("cid:a%2Bb@x", "a+b@x"), ("cid:a+b@x", "a+b@x"), ("cid:a%40x", "a@x")),
        *(("cid:a&amp;b", "a&b"), ("cid:a&#64;x", "a@x"), ("cid:it's@x", "it's@x")),
        *(("cid:100%25", "100%"), ("cid:logo.png@example.com", "<logo.png@example.com>")),
    ],
)
@pytest.mark.parametrize(
    "html",
    ['<img src="{}">', "<img src={}>", "<img alt=x src={} width=1>", '<a style="b:url({})">',
     '<img srcset="{} 1x, x 2x">', "<style>a {{ background: url({}) }}</style>"],
)  # fmt: skip
def test_c9_what_the_html_calls_is_shown_inline(html, url, content_id):
    """Kind: a URL of a part, however it is written (RFC 2392)."""
    assert shown(html.format(url), content_id) == (True, "inline")


@pytest.mark.parametrize("html", ["<img src='cid:logo'>", "<a style=\"x:url('cid:logo')\">"])
def test_c9_an_apostrophe_ends_the_url(html):
    """Kind: the same, in the other quotes."""
    assert shown(html) == (True, "inline")


@pytest.mark.parametrize(
    "url",
    [
        *("cid:logo2", "cid:logo.png", "cid:xlogo", "acid:logo", "x-cid:logo", "cid:LOGO", "cid:"),
        *("cid:logo%32", "cid:lo", "cid:logo@x", "cid: logo", "mid:logo", "cid:logo&amp;x"),
    ],
)
def test_c9_another_id_is_another_part(url):
    """Kind: an id that has ours in it, or is in ours."""
    assert shown(f'<img src="{url}">') == (False, "attachment")


def test_c9_ids_that_begin_alike_are_told_apart():
    """Kind: the case itself."""
    images = [Attachment(f"{c}.png", "image/png", b"x", content_id=c) for c in ("logo", "logo2")]
    parts = parts_of(ours(*images, html='<img src="cid:logo2">'))
    found = {part.get_filename(): part.get_content_disposition() for part in parts}
    assert (found["logo.png"], found["logo2.png"]) == ("attachment", "inline")


def test_c9_what_was_said_stays():
    """Kind: the same, where somebody has said it."""
    html = '<img src="cid:logo">'
    assert shown(html, disposition="attachment") == (True, "attachment")
    assert shown(html, disposition="inline; filename=y.png") == (True, "inline")
    assert shown("<p>none</p>", disposition="inline") == (True, "inline")
    assert Attachment("x").disposition == "attachment"


@pytest.mark.parametrize("html", ["{{ x }}", "cid:logo{{ x }}", "{{ x }}cid:logo", "cid:{{ x }}"])
@pytest.mark.parametrize("x", ["", "2", "cid:logo", "logo", "a"])
def test_c9_a_field_beside_an_id_makes_another_one_of_it(html, x):
    """Kind: the same in a template that was compiled, where the text is not known before."""
    image = Attachment("x.png", "image/png", b"x", content_id="logo")
    template = Template("s", html=f'<img src="{html}">', sender="me@x.y", attachments=[image])
    options = {"message_id": "<1@x.y>"}
    made = template.compile().envelope("a@b.c", {"x": x}, **options).content
    rendered = template.render({"x": x}, ["a@b.c"], **options).to_envelope().content
    assert made.partition(b"MIME-Version")[2] == rendered.partition(b"MIME-Version")[2]


# C14


@pytest.mark.parametrize(
    "label",
    ["windows-874", "iso-8859-8-i", "ISO-8859-6-E", "x-mac-thai", "utf-7-imap", "x-user-defined"],
)
@pytest.mark.parametrize("encoding", ["base64", "quoted-printable", "8bit"])
def test_c14_the_charset_of_octets_is_a_label(label, encoding):
    """Kind: a charset that is of no account where nothing has to be encoded."""
    octets = b"\xa1\xd2\xc3\r\n"
    for kind in ("text/html", "text/plain", "application/xml"):
        file = Attachment("a.txt", f"{kind}; charset={label}", octets, None, encoding)
        for message in (ours(file), ours(body=file), ours(body=None, html=file)):
            part = parts_of(message)[-1]
            assert part.get_content_charset() == label.lower()
            assert part.get_payload(decode=True).rstrip() == octets.rstrip()
    part = OldMessage()
    part["Content-Type"] = f"text/plain; charset={label}"
    part["Content-Transfer-Encoding"] = "8bit"
    part.set_payload(octets.decode("ascii", "surrogateescape"))
    assert parts_of(outer(part))[-1].get_payload(decode=True).rstrip() == octets.rstrip()


def test_c14_text_has_to_be_encoded_and_is_refused_with_what_to_do():
    """Kind: the neighbour, where the charset is needed."""
    for label in ("windows-874", "x-user-defined", "unicode_escape", "base64"):
        file = Attachment("a.txt", f"text/plain; charset={label}", "text")
        with pytest.raises(InvalidMessage, match="octets") as caught:
            ours(file).to_envelope()
        assert caught.value.field == "content_type"
