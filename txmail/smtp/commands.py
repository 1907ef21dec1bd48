"""Writes all commands (RFC 5321 section 4.1.1). No other module does.

Every command refuses octets below 0x20 and 0x7f, so that no value can become a second command.
Parameters come from typed fields only.
"""

from __future__ import annotations

import base64
import re

from ..common.shown import echo
from ..envelope import Envelope
from ..exceptions import TxmailError
from .extensions import Extensions

#: Octets of a command line with its line end (RFC 5321 section 4.5.3.1.4).
LINE_LIMIT = 512

_STREAMED = b"%bMAIL FROM:%b%b\r\nRCPT TO:%b\r\nBDAT %d LAST\r\n"

_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")

DATA = b"DATA\r\n"
RSET = b"RSET\r\n"
NOOP = b"NOOP\r\n"
QUIT = b"QUIT\r\n"
STARTTLS = b"STARTTLS\r\n"


class ControlInCommand(TxmailError):
    """A command would carry a control character. Nothing was written."""


def _line(line: bytes) -> bytes:
    if _CONTROL.search(line):
        raise ControlInCommand(f"control character in {echo(line)}")
    return line + b"\r\n"


def ehlo(hostname: str) -> bytes:
    """EHLO with the client's name or address literal (RFC 5321 section 4.1.3)."""
    return _line(b"EHLO " + hostname.encode("ascii"))


def helo(hostname: str) -> bytes:
    """HELO, for a server that does not know EHLO."""
    return _line(b"HELO " + hostname.encode("ascii"))


def mail(envelope: Envelope, extensions: Extensions, size: int | None = None) -> bytes:
    """MAIL for `envelope`, with the parameters that the server offers and the message needs.

    `size` in octets (RFC 1870) replaces the envelope's own if the command stands for several
    envelopes. BODY=8BITMIME (RFC 6152) and SMTPUTF8 (RFC 6531) are left out where the server does
    not offer them: the caller has checked before that a message does not need them.
    """
    octets = envelope.size if size is None else size
    line = b"MAIL FROM:" + envelope.reverse_path
    return _line(line + _parameters(envelope, extensions, octets))


def _parameters(envelope: Envelope, extensions: Extensions, size: int) -> bytes:
    found = b" SIZE=%d" % size if extensions.size else b""
    if envelope.needs_8bitmime and extensions.eightbitmime:
        found += b" BODY=8BITMIME"
    if envelope.needs_smtputf8 and extensions.smtputf8:
        found += b" SMTPUTF8"
    return found


def rcpt(forward_path: bytes) -> bytes:
    """RCPT for one forward-path, angle brackets included."""
    return _line(b"RCPT TO:" + forward_path)


def bdat(size: int) -> bytes:
    """BDAT for a last chunk of `size` octets (RFC 3030 section 2)."""
    return b"BDAT %d LAST\r\n" % size


def streamed(envelope: Envelope, extensions: Extensions, *, reset: bool) -> bytes:
    """The commands of a streamed message: RSET if `reset`, MAIL, RCPTs and BDAT LAST."""
    sender, recipients, size = envelope.reverse_path, envelope.forward_paths, envelope.size
    if _CONTROL.search(sender) or _CONTROL.search(b"".join(recipients)):
        raise ControlInCommand(f"control character in {echo(sender)} or {echo(recipients)}")
    to = b"\r\nRCPT TO:".join(recipients)
    before = RSET if reset else b""
    return _STREAMED % (before, sender, _parameters(envelope, extensions, size), to, size)


def auth(mechanism: str, first: bytes | None = None) -> bytes:
    """AUTH, with the `first` octets of the mechanism, if it has some (RFC 4954 section 4)."""
    line = b"AUTH " + mechanism.encode("ascii")
    return _line(line if first is None else line + b" " + (base64.b64encode(first) or b"="))


def auth_answer(answer: bytes) -> bytes:
    """The answer to a challenge of an AUTH exchange."""
    return _line(base64.b64encode(answer))
