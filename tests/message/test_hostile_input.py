"""Hostile input: every payload, in every field, in every form of a message.

Either it is refused with a typed error, or what comes out has exactly the headers, parts and bodies
of a harmless twin, seen by a line splitter that knows nothing and by the standard library's parser.
"""

from __future__ import annotations

import copy
import email
import email.header
import email.policy
import email.utils
import re
from email.header import Header
from email.message import EmailMessage
from email.message import Message as OldMessage
from email.mime.application import MIMEApplication
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText

import pytest
from payloads import (
    BAD_ADDRESSES,
    CONTROLS,
    EXTENDED,
    FORBIDDEN,
    HARMLESS,
    HIDDEN,
    HIDDEN_PARAMETERS,
    INJECTIONS,
)
from sweeping import all_of

from txmail.address import shown_name
from txmail.common.shown import ECHO_LIMIT
from txmail.envelope import Envelope
from txmail.exceptions import AddressError, BadHeaders, TxmailError
from txmail.message import Attachment, Message, to_envelope

DANGEROUS = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
EVERYTHING = {**FORBIDDEN, **HIDDEN_PARAMETERS, **EXTENDED, **HARMLESS}


#: A TAB is white space in a header that was folded by somebody else.
NOT_EVEN_FOLDING = {k: v for k, v in CONTROLS.items() if k != "TAB"}

# What comes out, seen twice.


def split_headers(content: bytes) -> list[str]:
    """Names of the headers for the most lenient of receivers: any line end is one."""
    names = []
    for line in re.split(rb"\r\n|\r|\n", content):
        if not line:
            return names
        if line[:1] not in (b" ", b"\t"):
            names.append(line.partition(b":")[0].decode("latin-1"))
    return names


def decoded(value: str) -> str:
    """A header's value for a receiver that joins encoded words before it decodes them."""
    return str(email.header.make_header(email.header.decode_header(value)))


def shape(content: bytes) -> list[tuple[list[str], str, object]]:
    """Headers, type and body of each part."""
    parsed = email.message_from_bytes(content, policy=email.policy.compat32)
    found = []
    for part in parsed.walk():
        assert not part.defects
        body = None if part.is_multipart() else part.get_payload(decode=True)
        found.append((part.keys(), part.get_content_type(), body))
    return found


def assert_like_twin(envelope: Envelope, twin: Envelope) -> None:
    names = split_headers(envelope.content)
    assert names == split_headers(twin.content)
    assert names == email.message_from_bytes(envelope.content).keys()
    assert shape(envelope.content) == shape(twin.content)
    for policy in (email.policy.default, email.policy.compat32):
        for part in email.message_from_bytes(envelope.content, policy=policy).walk():
            for value in part.values():
                unfolded = re.sub(r"\r?\n(?=[ \t])", "", str(value))
                assert not DANGEROUS.search(unfolded)
                if policy is email.policy.compat32:
                    assert not DANGEROUS.search(decoded(unfolded))
            name = part.get_filename() or ""
            assert not DANGEROUS.search(name)
    assert b"evil" not in b" ".join((envelope.reverse_path, *envelope.forward_paths))


# Messages of our own.


def ours(**options) -> Message:
    attachment = {"filename": "a.bin", "content_type": "application/pdf", "data": b"data"}
    for name in list(options):
        if name.startswith("attachment_"):
            attachment[name.removeprefix("attachment_")] = options.pop(name)
    settings = {
        "subject": "hello",
        "recipients": ["a@b.c"],
        "cc": ["c@d.e"],
        "bcc": ["f@g.h"],
        "sender": "Me <me@b.c>",
        "reply_to": "r@b.c",
        "body": "text",
        "html": "<p>text</p>",
        "extra_headers": {"X-Tag": "tag"},
        "message_id": "<1@b.c>",
        **options,
    }
    return Message(**settings, attachments=[Attachment(**attachment)])


