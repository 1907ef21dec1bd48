"""The console transport: what a person sees, and what a terminal never does."""

from __future__ import annotations

import io

import pytest
from letters import SENDER, letter, statuses
from zope.interface.verify import verifyObject

from txmail import Attachment, Envelope, Mailer, Message, mailer_from_settings, transport_from_url
from txmail.exceptions import ConfigurationError, DeliveryUnavailable
from txmail.interfaces import ISession, ITransport
from txmail.transports.local.console import LIMIT, LINE_LIMIT, ConsoleTransport, shown


def shown_message(**arguments):
    message = Message("Hello", ["ann@example.com"], sender=SENDER, **arguments)
    envelope = message.to_envelope()
    return shown(envelope.sender, envelope.recipients, envelope.content)


def test_a_message_is_shown_decoded():
    text = shown_message(
        body="Gr\xfc\xdfe: https://example.com/?a=b",
        html="<p>Hello</p>",
        attachments=[Attachment("report.pdf", "application/pdf", b"x" * 1000)],
    )
    lines = text.splitlines()
    assert lines[0] == "-------- mail from <app@example.com> to ann@example.com"
    assert "  Subject: Hello" in lines
    assert "  Gr\xfc\xdfe: https://example.com/?a=b" in lines
    assert "-------- report.pdf, application/pdf, 1000 octets" in lines
    assert any(line.startswith("-------- text/html, ") for line in lines)
    assert lines[-1] == "--------"


def test_html_alone_is_shown_as_it_is():
    assert "  <p>Hello</p>\n" in shown_message(html="<p>Hello</p>")


@pytest.mark.parametrize("control", ["\x1b[2J", "\x07", "\x9b31m", "\u202e", "\r", "\u2028"])
def test_nothing_in_a_message_steers_the_terminal(control):
    text = shown_message(body=f"before{control}after")
    assert all(line.isprintable() for line in text.split("\n"))
    assert "before" in text
    assert "after" in text


def test_nothing_in_a_message_poses_as_the_frame():
    text = shown_message(body="-------- mail from <x@example.com> to y@example.com")
    assert sum(line.startswith("--------") for line in text.splitlines()) == 2


def test_hostile_octets_are_shown_escaped():
    text = shown("a\x1b[31m", ["b\r\nc"], b"\x1b]0;title\x07\xff\nSubject: \x1b[2J\n")
    assert all(line.isprintable() for line in text.split("\n"))
    assert text.startswith("-------- mail from <a\\x1b[31m> to b\\r\\nc\n")


def test_what_the_standard_library_cannot_read_is_shown_as_it_came():
    content = b'Content-Type: text/plain; charset="no-such"\r\n\r\nhello \x1b\r\n'
    text = shown("a@example.com", ["b@example.com"], content)
    assert "hello \\x1b" in text
    assert all(line.isprintable() for line in text.split("\n"))


def test_what_is_shown_is_bounded():
    long = shown_message(body="x" * 900 + "\n" + "line\n" * 100_000)
    assert len(long) < LIMIT + 2 * LINE_LIMIT
    assert " more lines\n" in long
    wide = shown("a@example.com", ["b@example.com"], b"\r\n" + b"x" * 1_000_000)
    assert len(wide) < 3 * LINE_LIMIT
    assert "more]" in wide
    many = shown("a@example.com", [f"r{n}@example.com" for n in range(100)], b"\r\nx\r\n")
    assert "r9@example.com and 90 more\n" in many


def test_the_stream_is_the_one_that_was_given():
    stream = io.StringIO()
    transport = ConsoleTransport(stream)
    assert statuses(transport.open().send([letter("Hello").to_envelope()])) == ["accepted"]
    assert "  Subject: Hello\n" in stream.getvalue()


def test_otherwise_it_is_the_standard_error_of_the_moment(capsys, tm):
    mailer = mailer_from_settings({"mail.url": "console:"}).bind(transaction_manager=tm)
    tm.begin()
    mailer.send(letter("gone"))
    tm.abort()
    with tm:
        mailer.send(letter("kept"))
        assert capsys.readouterr() == ("", "")
    out, error = capsys.readouterr()
    assert out == ""
    assert "  Subject: kept\n" in error
    assert "gone" not in error


def test_a_stream_of_few_characters_gets_escapes():
    octets = io.BytesIO()
    stream = io.TextIOWrapper(octets, encoding="ascii")
    transport = ConsoleTransport(stream)
    assert statuses(transport.open().send([letter("Gr\xfc\xdfe").to_envelope()])) == ["accepted"]
    assert b"Gr\\xfc\\xdfe" in octets.getvalue()


def test_a_stream_that_is_closed_fails_the_commit(tm):
    stream = io.StringIO()
    stream.close()
    mailer = Mailer(ConsoleTransport(stream), transaction_manager=tm)
    tm.begin()
    mailer.send(letter("one"))
    with pytest.raises(DeliveryUnavailable):
        tm.commit()


def test_it_keeps_the_contracts():
    transport = transport_from_url("console:")
    assert verifyObject(ITransport, transport)
    session = transport.open()
    assert verifyObject(ISession, session)
    envelope = Envelope(SENDER, ["ann@example.com"], b"\r\nx\r\n")
    assert session.preflight([envelope]) == []


@pytest.mark.parametrize("url", ["console://", "console:stdout", "console:?a=b"])
def test_its_url_says_nothing_else(url):
    with pytest.raises(ConfigurationError, match=r"^url"):
        transport_from_url(url)
