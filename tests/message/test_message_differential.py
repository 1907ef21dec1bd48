"""Whatever is built here, the standard library reads back: the same texts, names, files, octets.

Its parser of headers is the judge (`email.policy.default`), and the older one for display names of
more than one encoded word, between which the newer one shows blanks (RFC 2047 section 6.2).
"""

from __future__ import annotations

import email
import email.header
import email.policy
import email.utils
import re
from email.message import EmailMessage

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from txmail.address import shown_name
from txmail.exceptions import BadHeaders
from txmail.message import Attachment, Message
from txmail.message.mime.header_check import check_value

#: The standard library's parser takes its time, and the machine may be busy.
unhurried = settings(deadline=None)

SCRIPTS = {
    "Arabic": "مرحبا بالعالم، كيف حالك؟ ١٢٣",
    "Armenian": "Բարեւ աշխարհ",
    "Bengali": "ওহে বিশ্ব",
    "Cherokee": "ᎣᏏᏲ ᎡᎶᎯ",
    "Chinese": "你好，世界！這是繁體。",
    "Cyrillic": "Съешь ещё этих мягких булок",
    "Devanagari": "नमस्ते दुनिया",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 🇦🇶 👍🏽",
    "Ethiopic": "ሰላም ለዓለም",
    "Georgian": "გამარჯობა მსოფლიო",
    "Greek": "Γειά σου Κόσμε",
    "Hangul": "안녕하세요 세계",
    "Hebrew": "שלום עולם (רשימה) 42",
    "Japanese": "こんにちは世界、カタカナも",
    "Khmer": "សួស្តី​ពិភពលោក",
    "Latin": "Grüße, naïve Ångström – Łódź ĳsberg „Žluťoučký“",
    "Mongolian": "ᠰᠠᠶᠢᠨ ᠪᠠᠶᠢᠨ᠎ᠠ ᠤᠤ",
    "Myanmar": "မင်္ဂလာပါ ကမ္ဘာလောက",
    "N'Ko": "ߊߟߎ߫ ߝߏ߬ߟߌ",
    "Persian": "می‌خواهم فارسی بنویسم",
    "Syriac": "ܫܠܡܐ ܠܥܠܡܐ",
    "Tamil": "வணக்கம் உலகம்",
    "Thaana": "އައްސަލާމް ޢަލައިކުމް",
    "Thai": "สวัสดีชาวโลก",
    "Tibetan": "བཀྲ་ཤིས་བདེ་ལེགས།",
    "beyond the BMP": "𝕳𝖊𝖑𝖑𝖔 𐌰𐌱𐌲 𠜎𠜱",
    "bidi controls": "\u202eabc\u202c \u2067שלום\u2069 \u200fx\u200e",
}
each_script = pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS)


def passes(text: str) -> bool:
    """False for what is refused because of what it decodes to; other tests see to that."""
    try:
        check_value(text, "text", parameter=True)
    except BadHeaders:
        return False
    return True


ANY = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=120)
SYNTAX = st.text(st.sampled_from("ab =?_%\"\\'();:,<>@[]./*é你🎉"), max_size=120)
WORDS = st.lists(st.sampled_from([*SCRIPTS.values(), "=?utf-8?q?x?=", "a", "x" * 90]), max_size=6)
LINE = st.one_of(ANY, SYNTAX, WORDS.map(" ".join)).filter(passes)
NAME = LINE.map(lambda text: text.strip())
BODY = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=300),
    st.text(st.sampled_from("ab \t=.-\r\n\0é"), max_size=300),
    st.lists(st.sampled_from([*SCRIPTS.values(), "--=_", "x" * 77, "From me", ".", " "])).map(
        "\n".join
    ),
)
FILE = st.tuples(LINE, st.binary(max_size=300), st.sampled_from(["base64", "quoted-printable"]))


def read(message: Message, **options) -> EmailMessage:
    content = message.to_envelope(**options).content
    assert_sound(content)
    found = email.message_from_bytes(content, policy=email.policy.default)
    assert isinstance(found, EmailMessage)
    for part in found.walk():
        assert not part.defects
    return found


def assert_sound(content: bytes) -> None:
    lines = content.split(b"\r\n")
    assert lines[-1] == b""
    assert max(map(len, lines)) <= 998
    assert content.isascii()
    assert not set(b"".join(lines)) & set(b"\r\n\0")
    head = content.partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert all(len(line) <= 76 for line in head if b"=?" in line)


def lines_of(text: str) -> str:
    return re.sub("\r\n|\r|\n", "\r\n", text).rstrip("\r\n")


def text_of(part) -> str:
    return part.get_payload(decode=True).decode(part.get_content_charset()).rstrip("\r\n")


def old_names(message: Message, header: str) -> list[tuple[str, str]]:
    old = email.message_from_bytes(message.to_envelope().content)
    raw = re.sub(r"\r\n(?=[ \t])", "", old[header])
    return [
        (str(email.header.make_header(email.header.decode_header(name))), address)
        for name, address in email.utils.getaddresses([raw])
    ]