TWIN = ours().to_envelope()

#: field of the error -> how a value gets into the message
TEXT_FIELDS = {
    "subject": lambda value: ours(subject=value),
    "sender": lambda value: ours(sender=(value, "me@b.c")),
    "recipients": lambda value: ours(recipients=[(value, "a@b.c")]),
    "cc": lambda value: ours(cc=[(value, "c@d.e")]),
    "bcc": lambda value: ours(bcc=[(value, "f@g.h")]),
    "reply_to": lambda value: ours(reply_to=[(value, "r@b.c")]),
    "X-Tag": lambda value: ours(extra_headers={"X-Tag": value}),
}
ADDRESSES = {"sender": "me@b.c", "recipients": "a@b.c", "cc": "c@d.e", "reply_to": "r@b.c"}
SYNTAX_FIELDS = {
    "message_id": lambda value: ours(message_id=value),
    "filename": lambda value: ours(attachment_filename=value),
    "content_type": lambda value: ours(attachment_content_type=value),
    "content_type parameter": lambda value: ours(
        attachment_content_type=f'application/pdf; x="{value}"'
    ),
    "disposition": lambda value: ours(attachment_disposition=value),
    "disposition parameter": lambda value: ours(
        attachment_filename=None, attachment_disposition=f'attachment; filename="{value}"'
    ),
    "content_id": lambda value: ours(attachment_content_id=value),
    "transfer_encoding": lambda value: ours(attachment_transfer_encoding=value),
}
ADDRESS_FIELDS = {
    "sender": lambda value: ours(sender=value),
    "recipients": lambda value: ours(recipients=[value]),
    "cc": lambda value: ours(cc=[value]),
    "bcc": lambda value: ours(bcc=[value]),
    "reply_to": lambda value: ours(reply_to=value),
    "envelope_sender": lambda value: ours(envelope_sender=value),
}


@pytest.mark.parametrize("field", TEXT_FIELDS)
@all_of(FORBIDDEN)
def test_a_text_that_could_become_a_line_is_refused_by_name(field, payload):
    message = TEXT_FIELDS[field](payload)
    if payload == CONTROLS["TAB"] and field in ("subject", "X-Tag"):
        # White space, in text that was taken from a received mail; written as a blank.
        assert_like_twin(message.to_envelope(), TEXT_FIELDS[field]("x y").to_envelope())
        assert b": x y\r\n" in message.to_envelope().content
        return
    assert message.is_bad_headers()
    for use in (message.validate, message.to_message, message.to_envelope):
        with pytest.raises(BadHeaders) as caught:
            use()
        assert caught.value.field == field
        assert len(str(caught.value)) < 100 + 10 * ECHO_LIMIT


@pytest.mark.parametrize("field", TEXT_FIELDS)
@all_of(HARMLESS, HIDDEN_PARAMETERS)
def test_a_text_that_looks_like_syntax_arrives_as_it_is(field, payload):
    message = TEXT_FIELDS[field](payload)
    assert not message.is_bad_headers()
    message.validate()
    envelope = message.to_envelope()
    assert_like_twin(envelope, TWIN)
    parsed = email.message_from_bytes(envelope.content, policy=email.policy.default)
    old = email.message_from_bytes(envelope.content)
    header = {"sender": "From", "recipients": "To", "reply_to": "Reply-To"}.get(field, field)
    if field == "bcc":
        assert "evil" not in str(old)
    elif field in ("subject", "X-Tag"):
        assert str(parsed[header]) == payload
        assert decoded(re.sub(r"\r\n(?=[ \t])", "", old[header])) == payload
    else:
        (mailbox,) = parsed[header].addresses
        assert mailbox.addr_spec == ADDRESSES[field]
        # The newer parser has blanks between adjacent words of a name (RFC 2047 section 6.2).
        name, address = email.utils.parseaddr(re.sub(r"\r\n(?=[ \t])", "", old[header]))
        assert decoded(name) == shown_name(payload)
        assert address == mailbox.addr_spec


