"""Octets that somebody has signed: C1 (S/MIME and PGP/MIME) and C2 (DKIM)."""

from __future__ import annotations

import base64
import email
import email.policy
import subprocess
from email.message import EmailMessage
from email.mime.application import MIMEApplication
from email.mime.message import MIMEMessage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.utils import formataddr

import dkim
import pytest
import transaction
from signing import Octets, Pgp, SMime, program, raw_parts, signed_entity

from txmail import Attachment, Envelope, Mailer, Message, transport_from_url
from txmail.cli import main
from txmail.exceptions import BadHeaders, InvalidMessage
from txmail.message import to_envelope
from txmail.testing import ScriptedServer

LONG_NAME = "Prüfung der Unterlagen für das dritte Quartal, zweiter Entwurf (endgültig).pdf"
TEXT = "Grüße,\n\nFrom here on  \n.\n-- \nJörg\n\n\n"
CRLF = email.policy.SMTP


@pytest.fixture(scope="module")
def smime(tmp_path_factory):
    return SMime(tmp_path_factory.mktemp("smime"))


@pytest.fixture(scope="module")
def pgp():
    import tempfile
    from pathlib import Path

    # Not below pytest's own folder: the path of a socket in it would be too long.
    with tempfile.TemporaryDirectory(prefix="gpg-") as folder:
        found = Pgp(Path(folder))
        yield found
        found.close()


@pytest.fixture(scope="module")
def arrives():
    """Sends a message in a transaction; the content that the server has got."""
    with ScriptedServer() as server:
        mailer = Mailer(transport_from_url(server.url), default_sender="me@example.com")

        def send(message, **options):
            mailer.send(message, **options)
            transaction.commit()
            return server.messages[-1].content

        yield send
        mailer.close()


# What is signed


def plain(new):
    return new("Hello\n\nthere \t\n")


def eightbit(new):
    part = new(TEXT)
    if isinstance(part, EmailMessage):
        part.set_content(TEXT, cte="8bit")
    else:
        part.replace_header("Content-Transfer-Encoding", "8bit")
        part.set_payload(TEXT.encode().decode("ascii", "surrogateescape"))
    return part


def attachment(new):
    part = new(TEXT)
    if isinstance(part, EmailMessage):
        part.add_attachment(b"\0\xff" * 200, "application", "pdf", filename=LONG_NAME)
        return part
    mixed = MIMEMultipart()
    mixed.attach(part)
    file = MIMEApplication(b"\0\xff" * 200, "pdf")
    file.add_header("Content-Disposition", "attachment", filename=("utf-8", "", LONG_NAME))
    mixed.attach(file)
    return mixed


def alternatives(new):
    if new is new_part:
        part = new(TEXT)
        part.add_alternative(f"<p>{TEXT}</p>", "html")
        return part
    part = MIMEMultipart("alternative")
    part.attach(new(TEXT))
    part.attach(MIMEText(f"<p>{TEXT}</p>", "html", "iso-8859-1"))
    return part


def headers(new):
    """A part with protected headers, of which the standard library could make other lines."""
    part = new("short")
    part["Subject"] = "Grüße aus Łódź und noch viel mehr, " * 5
    part["X-Long"] = "word " * 40 + "=?utf-8?q?as_it_is?="
    part["X-Token"] = "x" * 300
    return part


def forwarded(new):
    inner = new(TEXT)
    inner["From"], inner["To"] = "Jörg Inc. <j@example.com>", "a@example.com"
    inner["Subject"] = "Grüße " * 30
    if isinstance(inner, EmailMessage):
        outer = new("see below")
        outer.add_attachment(inner)
        return outer
    outer = MIMEMultipart()
    outer.attach(MIMEMessage(inner))
    return outer


def report(new):
    part = new("no line end at the end")
    part.set_payload("no line end at the end")
    return part


INNER = {f.__name__: f for f in (*(plain, eightbit, attachment, alternatives), headers, forwarded)}
INNER["no line end"] = report


def new_part(text):
    part = EmailMessage(policy=CRLF)
    part.set_content(text)
    return part


def old_part(text):
    return MIMEText(text, "plain", "utf-8")


