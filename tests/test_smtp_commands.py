"""One place writes commands, and a command is one line."""

from __future__ import annotations

import pytest

from txmail.exceptions import TxmailError
from txmail.smtp import commands
from txmail.smtp.extensions import Extensions

ALL = Extensions(pipelining=True, eightbitmime=True, smtputf8=True, size=True)
CONTROLS = [bytes([octet]) for octet in (*range(0x20), 0x7F)]


@pytest.mark.parametrize("control", CONTROLS)
def test_no_control_octet_gets_into_a_command(control):
    path = b"<a" + control + b"@example.com>"
    name = "a" + control.decode() + "b"
    writers = [
        lambda: commands.rcpt(path),
        lambda: commands.mail(path, ALL, size=1, eightbit=False, smtputf8=False),
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
    path = b"<a@example.com>"
    assert commands.mail(path, extensions, size=12, eightbit=eightbit, smtputf8=smtputf8) == line


def test_commands_are_single_lines():
    assert commands.mail(b"<>", Extensions(), size=0, eightbit=False, smtputf8=False) == (
        b"MAIL FROM:<>\r\n"
    )
    assert commands.rcpt(b"<b@example.com>") == b"RCPT TO:<b@example.com>\r\n"
    assert commands.ehlo("[127.0.0.1]") == b"EHLO [127.0.0.1]\r\n"
    assert commands.helo("client.example") == b"HELO client.example\r\n"
    for line in (commands.DATA, commands.RSET, commands.NOOP, commands.QUIT, commands.STARTTLS):
        assert line.endswith(b"\r\n")
        assert line.isupper()