@pytest.mark.parametrize("field", SYNTAX_FIELDS)
@all_of(EVERYTHING)
def test_what_is_syntax_is_refused_or_changes_nothing_else(field, payload):
    message = SYNTAX_FIELDS[field](payload)
    try:
        envelope = message.to_envelope()
    except TxmailError as error:
        expected = (field.split()[0], "content_type", "filename", "data")
        assert error.field in expected  # noqa: PT017
        with pytest.raises(TxmailError):
            message.to_message()
        return
    twin = TWIN
    if field == "content_type":
        pytest.fail("not one payload is a media type")
    if field == "content_id":
        twin = ours(attachment_content_id="logo").to_envelope()
    assert payload not in FORBIDDEN.values()
    assert payload not in HIDDEN_PARAMETERS.values() or field == "content_id"
    assert_like_twin(envelope, twin)


@pytest.mark.parametrize("field", ["filename", "disposition parameter"])
@all_of(FORBIDDEN, HIDDEN_PARAMETERS)
def test_a_file_name_that_could_become_a_line_is_refused(field, payload):
    with pytest.raises(BadHeaders):
        SYNTAX_FIELDS[field](payload).to_envelope()


@all_of({k: v for k, v in HARMLESS.items() if not {"/", "\\"}.intersection(v)})
def test_a_file_name_arrives_as_it_is(payload):
    envelope = ours(attachment_filename=payload).to_envelope()
    assert_like_twin(envelope, TWIN)
    for policy in (email.policy.default, email.policy.compat32):
        parsed = email.message_from_bytes(envelope.content, policy=policy)
        (name,) = [part.get_filename() for part in parsed.walk() if part.get_filename()]
        assert name == payload


@pytest.mark.parametrize("field", ADDRESS_FIELDS)
@all_of(BAD_ADDRESSES)
def test_what_is_no_address_is_refused_by_name(field, payload):
    message = ADDRESS_FIELDS[field](payload)
    if payload == "<>" and field == "envelope_sender":
        assert message.to_envelope().sender == ""  # the null sender, asked for
        return
    for use in (message.validate, message.to_message, message.to_envelope):
        with pytest.raises((AddressError, BadHeaders, TxmailError)) as caught:
            use()
        assert caught.value.field == field


@pytest.mark.parametrize("field", ADDRESS_FIELDS)
@all_of(FORBIDDEN)
def test_a_hostile_text_is_no_address(field, payload):
    for value in (payload, f"{payload}@b.c", f"a@{payload}", f"Name <a@b.c{payload}>"):
        with pytest.raises((AddressError, BadHeaders)) as caught:
            ADDRESS_FIELDS[field](value).to_envelope()
        assert caught.value.field == field


@all_of(EVERYTHING)
def test_a_hostile_name_of_a_header_is_refused(payload):
    for name in (payload, f"X-{payload}", f"X-Tag: {payload}"):
        for headers in ({name: "tag"}, [(name, "tag")]):
            message = ours(extra_headers=headers)
            try:
                envelope = message.to_envelope()
            except TxmailError as error:
                assert error.field == "extra_headers"  # noqa: PT017
                continue
            assert re.fullmatch(r"[!-9;-~]+", name)
            assert split_headers(envelope.content).count(name) == 1


@pytest.mark.parametrize(
    "name",
    [
        *("From", "to", "CC", "Bcc", "Subject", "Reply-To", "Date", "Message-ID", "Message-Id"),
        *("MIME-Version", "Content-Type", "Content-Transfer-Encoding", "content-id"),
        *("Return-Path", "Received", "Resent-To", "Resent-Bcc", "Delivered-To"),
        *("", ":", "X:", " X", "X ", "X Y", "Ü", "x" * 77, None, 7, b"X"),
    ],
)
def test_a_header_that_is_not_the_callers_to_set_is_refused(name):
    message = ours(extra_headers=[(name, "x")])
    assert message.is_bad_headers()
    with pytest.raises(BadHeaders) as caught:
        message.to_envelope()
    assert caught.value.field == "extra_headers"