def build(how, inner, *, of_old=False):
    """A whole message with a part of `how`'s signature over `inner`."""
    outer = MIMEMultipart("signed") if of_old else EmailMessage(policy=CRLF)
    if not of_old:
        outer["Content-Type"] = "multipart/signed"
    for name, value in (("protocol", how.protocol), ("micalg", how.micalg)):
        outer.set_param(name, value)
    outer["From"], outer["To"] = "Ann <ann@example.com>", "bob@example.com"
    outer["Subject"] = "Grüße, signed"
    signature = MIMEApplication(b"?", how.protocol.partition("/")[2], name="signature.bin")
    outer.set_payload([inner, signature])
    outer.preamble = "This is signed."
    # Signed is what the standard library writes within the message.
    content = outer.as_bytes(policy=outer.policy.clone(linesep="\r\n"))
    entity, _ = signed_entity(content)
    outer.set_payload([inner, MIMEApplication(how.sign(entity), signature.get_content_subtype())])
    return outer


# The ways in which it is handed in


def as_it_is(message):
    return message


def parsed(message):
    return email.message_from_bytes(message.as_bytes(), policy=message.policy)


def parsed_for_smtp(message):
    return email.message_from_bytes(octets_of(message), policy=CRLF)


def parsed_as_of_old(message):
    return email.message_from_bytes(message.as_bytes())


def forwarding(message):
    outer = EmailMessage()
    outer["From"], outer["To"] = "me@example.com", "bob@example.com"
    outer.set_content(TEXT)
    outer.add_attachment(message)
    return outer


def forwarding_as_of_old(message):
    outer = MIMEMultipart()
    outer["From"], outer["To"] = "me@example.com", "bob@example.com"
    outer.attach(MIMEText(TEXT, "plain", "utf-8"))
    outer.attach(MIMEMessage(message))
    return outer


def with_a_footer(message):
    """As mailing lists do it: the signed part is one of several."""
    outer = MIMEMultipart()
    outer["From"], outer["To"] = "me@example.com", "bob@example.com"
    part = type(message)(policy=message.policy) if isinstance(message, EmailMessage) else message
    if part is not message:
        part["Content-Type"] = message["Content-Type"]
        part.set_payload(message.get_payload())
    else:
        for name in ("From", "To", "Subject", "MIME-Version"):
            del part[name]
    outer.attach(part)
    outer.attach(MIMEText("a mailing list\n"))
    outer.policy = message.policy
    return outer


def octets_of(message):
    content = message.as_bytes(policy=message.policy.clone(linesep="\r\n"))
    return content if content.endswith(b"\r\n") else content + b"\r\n"


def attached(message):
    file = Attachment("signed.eml", "message/rfc822", octets_of(message))
    return Message("forwarded", ["bob@example.com"], "see", attachments=[file])


def enveloped(message):
    head = b"Date: Sat, 21 Nov 2026 12:00:00 +0000\r\nMessage-ID: <1@example.com>\r\n"
    return Envelope("ann@example.com", ("bob@example.com",), head + octets_of(message))


FORMS = {
    form.__name__: form
    for form in (
        *(as_it_is, parsed, parsed_for_smtp, parsed_as_of_old, forwarding, forwarding_as_of_old),
        *(with_a_footer, attached, enveloped),
    )
}


def unpacked(content):
    """The message that is attached as octets, if one is; `content` otherwise."""
    for part in email.message_from_bytes(content).walk():
        if part.get_filename() == "signed.eml" and part.get_content_type() != "message/rfc822":
            return part.get_payload(decode=True)
    return content


def check(arrives, how, message):
    content = unpacked(arrives(message))
    assert how.verifies(*signed_entity(content)), content.decode("latin-1")


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("of_old", [False, True], ids=["new", "old"])
def test_c1_not_an_octet_of_a_signed_part_changes(arrives, form, of_old):
    """Kind: octets that were hashed before they were handed in, whatever carries them."""
    new = old_part if of_old else new_part
    for inner in INNER.values():
        check(arrives, Octets(), form(build(Octets(), inner(new), of_old=of_old)))


@pytest.mark.parametrize("form", [as_it_is, parsed, forwarding, attached, enveloped])
def test_c1_signatures_of_openssl_verify_at_the_receiver(arrives, smime, form):
    """Kind: the same, told by the program that receivers have."""
    check(arrives, smime, form(build(smime, attachment(new_part))))


