"""One place writes commands, and a command is one line."""

from __future__ import annotations

import pytest

from txmail.envelope import Envelope
from txmail.exceptions import TxmailError
from txmail.smtp import commands
from txmail.smtp.extensions import Extensions

ALL = Extensions(pipelining=True, eightbitmime=True, smtputf8=True, size=True)
CONTROLS = [bytes([octet]) for octet in (*range(0x20), 0x7F)]


def an_envelope(content=b"12 octets.\r\n", **attributes):
    """An envelope with attributes that no address could have given it."""
    envelope = Envelope("a@example.com", ["b@example.com"], content)
    for name, value in attributes.items():
        object.__setattr__(envelope, name, value)
    return envelope


@pytest.mark.parametrize("control", CONTROLS)
def test_no_control_octet_gets_into_a_command(control):
    path = b"<a" + control + b"@example.com>"
    name = "a" + control.decode() + "b"
    writers = [
        lambda: commands.rcpt(path),
        lambda: commands.mail(an_envelope(reverse_path=path), ALL),
        lambda: commands.streamed(an_envelope(reverse_path=path), ALL, reset=True),
        lambda: commands.streamed(
            an_envelope(forward_paths=(b"<b@example.com>", path)), ALL, reset=False
        ),
        lambda: commands.ehlo(name),
        lambda: commands.helo(name),
    ]
    for write in writers:
        with pytest.raises(TxmailError):
            write()


@pytest.mark.parametrize(
    ("extensions", "eightbit", "smtputf8", "line"),
    [
        (ALL, False, False, b"MAIL FROM:<a@example.com> SIZE=12\r\n"),
        (ALL, True, False, b"MAIL FROM:<a@example.com> SIZE=12 BODY=8BITMIME\r\n"),
        (ALL, False, True, b"MAIL FROM:<a@example.com> SIZE=12 SMTPUTF8\r\n"),
        (ALL, True, True, b"MAIL FROM:<a@example.com> SIZE=12 BODY=8BITMIME SMTPUTF8\r\n"),
        (Extensions(size=True), True, True, b"MAIL FROM:<a@example.com> SIZE=12\r\n"),
        (Extensions(), True, True, b"MAIL FROM:<a@example.com>\r\n"),
    ],
)
def test_mail_has_the_parameters_that_are_offered_and_needed(extensions, eightbit, smtputf8, line):
    envelope = an_envelope(needs_8bitmime=eightbit, needs_smtputf8=smtputf8)
    assert commands.mail(envelope, extensions) == line
    streamed = b"RSET\r\n" + line + b"RCPT TO:<b@example.com>\r\nBDAT 12 LAST\r\n"
    assert commands.streamed(envelope, extensions, reset=True) == streamed


def test_a_mail_for_several_messages_has_the_size_that_is_given():
    assert commands.mail(an_envelope(), ALL, 99).endswith(b" SIZE=99\r\n")


def test_a_streamed_message_has_all_recipients():
    envelope = Envelope("", ["a@example.com", "b@example.com"], b"x\r\n")
    assert commands.streamed(envelope, Extensions(), reset=True) == (
        b"RSET\r\nMAIL FROM:<>\r\nRCPT TO:<a@example.com>\r\nRCPT TO:<b@example.com>\r\n"
        b"BDAT 3 LAST\r\n"
    )


def test_commands_are_single_lines():
    assert commands.mail(an_envelope(reverse_path=b"<>"), Extensions()) == b"MAIL FROM:<>\r\n"
    assert commands.bdat(17) == b"BDAT 17 LAST\r\n"
    assert commands.rcpt(b"<b@example.com>") == b"RCPT TO:<b@example.com>\r\n"
    assert commands.ehlo("[127.0.0.1]") == b"EHLO [127.0.0.1]\r\n"
    assert commands.helo("client.example") == b"HELO client.example\r\n"
    for line in (commands.DATA, commands.RSET, commands.NOOP, commands.QUIT, commands.STARTTLS):
        assert line.endswith(b"\r\n")
        assert line.isupper()