@all_of(EVERYTHING)
def test_a_body_is_a_body(payload):
    if re.search("[\ud800-\udfff]", payload):
        with pytest.raises(TxmailError) as caught:
            ours(body=payload).to_envelope()
        assert caught.value.field == "body"
        return
    for field in ("body", "html"):
        envelope = ours(**{field: payload}).to_envelope()
        assert split_headers(envelope.content) == split_headers(TWIN.content)
        got = shape(envelope.content)
        assert [part[1] for part in got] == [part[1] for part in shape(TWIN.content)]
        text = got[2 if field == "body" else 3][2].decode()
        assert text.rstrip("\r\n") == re.sub("\r\n|\r|\n", "\r\n", payload).rstrip("\r\n")


def boundaries(content: bytes) -> set[str]:
    """The boundaries of a message, in the order of its parts."""
    return {part.get_boundary() for part in email.message_from_bytes(content).walk()} - {None}


def test_a_boundary_cannot_be_foretold():
    first, second = (ours(message_id=None).to_envelope().content for _ in "12")
    assert not boundaries(first) & boundaries(second)


def test_a_boundary_that_is_foretold_is_not_used():
    """Whoever knows the Message-ID beforehand may know the boundaries: then there are others."""
    body = "text"
    seen = set()
    for _ in range(5):
        content = ours(body=body).to_envelope().content
        found = boundaries(content)
        assert len(found) == 2
        assert not found & seen
        assert shape(content)[2][2].decode().rstrip() == re.sub("\r\n|\n", "\r\n", body)
        assert [part[1] for part in shape(content)] == [part[1] for part in shape(TWIN.content)]
        seen |= found
        forged = "".join(f"\n--{b}\nX-Evil: 1\n\nforged\n--{b}--\n" for b in sorted(found))
        body += forged.rstrip("\n")


def test_a_message_attached_to_itself_has_boundaries_of_its_own():
    inner = ours().to_envelope().content
    content = ours(
        attachment_content_type="message/rfc822", attachment_data=inner, attachment_filename="a.eml"
    ).to_envelope()
    assert len(boundaries(content.content)) == 4
    found = list(email.message_from_bytes(content.content).walk())
    assert sum(part.get_content_type() == "application/pdf" for part in found) == 1


LIST_FIELDS = [
    *("list_id", "list_help", "list_unsubscribe", "list_subscribe", "list_post", "list_owner"),
    *("list_archive", "auto_submitted"),
]


@pytest.mark.parametrize("field", LIST_FIELDS)
@all_of(EVERYTHING)
def test_a_header_of_lists_is_refused_or_the_one_it_is_meant_to_be(field, payload):
    values = [payload, [payload], ["https://x.y", payload], f"https://x.y/{payload}"]
    values += [f"mailto:a@b.c?subject={payload}", f"<{payload}>", f"x <{payload}>"]
    values += [(payload, "l.x.y"), ("x", payload), f"{payload} <l.x.y>", f"l.{payload}"]
    for value in values:
        message = ours(**{field: value})
        try:
            envelope = message.to_envelope()
        except TxmailError as error:
            assert error.field == field  # noqa: PT017
            with pytest.raises(TxmailError):
                message.validate()
            continue
        assert not {payload} & set(FORBIDDEN.values())
        assert not message.is_bad_headers()
        names = split_headers(envelope.content)
        (name,) = set(names) - set(split_headers(TWIN.content))
        assert name.lower().replace("-", "_") == field
        names.remove(name)
        assert names == split_headers(TWIN.content)
        assert [part[1:] for part in shape(envelope.content)] == [
            part[1:] for part in shape(TWIN.content)
        ]
        header = email.message_from_bytes(envelope.content)[name]
        assert not DANGEROUS.search(decoded(re.sub(r"\r\n(?=[ \t])", "", header)))