@pytest.mark.parametrize("form", [as_it_is, parsed, forwarding, attached, enveloped])
def test_c1_signatures_of_gpg_verify_at_the_receiver(arrives, pgp, form):
    """Kind: the same, told by the program that receivers have."""
    check(arrives, pgp, form(build(pgp, eightbit(old_part), of_old=True)))


@pytest.mark.sweep
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("of_old", [False, True], ids=["new", "old"])
@pytest.mark.parametrize("program", ["smime", "pgp"])
def test_c1_all_forms_by_the_real_programs(arrives, request, program, inner, of_old):
    """Kind: the same, each kind of part in each form by each program."""
    how = request.getfixturevalue(program)
    new = old_part if of_old else new_part
    for form in FORMS.values():
        check(arrives, how, form(build(how, INNER[inner](new), of_old=of_old)))


@pytest.mark.parametrize("policy", [email.policy.default, CRLF, email.policy.compat32])
def test_c1_what_openssl_has_built_arrives_as_it_is(arrives, smime, policy):
    """Kind: a message that another program has made whole, and a parser has read."""
    entity = b"Content-Type: text/plain; charset=utf-8\r\n\r\nGr\xc3\xbc\xc3\x9fe \r\n"
    for options in ([], ["-nodetach"], ["-text"]):
        made = smime.message(entity, *options)
        message = email.message_from_bytes(made, policy=policy)
        message["From"], message["To"] = "ann@example.com", "bob@example.com"
        assert smime.verifies_message(arrives(message))


def test_c1_a_signed_part_that_is_signed_again_verifies_twice(arrives):
    """Kind: signed octets within signed octets (RFC 2634 section 1.1)."""
    inner = build(Octets(), attachment(new_part))
    for name in ("From", "To", "Subject", "MIME-Version"):
        del inner[name]
    for form in FORMS.values():
        check(arrives, Octets(), form(build(Octets(), inner)))


def test_c1_the_callers_message_is_not_touched(arrives):
    """Kind: what is signed is read, and never written to."""
    message = build(Octets(), attachment(new_part))
    before = message.as_bytes()
    arrives(message)
    assert message.as_bytes() == before


def bad_parts():
    folded = EmailMessage()
    folded.set_content("x")
    folded.set_raw("X-Evil", "a\r\nBcc: evil@example.com")
    hidden = EmailMessage()
    hidden.set_content("x")
    hidden.set_raw("Subject", "=?utf-8?q?x=0d=0aBcc:_evil=40x.y?=")
    long = MIMEText("x" * 999)
    nul = MIMEText("x\0y")
    odd = MIMEText("x")
    odd["X-Odd"] = "\udcff octets"
    return {"fold": folded, "hidden": hidden, "long": long, "NUL": nul, "8bit": odd}


@pytest.mark.parametrize("name", bad_parts())
def test_c1_what_cannot_go_out_as_it_was_signed_is_refused(name):
    """Kind: mending would break the signature, so that a refusal is all there is."""
    outer = MIMEMultipart("signed")
    outer["From"], outer["To"] = "ann@example.com", "bob@example.com"
    outer.set_payload([bad_parts()[name], MIMEText("signature")])
    with pytest.raises(InvalidMessage) as caught:
        to_envelope(outer)
    assert caught.value.field
    if name in ("long", "NUL"):
        assert "before it is signed" in str(caught.value)


# DKIM


@pytest.fixture(scope="module")
def dkim_key():
    openssl = program("openssl")
    key = subprocess.run([openssl, "genrsa", "1024"], capture_output=True, check=True).stdout
    public = subprocess.run(
        [openssl, "rsa", "-pubout"], input=key, capture_output=True, check=True
    ).stdout
    record = b"v=DKIM1; k=rsa; p=" + b"".join(public.split(b"\n")[1:-2])
    # What the older openssl command makes is PKCS #1, which is what dkimpy reads; so is PKCS #8.
    return key, record


