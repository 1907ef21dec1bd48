"""Files of the public kind: small messages with one defect each, from a parser to a server."""

from __future__ import annotations

import email
import email.policy
import re
from email.message import EmailMessage
from pathlib import Path

import pytest
import transaction

from txmail import Mailer, transport_from_url
from txmail.exceptions import TxmailError
from txmail.message.mime.header_check import is_charset
from txmail.testing import ScriptedServer

FOLDER = Path(__file__).parent / "eml"
FILES = {path.stem: path for path in sorted(FOLDER.glob("*.eml"))}
POLICIES = [email.policy.default, email.policy.compat32]

#: Files that are refused: the field of the error, and words that it has.
REFUSED = {
    "comma-in-a-name": ("From", "not an address: 'Acme'"),
    "control-in-a-header": ("Subject", "a control character"),
    "encoded-word-with-a-line-end": ("Subject", "decodes to a control character"),
    "encoding-unknown-of-1000-octets": ("Content-Transfer-Encoding", "a line of more than 998"),
    "forward-of-21": ("content", "nested more than 20 deep"),
    "header-latin1-in-a-part": ("Content-Description", "neither ASCII nor UTF-8"),
    "header-latin1-subject": ("Subject", "neither ASCII nor UTF-8"),
    "multipart-that-ends-twice": ("content", "boundary of a multipart occurs in a body"),
    "multipart-with-a-bad-boundary": ("Content-Type", "not a boundary"),
    "multipart-with-an-empty-boundary": ("Content-Type", "not a boundary"),
    "multipart-without-a-boundary": ("Content-Type", "has no parts"),
    "multipart-without-parts": ("Content-Type", "has no parts"),
    "no-recipient": ("recipients", "there are none"),
    "nul-in-the-body": ("content", "line 7 has a NUL"),
    "references-of-1000-octets-without-a-blank": ("References", "cannot be folded"),
    "resent": ("recipients", "a resent message has none of its own; give them"),
    "route-in-an-address": ("To", "not a list of addresses"),
    "signed-with-a-long-line": ("content", "before it is signed"),
    "two-content-types": ("Content-Type", "more than one"),
    "two-dots-in-an-address": ("To", '"b..b"@docomo.example'),
    "two-froms": ("From", "more than one"),
    "two-subjects": ("Subject", "more than one"),
    "two-tos": ("To", "more than one"),
}

#: What readers have to see of some others, beside what the standard library makes of the file.
SHOWN = {
    "bare-cr-in-the-body": "Hello\nBob.",
    "charset-big5": "你好",
    "charset-euc-kr": "안녕",
    "charset-gb2312": "你好",
    "charset-iso-2022-jp": "日本語",
    "charset-iso-8859-8": "שלום",
    "charset-koi8-r": "Привет",
    "charset-shift_jis": "日本語",
    "charset-utf-16": "Grüße",
    "charset-windows-1252": "Grüße €",
    "8bit-said-to-be-7bit": "Grüße",
    "encoded-words": "Grüße 你好",
    "header-utf8-filename": "Grüße.pdf",
    "header-utf8-name": "Zoë",
    "header-utf8-subject": "Grüße 你好",
    "encoded-word-in-quotes": "Grüße.pdf",
    "file-name-in-pieces": "Grüße.pdf",
    "fold-of-nothing": "hello world",
    "period-in-a-name": '"Acme Inc." <ann@example.com>',
    "receipts-for-two": 'ann@example.com, "Acme Inc." <carl@example.com>',
    "line-of-1000-octets": "h" * 1000,
    "references-of-1000-octets": "<39." + "x" * 39 + "@example.com>",
}


@pytest.fixture(scope="module")
def server():
    with ScriptedServer() as server:
        yield server


@pytest.fixture(scope="module")
def mailer(server):
    mailer = Mailer(transport_from_url(server.url), default_sender="me@example.com")
    yield mailer
    mailer.close()


def squeezed(text):
    return " ".join(str(text).split())


def unquoted(name, value):
    """Names that the standard library does not read as such may have got their quotes."""
    return squeezed(value).replace('"', "") if name.lower().endswith("-to") else squeezed(value)