@all_of(EVERYTHING)
def test_a_calendar_is_a_body(payload):
    for text in (payload, f"BEGIN:VCALENDAR\nMETHOD:{payload}\nEND:VCALENDAR\n"):
        try:
            envelope = ours(calendar=text).to_envelope()
        except TxmailError as error:
            assert error.field == "calendar"  # noqa: PT017
            assert re.search("[\ud800-\udfff]", payload)
            continue
        assert split_headers(envelope.content) == split_headers(TWIN.content)
        got = shape(envelope.content)
        assert [part[1] for part in got] == [
            *(part[1] for part in shape(TWIN.content)[:4]),
            *("text/calendar", "application/pdf"),
        ]
        part = list(email.message_from_bytes(envelope.content).walk())[4]
        assert part.keys() == ["Content-Type", "Content-Transfer-Encoding"]
        assert re.fullmatch("[A-Z0-9-]*", part.get_param("method") or "")
        expected = re.sub("\r\n|\r|\n", "\r\n", text).rstrip("\r\n")
        assert got[4][2].decode().rstrip("\r\n") == expected


@all_of(EVERYTHING)
def test_what_a_converter_makes_of_html_is_a_body(payload):
    message = ours(body=None)
    try:
        envelope = message.to_envelope(html_to_text=lambda html: payload)
    except TxmailError as error:
        assert error.field == "html"  # noqa: PT017
        assert re.search("[\ud800-\udfff]", payload)
        return
    assert split_headers(envelope.content) == split_headers(TWIN.content)
    assert [part[1] for part in shape(envelope.content)] == [
        part[1] for part in shape(TWIN.content)
    ]


# Messages of the standard library, and ready envelopes.


def new_style(policy):
    def make(field: str, value: str):
        message = EmailMessage(policy=policy)
        settings = {
            "Subject": "hello",
            "From": "Me <me@b.c>",
            "To": "a@b.c",
            "Cc": "c@d.e",
            "Bcc": "f@g.h",
            "Reply-To": "r@b.c",
            "X-Tag": "tag",
            "Message-ID": "<1@b.c>",
            "Date": "Sat, 21 Nov 2026 12:00:00 +0000",
        }
        name = "X-Name" if field != "name" else value
        for header, text in {**settings, name: "x", field: value}.items():
            if header not in ("name", "filename", "Content-Disposition", "Content-Type"):
                message[header] = text
        message.set_content("text\n")
        filename = value if field == "filename" else "a.bin"
        message.add_attachment(b"data", "application", "pdf", filename=filename)
        if field.startswith("Content-"):
            (part,) = message.iter_attachments()
            del part[field]
            part[field] = value
        return message

    return make


def old_style(wrap=str):
    def make(field: str, value: str):
        message = MIMEMultipart()
        settings = {
            "Subject": "hello",
            "From": "Me <me@b.c>",
            "To": "a@b.c",
            "Cc": "c@d.e",
            "Bcc": "f@g.h",
            "Reply-To": "r@b.c",
            "X-Tag": "tag",
            "Message-ID": "<1@b.c>",
            "Date": "Sat, 21 Nov 2026 12:00:00 +0000",
        }
        name = "X-Name" if field != "name" else value
        for header, text in {**settings, name: "x", field: value}.items():
            if header not in ("name", "filename", "Content-Disposition", "Content-Type"):
                message[header] = wrap(text)
        message.attach(MIMEText("text\n"))
        part = MIMEApplication(b"data", "pdf")
        filename = value if field == "filename" else "a.bin"
        part.add_header("Content-Disposition", "attachment", filename=filename)
        if field.startswith("Content-"):
            del part[field]
            part[field] = wrap(value)
        message.attach(part)
        return message

    return make