@unhurried
@given(LINE)
def test_a_subject_is_read_back(subject):
    found = read(Message(subject, ["a@b.c"], "text", sender="me@x.y"))
    assert str(found["Subject"] or "") == subject


@unhurried
@given(st.lists(NAME, min_size=1, max_size=4))
def test_names_and_addresses_are_read_back(names):
    entries = [(name, f"a{number}@example.com") for number, name in enumerate(names)]
    message = Message("x", entries, "text", sender=entries[0], cc=entries, reply_to=entries)
    found = read(message)
    entries = [(shown_name(name).strip(), address) for name, address in entries]
    for header in ("To", "Cc", "Reply-To"):
        assert [a.addr_spec for a in found[header].addresses] == [a for _, a in entries]
        assert old_names(message, header) == entries
        for (name, _), address in zip(entries, found[header].addresses, strict=True):
            # One encoded word, wherever it stands; this reader joins blanks.
            if len(name.encode()) <= 20 and "  " not in name:
                assert address.display_name == name
    assert old_names(message, "From") == entries[:1]


@unhurried
@given(BODY, BODY, st.booleans())
def test_bodies_are_read_back(text, html, calendar):
    if not text and not html:
        return
    message = Message("x", ["a@b.c"], text, html, "me@x.y", calendar=text if calendar else None)
    got = [text_of(part) for part in read(message).walk() if not part.is_multipart()]
    wanted = [text, html, text if calendar else ""]
    assert got == [lines_of(body) for body in wanted if body]


@unhurried
@given(st.lists(FILE, max_size=3))
def test_files_are_read_back(files):
    attachments = []
    expected = []
    for name, data, encoding in files:
        last = re.split(r"[/\\]", name)[-1].strip(" ")
        if last in ("", ".", ".."):
            continue
        attachments.append(Attachment(name, "application/x-file", data, transfer_encoding=encoding))
        # The reader takes quotes, brackets and every kind of blank off, be they in the name or not.
        expected.append((email.utils.unquote(last).strip(), data))
    message = Message("x", ["a@b.c"], "text", sender="me@x.y", attachments=attachments)
    found = [
        (part.get_filename(), part.get_payload(decode=True))
        for part in read(message).iter_attachments()
    ]
    assert found == expected


@unhurried
@given(LINE, LINE)
def test_an_extra_header_is_read_back(first, second):
    pairs = [("X-First", first), ("X-Second", second)]
    found = read(Message("x", ["a@b.c"], "text", sender="me@x.y", extra_headers=pairs))
    assert (str(found["X-First"]), str(found["X-Second"])) == (first, second)


@unhurried
@given(LINE, BODY, st.binary(max_size=100))
def test_the_same_message_is_rendered_to_the_same_octets(line, body, data):
    def content() -> bytes:
        return (
            Message(
                line,
                [(line, "a@b.c")],
                body or "text",
                f"<p>{body}</p>",
                "me@x.y",
                attachments=[Attachment("a.bin", data=data)],
                message_id="<1@x.y>",
                date=DATE,
            )
            .to_envelope()
            .content
        )

    assert content() == content()


DATE = email.utils.parsedate_to_datetime("Sat, 21 Nov 2026 12:00:00 +0000")


@each_script
def test_a_message_in_any_script_is_read_back_in_every_place(text):
    name = f"{text}.txt"
    message = Message(
        subject=text,
        recipients=[(text, "a@b.c")],
        body=f"{text}\n{text}",
        html=f"<p>{text}</p>",
        sender=(text, "me@x.y"),
        calendar=f"BEGIN:VCALENDAR\nMETHOD:REQUEST\nSUMMARY:{text}\nEND:VCALENDAR\n",
        list_id=(text, "list.x.y"),
        attachments=[Attachment(name, "text/plain", text), Attachment("i", data=text.encode())],
    )
    found = read(message)
    assert str(found["Subject"]) == text
    name_of = shown_name(text).strip()
    assert old_names(message, "To") == [(name_of, "a@b.c")]
    assert old_names(message, "From") == [(name_of, "me@x.y")]
    plain, html, calendar, file, octets = (p for p in found.walk() if not p.is_multipart())
    assert text_of(plain) == f"{text}\r\n{text}"
    assert text_of(html) == f"<p>{text}</p>"
    assert f"SUMMARY:{text}\r\n" in text_of(calendar)
    assert calendar.get_param("method") == "REQUEST"
    assert (file.get_filename(), text_of(file)) == (name, text)
    assert octets.get_payload(decode=True) == text.encode()


@each_script
def test_a_body_in_any_script_is_as_small_as_it_can_safely_be(text):
    body = "\r\n".join([text] * 20) + "\r\n"
    found = read(Message("x", ["a@b.c"], body, sender="me@x.y"))
    encoding = found["Content-Transfer-Encoding"]
    # Every other encoding is at least as long, but for the soft line breaks of the shorter one.
    escapes = sum(octet > 126 or octet == 61 for octet in body.encode())
    quoted, base64 = len(body.encode()) + 2 * escapes, len(body.encode()) * 4 / 3
    assert encoding == ("quoted-printable" if quoted < base64 else "base64")