def body(part):
    """The body of a part without what is the way's: line ends, and those at the end."""
    octets = part.get_payload(decode=True) or b""
    if part.get_content_charset() != "utf-16":
        octets = re.sub(rb"\r\n|\r|\n", b"\n", octets).rstrip(b"\n")
    return octets


def meaning(octets):
    """What a reader is shown: the headers, decoded, and the parts with their names."""
    message = email.message_from_bytes(octets, policy=email.policy.default)
    found = []
    for part in message.walk():
        headers = {
            (name.lower(), unquoted(name, value))
            for name, value in part.items()
            if not name.lower().startswith("content-") and name.lower() != "bcc"
        }
        file = (part.get_filename(), part.get_content_disposition(), part.get("Content-ID"))
        leaf = None if part.is_multipart() else body(part)
        found.append((headers, part.get_content_type(), part.get_content_charset(), file, leaf))
    return found


def all_text(octets):
    message = email.message_from_bytes(octets, policy=email.policy.default)
    found = []
    for part in message.walk():
        found += [squeezed(value) for value in part.values()]
        found.append(part.get_filename() or "")
        if not part.is_multipart():
            charset = part.get_content_charset() or "utf-8"
            charset = charset if is_charset(charset) else "latin-1"
            found.append(body(part).decode(charset, "replace").replace("\r\n", "\n"))
    return "\n".join(found)


def test_there_are_files_of_every_kind():
    """Kind: a table that names what is not there checks nothing."""
    assert len(FILES) >= 100
    assert set(REFUSED) | set(SHOWN) <= set(FILES)
    assert all(path.stat().st_size < 10_000 for path in FILES.values())


@pytest.mark.parametrize("name", FILES)
def test_a_file_means_the_same_at_the_server_or_is_refused(name, server, mailer):
    """Kind: what other people's programs write: it arrives, or an error says where and why."""
    octets = FILES[name].read_bytes()
    for policy in POLICIES:
        message = email.message_from_bytes(octets, policy=policy)
        if name in REFUSED:
            field, words = REFUSED[name]
            with pytest.raises(TxmailError) as caught:
                mailer.send(message)
            assert caught.value.field == field
            assert words in str(caught.value)
            assert len(str(caught.value)) < 400
            continue
        mailer.send(message)
        transaction.commit()
        content = server.messages[-1].content
        sent, given = meaning(content), meaning(octets)
        added = {(n, v) for n, v in sent[0][0] if n in ("date", "message-id", "from")} - given[0][0]
        assert {n for n, _ in added} <= {"date", "message-id", "from"} - {n for n, _ in given[0][0]}
        sent[0][0].difference_update(added)
        assert sent == given
        assert SHOWN.get(name, "") in all_text(content)
        assert b"Bcc" not in content


@pytest.mark.parametrize("name", ["signed-smime", "signed-pgp-8bit"])
def test_c1_a_signed_file_arrives_octet_by_octet(name, server, mailer):
    """Kind: what was signed by somebody else's program and read from a file."""
    octets = FILES[name].read_bytes()
    for policy in POLICIES:
        mailer.send(email.message_from_bytes(octets, policy=policy))
        transaction.commit()
        start = octets.index(b"--signed\r\n")
        assert server.messages[-1].content.endswith(octets[start:])


@pytest.mark.representative(every=5)
@pytest.mark.parametrize("name", FILES)
def test_a_file_can_be_forwarded_or_is_refused(name, server, mailer):
    """Kind: the same within another message, whose envelope is its own."""
    inner = email.message_from_bytes(FILES[name].read_bytes(), policy=email.policy.default)
    outer = EmailMessage()
    outer["From"], outer["To"], outer["Subject"] = "me@example.com", "bob@example.net", "fwd"
    outer.set_content("see below")
    outer.add_attachment(inner)
    try:
        mailer.send(outer)
    except TxmailError as error:
        assert name in REFUSED
        assert error.field  # noqa: PT017
        transaction.abort()
        return
    transaction.commit()
    content = server.messages[-1].content
    # The message around it, its text, and the part that holds the message are ours.
    assert meaning(content)[3:] == meaning(FILES[name].read_bytes())