def dkim_signed(message, key, *, canonical=(b"relaxed", b"simple"), **options):
    """`message` with a signature over what ``as_bytes()`` gives."""
    made = dkim.sign(
        message.as_bytes(), b"test", b"example.com", key[0], canonicalize=canonical, **options
    )
    value = made.decode().partition(":")[2].strip()
    if isinstance(message, EmailMessage):
        value = value.replace("\r\n", "")
    message["DKIM-Signature"] = value
    return message


def dkim_verifies(content, key):
    return dkim.verify(content, dnsfunc=lambda name, timeout=5: key[1])


def complete(message):
    message["From"] = formataddr(("Jörg Müller von der Firma Acme", "ann@example.com"))
    message["To"] = "bob@example.com, " * 6 + formataddr(("Zoë", "zoe@example.com"))
    if "Subject" not in message:
        message["Subject"] = "Grüße aus Łódź, und noch vieles mehr, das nicht auf eine Zeile passt"
    message["Date"] = "Sat, 21 Nov 2026 12:00:00 +0000"
    message["Message-ID"] = "<1@example.com>"
    message["References"] = f"<{'a' * 60}@example.com> <{'b' * 60}@example.com>"
    return message


@pytest.mark.representative(every=3)
@pytest.mark.parametrize("canonical", [(b"relaxed", b"relaxed"), (b"relaxed", b"simple")])
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("of_old", [False, True], ids=["new", "old"])
def test_c2_a_dkim_signature_over_as_bytes_verifies_at_the_receiver(
    arrives, dkim_key, inner, of_old, canonical
):
    """Kind: a whole message was hashed, headers included, and is handed in as an object."""
    message = complete(INNER[inner](old_part if of_old else new_part))
    content = arrives(dkim_signed(message, dkim_key, canonical=canonical))
    assert dkim_verifies(content, dkim_key), content.decode("latin-1")


@pytest.mark.parametrize("form", [parsed, parsed_for_smtp, parsed_as_of_old])
def test_c2_so_does_one_that_was_parsed(arrives, dkim_key, form):
    """Kind: the same, with headers that a parser has kept."""
    for before in (True, False):
        message = complete(attachment(new_part))
        if before:
            message = dkim_signed(form(message), dkim_key)
        else:
            message = form(dkim_signed(message, dkim_key))
        assert dkim_verifies(arrives(message), dkim_key)


@pytest.mark.parametrize("form", [forwarding, forwarding_as_of_old, attached])
def test_c2_so_does_one_that_is_forwarded(arrives, dkim_key, form):
    """Kind: the same, within another message."""
    message = dkim_signed(complete(attachment(new_part)), dkim_key)
    content = unpacked(arrives(form(message)))
    if form is not attached:
        content = raw_parts(content, "multipart/mixed")[1].partition(b"\r\n\r\n")[2] + b"\r\n"
    assert dkim_verifies(content, dkim_key), content.decode("latin-1")


def test_c2_bcc_is_taken_away_and_the_signature_holds(arrives, dkim_key):
    """Kind: what the signature does not cover may change."""
    message = complete(plain(new_part))
    dkim_signed(message, dkim_key)["Bcc"] = "secret@example.com"
    content = arrives(message)
    assert b"secret" not in content
    assert dkim_verifies(content, dkim_key)


@pytest.mark.parametrize("name", ["Bcc", "Date", "Message-ID", "From", "Resent-Bcc"])
def test_c2_what_would_break_the_signature_is_refused(dkim_key, name):
    """Kind: a header that is signed and cannot go out, or is signed as missing."""
    message = complete(plain(new_part))
    if name.endswith("Bcc"):
        message[name] = "secret@example.com"
    else:
        del message[name]
    covered = [b"to", b"subject", name.lower().encode()]
    message["DKIM-Signature"] = f"v=1; d=example.com; h={b' : '.join(covered).decode()}; b=x"
    with pytest.raises(InvalidMessage, match="Envelope") as caught:
        to_envelope(message, default_sender="me@example.com", recipients=["a@example.com"])
    assert caught.value.field == name


@pytest.mark.parametrize("name", bad_parts())
def test_c2_what_does_not_pass_the_gate_is_refused(name):
    """Kind: the octets that were hashed cannot be sent."""
    message = bad_parts()[name]
    complete(message)["DKIM-Signature"] = "v=1; h=from; b=x"
    with pytest.raises(InvalidMessage) as caught:
        to_envelope(message)
    if name in ("long", "NUL"):
        assert "Envelope" in str(caught.value)


