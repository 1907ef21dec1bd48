"""The one place that writes commands (RFC 5321 section 4.1.1).

Every line passes `_line`, which refuses any octet below 0x20 or 0x7f: whatever got this far, it
cannot become a second command. Parameters come from typed fields only.
"""

from __future__ import annotations

import base64
import re

from ..exceptions import TxmailError
from .extensions import Extensions

#: Octets of a command line with its line end (RFC 5321 section 4.5.3.1.4).
LINE_LIMIT = 512

_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")

DATA = b"DATA\r\n"
RSET = b"RSET\r\n"
NOOP = b"NOOP\r\n"
QUIT = b"QUIT\r\n"
STARTTLS = b"STARTTLS\r\n"


class ControlInCommand(TxmailError):
    """A command would have carried a control character: nothing was written."""


def _line(line: bytes) -> bytes:
    if _CONTROL.search(line):
        raise ControlInCommand(f"control character in {line[:60]!a}")
    return line + b"\r\n"


def ehlo(hostname: str) -> bytes:
    """EHLO with our own name or address literal (RFC 5321 section 4.1.3)."""
    return _line(b"EHLO " + hostname.encode("ascii"))


def helo(hostname: str) -> bytes:
    """HELO, for servers that do not know EHLO."""
    return _line(b"HELO " + hostname.encode("ascii"))


def mail(
    reverse_path: bytes, extensions: Extensions, *, size: int, eightbit: bool, smtputf8: bool
) -> bytes:
    """MAIL with the parameters that the server offers and the message needs.

    `size` in octets (RFC 1870); `eightbit` asks for BODY=8BITMIME (RFC 6152), `smtputf8` for
    SMTPUTF8 (RFC 6531). The caller has checked that the last two are offered where needed.
    """
    line = b"MAIL FROM:" + reverse_path
    if extensions.size:
        line += b" SIZE=%d" % size
    if eightbit and extensions.eightbitmime:
        line += b" BODY=8BITMIME"
    if smtputf8 and extensions.smtputf8:
        line += b" SMTPUTF8"
    return _line(line)


def rcpt(forward_path: bytes) -> bytes:
    """RCPT for one forward-path, angle brackets included."""
    return _line(b"RCPT TO:" + forward_path)


def auth(mechanism: str, first: bytes | None = None) -> bytes:
    """AUTH, with what the mechanism has to say `first` (RFC 4954 section 4)."""
    line = b"AUTH " + mechanism.encode("ascii")
    return _line(line if first is None else line + b" " + (base64.b64encode(first) or b"="))


def auth_answer(answer: bytes) -> bytes:
    """The answer to a challenge of an AUTH exchange."""
    return _line(base64.b64encode(answer))