def bare_text(field: str, value: str):
    message = MIMEText("text\n")
    settings = {"Subject": "hello", "From": "Me <me@b.c>", "To": "a@b.c", "X-Tag": "tag"}
    for header, text in {**settings, field: value}.items():
        if header not in ("name", "filename", "Content-Disposition", "Content-Type"):
            message[header] = text
    return message


def ready(field: str, value: str):
    """An envelope as somebody writes it who knows nothing of quoting."""
    lines = {
        "From": "Me <me@b.c>",
        "To": "a@b.c",
        "Subject": "hello",
        "X-Tag": "tag",
        "Date": "Sat, 21 Nov 2026 12:00:00 +0000",
        "Message-ID": "<1@b.c>",
        field: value,
    }
    text = "".join(f"{name}: {line}\r\n" for name, line in lines.items())
    return Envelope("me@b.c", ("a@b.c",), text.encode("utf-8", "surrogatepass") + b"\r\ntext\r\n")


FORMS = {
    "EmailMessage": new_style(email.policy.default),
    "EmailMessage for SMTP": new_style(email.policy.SMTP),
    "EmailMessage for SMTPUTF8": new_style(email.policy.SMTPUTF8),
    "compat32": old_style(),
    "compat32 with Header": old_style(lambda text: Header(text, "utf-8")),
    "MIMEText": bare_text,
}
FIELDS = [
    *("Subject", "From", "To", "Cc", "Bcc", "Reply-To", "X-Tag", "Message-ID", "name"),
    *("filename", "Content-Disposition", "Content-Type", "Content-ID"),
]
PLAIN = {"Subject": "hello", "filename": "a.bin", "Content-ID": "<1@b.c>"}


@pytest.mark.representative(every=20)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("field", FIELDS)
def test_a_message_of_the_standard_library_is_refused_or_like_its_twin(form, field):
    refused = 0
    for payload in EVERYTHING.values():
        if payload.lower() in ("bcc", "from", "to"):
            continue
        try:
            message = FORMS[form](field, payload)
        except Exception:
            refused += 1  # by the standard library, when it was set
            continue
        try:
            envelope = to_envelope(message, sender="me@b.c", recipients=["a@b.c"])
        except TxmailError:
            refused += 1
            continue
        names = split_headers(envelope.content)
        assert "Bcc" not in names
        expected = [name for name in message if name != "Bcc"]
        for added in ("Date", "Message-ID"):
            if added not in expected:
                expected.append(added)
        assert names == expected == email.message_from_bytes(envelope.content).keys()
        parts = email.message_from_bytes(envelope.content, policy=email.policy.compat32)
        assert len(list(parts.walk())) == len(list(message.walk()))
        for part, original in zip(parts.walk(), message.walk(), strict=True):
            if part is not parts:
                assert part.keys() == original.keys()
            if not part.is_multipart():
                assert part.get_payload(decode=True).rstrip() in (b"text", b"data")
            for value in part.values():
                unfolded = re.sub(r"\r?\n(?=[ \t])", "", value)
                assert not DANGEROUS.search(unfolded)
                assert not DANGEROUS.search(decoded(unfolded))
            assert not DANGEROUS.search(part.get_filename() or "")
    if form != "MIMEText" or field in ("Subject", "From", "To", "X-Tag"):
        assert refused > len(FORBIDDEN) // 2