@pytest.mark.parametrize("name", ["From", "To", "Reply-To"])
def test_c2_addresses_that_the_library_would_hide_are_refused(dkim_key, name):
    """Kind: octets that pass the gate, and in which nobody can find the address."""
    message = MIMEText("x")
    message["From"], message["To"] = "ann@example.com", "bob@example.com"
    del message[name]
    # The older classes encode all of such a header, the address too.
    message[name] = "Jörg <j@example.com>"
    with pytest.raises(BadHeaders, match=r"addresses.*Envelope"):
        to_envelope(dkim_signed(message, dkim_key))


def test_c2_a_word_about_envelope_where_the_library_would_write_something_else(monkeypatch):
    """Kind: the standard library has made two headers of one, as some of its versions do."""
    message = complete(plain(new_part))
    message["DKIM-Signature"] = "v=1; h=from; b=x"
    injected = b"Subject: x\r\nBcc: evil@example.com\r\n"
    monkeypatch.setattr(type(CRLF), "fold_binary", lambda *_: injected)
    with pytest.raises(BadHeaders, match=r"DKIM-Signature.*Envelope"):
        to_envelope(message)


# Files


def odd_file():
    """A signed message with octets that no parser keeps: a header without its blank."""
    head = b"Return-Path: <old@example.com>\nFrom: ann@example.com\nTo: bob@example.com\n"
    head += b"Date: Sat, 21 Nov 2026 12:00:00 +0000\nMessage-ID:<1@example.com>\n"
    head += b'Content-Type: multipart/signed; protocol="application/x-octets"; boundary=b\n'
    entity = b"Content-Type:text/plain\nX-Odd:\t x \n\nHello  \n\n"
    signature = base64.encodebytes(entity.replace(b"\n", b"\r\n"))
    return head + b"\n--b\n%b\n--b\nX-S: x\n\n%b\n--b--\n" % (entity, signature)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("more", [b"", b"X-More:x\n", b"X-Envelope-To: c@example.com\n"])
def test_c1_a_signed_file_is_sent_as_it_is_read(tmp_path, end, more):
    """Kind: a message of which the octets are there, and not only what a parser kept."""
    file = tmp_path / "signed.eml"
    file.write_bytes((more + odd_file()).replace(b"\n", end))
    with ScriptedServer() as server:
        assert main(["send", "--quiet", "--url", server.url, str(file)]) == 0
        content = server.messages[0].content
    entity, signature = signed_entity(content)
    assert entity == signature
    assert b"Return-Path" not in content
    assert b"Envelope-To" not in content
    assert (b"X-More:x\r\n" in content) == (more[:6] == b"X-More")


@pytest.mark.parametrize("change", [(b"Message-ID:<1@example.com>\n", b""), (b"To:", b"Bcc:")])
def test_c1_a_file_that_has_to_be_changed_is_written_anew(tmp_path, change):
    """Kind: the same, where a header has to be added or taken away."""
    file = tmp_path / "signed.eml"
    file.write_bytes(odd_file().replace(*change))
    with ScriptedServer() as server:
        assert main(["send", "--quiet", "--url", server.url, str(file)]) == 0
        content = server.messages[0].content
    assert b"Bcc" not in content
    assert content.lower().count(b"message-id:") == 1


def test_c2_a_dkim_signed_file_verifies(tmp_path, dkim_key):
    """Kind: a header that no policy would write so."""
    source = (
        b"From:ann@example.com\nTo:  bob@example.com\nSubject:\t a\n  b\nDate: x\nMessage-ID:<1@x>"
    )
    source += b"\nReferences: <" + b"a" * 90 + b"@example.com>\n\nHello \n\n"
    for canonical in ((b"simple", b"simple"), (b"relaxed", b"relaxed")):
        made = dkim.sign(source, b"test", b"example.com", dkim_key[0], canonicalize=canonical)
        file = tmp_path / "signed.eml"
        file.write_bytes(made.replace(b"\r\n", b"\n") + source)
        with ScriptedServer() as server:
            assert main(["send", "--quiet", "--url", server.url, str(file)]) == 0
            assert dkim_verifies(server.messages[0].content, dkim_key)