@pytest.mark.representative(every=12)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("field", ["From", "To", "Cc", "Bcc"])
def test_an_address_in_a_header_of_the_standard_library_is_one_or_refused(form, field):
    for payload in BAD_ADDRESSES.values():
        try:
            message = FORMS[form](field, payload)
        except Exception:
            continue
        try:
            envelope = to_envelope(message)
        except TxmailError:
            continue
        paths = b" ".join((envelope.reverse_path, *envelope.forward_paths))
        # Where an address list is legal it may have several members, all of which can be read in
        # it; what nobody may do is smuggle one in, or parts of a command.
        for address in re.findall(rb"<([^<>]*)>", paths):
            assert (
                address.decode() in {"me@b.c", "a@b.c", "c@d.e", "f@g.h"}
                or (address == b"evil@x.y" and "evil@x.y" in payload)
                or address.decode() in payload.replace(" ", "")
            )
        assert b"SIZE" not in paths
        assert b"\r" not in paths


@pytest.mark.parametrize("field", ["Subject", "From", "X-Tag", "Message-ID"])
@all_of(FORBIDDEN)
def test_a_ready_envelope_is_refused_or_has_the_headers_that_were_written(field, payload):
    written = ready(field, payload)
    try:
        envelope = to_envelope(written)
    except TxmailError:
        return
    assert envelope is written
    # A proper header after a proper line end is what an envelope's maker may write.
    assert "Bcc" not in split_headers(envelope.content)
    parsed = email.message_from_bytes(envelope.content)
    assert parsed.keys() == split_headers(envelope.content)
    for value in parsed.values():
        assert not DANGEROUS.search(decoded(re.sub(r"\r?\n(?=[ \t])", "", value)))


@all_of(HIDDEN, NOT_EVEN_FOLDING, {k: v for k, v in INJECTIONS.items() if "Bcc" in v})
def test_a_ready_envelope_with_a_forbidden_header_is_refused(payload):
    with pytest.raises(TxmailError):
        to_envelope(ready("Subject", payload))


@pytest.mark.parametrize(
    "boundary", ["b", "b b", "=_b", "x" * 70, "b\r\nX-Evil: 1", "b\x85", "ü", "b ", "x" * 71]
)
def test_a_boundary_given_by_the_caller_is_sound_and_in_no_body(boundary):
    for text in ("text", f"text\n--{boundary}\nX-Evil: 1\n\nforged\n--{boundary}--\n"):
        message = MIMEMultipart(boundary=boundary)
        message["From"], message["To"] = "me@b.c", "a@b.c"
        message.attach(MIMEText(text))
        message.attach(MIMEText("second"))
        try:
            envelope = to_envelope(message)
        except TxmailError:
            assert text != "text" or boundary not in ("b", "b b", "=_b", "x" * 70)
            continue
        parts = email.message_from_bytes(envelope.content).get_payload()
        assert [part.get_payload().strip() for part in parts] == ["text", "second"]


@pytest.mark.parametrize("place", ["preamble", "epilogue"])
def test_a_part_cannot_be_forged_around_a_multipart(place):
    message = MIMEMultipart(boundary="b")
    message["From"], message["To"] = "me@b.c", "a@b.c"
    message.attach(MIMEText("text"))
    setattr(message, place, "harmless")
    to_envelope(message)
    setattr(message, place, "x\n--b\nContent-Type: text/html\n\nforged\n")
    with pytest.raises(TxmailError):
        to_envelope(message)


@all_of({k: v for k, v in FORBIDDEN.items() if k != "TAB"}, EXTENDED)
def test_headers_of_nested_messages_are_checked_too(payload):
    inner = OldMessage()
    inner.set_raw("Subject", payload)
    inner.set_payload("text")
    outer = MIMEMultipart()
    outer["From"], outer["To"] = "me@b.c", "a@b.c"
    wrapper = OldMessage()
    wrapper["Content-Type"] = "message/rfc822"
    wrapper.set_payload([inner])
    outer.attach(wrapper)
    before = copy.deepcopy(outer)
    with pytest.raises(TxmailError) as caught:
        to_envelope(outer)
    assert caught.value.field == "Subject"
    assert [p.raw_items for p in outer.walk()] != []
    assert [list(p.raw_items()) for p in outer.walk()] == [
        list(p.raw_items()) for p in before.walk()
    ]
